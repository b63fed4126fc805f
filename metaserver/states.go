package metaserver

import (
	"errors"
	"time"

	"github.com/shoalfs/shoalfs/metaserver/consensus"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// checksMissed is how many checks are left out for one that takes long: a new mark would end the hashing of the last one.
const checksMissed = 6

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
	return l.compareStates(res.Index)
}

// compareStates does so at the index of a mark. That it could not be done says nothing about the states.
func (l *leader) compareStates(index uint64) error {
	began := time.Now()
	agreed, wrong, err := l.s.node.CompareStates(l.ctx, index, checksMissed*l.s.cfg.StateCheckEvery)
	if len(wrong) > 0 {
		l.log.Error("metaservers had another state than most and left the group: their logs say what to do", "wrong", wrong, "agree", agreed, "index", index, "error", err)
	}
	switch {
	case err == nil && agreed > len(l.s.node.Members())/2:
		l.differs.Store(nil)
	case err == nil: // too few to say that what was found is over
	case len(wrong) > 0 || errors.Is(err, consensus.ErrUndecided):
		problem := err.Error()
		l.differs.Store(&problem)
		return err
	default:
		return err
	}
	l.log.Debug("the states of the metaservers were compared", "agree", agreed, "index", index, "took", time.Since(began))
	return nil
}
