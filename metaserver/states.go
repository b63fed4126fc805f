package metaserver

import (
	"context"
	"time"

	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// askPatience is how long metaservers have to say which commands they know.
const askPatience = 5 * time.Second

// checkStates has all metaservers hash their state at one index of the log, and compares. One that differs from most leaves the group.
func (l *leader) checkStates() error {
	op := &pb.Op{Op: &pb.Op_MarkState{MarkState: &pb.MarkState{}}}
	if !l.allKnow(namespace.VersionOf(op)) {
		return nil
	}
	res, err := l.own(op)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(l.ctx, l.s.cfg.StateCheckEvery)
	defer cancel()
	began := time.Now()
	agreed, wrong, err := l.s.node.CompareStates(ctx, res.Index)
	if err != nil {
		problem := err.Error()
		l.differs.Store(&problem)
		return err
	}
	l.differs.Store(nil)
	if len(wrong) > 0 {
		l.log.Error("metaservers had another state than most and left the group: their logs say what to do", "wrong", wrong, "agree", agreed, "index", res.Index)
		return nil
	}
	l.log.Debug("the metaservers have the same state", "agree", agreed, "index", res.Index, "took", time.Since(began))
	return nil
}

// allKnow tells whether there are several metaservers, all of which know a command set: one that does not would stop.
func (l *leader) allKnow(version uint32) bool {
	if len(l.s.node.Members()) < 2 {
		return false
	}
	ctx, cancel := context.WithTimeout(l.ctx, askPatience)
	defer cancel()
	known, err := l.s.node.Commands(ctx)
	if err != nil {
		l.log.Debug("the states of the metaservers are not compared: it is not known which commands all know", "error", err)
	}
	return err == nil && known >= version
}
