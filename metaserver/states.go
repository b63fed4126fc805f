package metaserver

import (
	"time"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// checkStates has all metaservers hash their state at one index of the log, and compares. One that differs from most leaves the group.
func (l *leader) checkStates() error {
	op := &pb.Op{Op: &pb.Op_MarkState{MarkState: &pb.MarkState{}}}
	if len(l.s.node.Members()) < 2 || l.admit(op) != nil {
		return nil
	}
	res, err := l.own(op)
	if err != nil {
		return err
	}
	began := time.Now()
	agreed, wrong, err := l.s.node.CompareStates(l.ctx, res.Index, l.s.cfg.StateCheckEvery)
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
