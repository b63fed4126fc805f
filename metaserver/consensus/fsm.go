package consensus

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// fsm is the database as raft sees it. raft calls it from one goroutine.
type fsm struct{ n *Node }

// errSkipped is the answer to a command whose effects the database held already; its Result is not known any more.
var errSkipped = errors.New("it was applied before")

// ApplyBatch implements raft.BatchingFSM.
func (f fsm) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	for i, l := range logs {
		out[i] = f.Apply(l)
	}
	return out
}

// Apply implements raft.FSM. It returns a *pb.Result or an error.
func (f fsm) Apply(l *raft.Log) any {
	if err := f.n.failure(); err != nil {
		return err
	}
	if l.Index <= f.n.cfg.DB.Applied() {
		return errSkipped
	}
	res, err := f.apply(l)
	if err != nil {
		f.n.fail(fmt.Errorf("apply entry %d of the log: %w", l.Index, err))
		return err
	}
	return res
}

func (f fsm) apply(l *raft.Log) (res *pb.Result, err error) {
	defer func() {
		if r := recover(); r != nil { // a bug; the database is as it was before
			f.n.log.Error("the state machine panicked; this is a bug, please report it", "index", l.Index, "panic", r, "stack", string(debug.Stack()))
			res, err = nil, fmt.Errorf("the state machine panicked: %v", r)
		}
	}()
	cmd := new(pb.Command)
	if l.Type == raft.LogCommand {
		if err := proto.Unmarshal(l.Data, cmd); err != nil {
			return nil, fmt.Errorf("the log is damaged: %w", err)
		}
		if known := f.n.cfg.Commands; cmd.Version > known {
			return nil, fmt.Errorf("it has version %d, this version of shoalfs knows only %d: run the same version on all metaservers", cmd.Version, known)
		}
	}
	err = f.n.cfg.DB.Update(l.Index, func(t kv.Txn) error {
		if l.Type == raft.LogCommand { // other entries only move the index
			res = f.n.cfg.Apply(t, l.Index, cmd)
		}
		return nil
	})
	if err == nil && cmd.GetOp().GetMarkState() != nil {
		f.n.mark(l.Index)
	}
	return res, err
}

// Snapshot implements raft.FSM.
func (f fsm) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.n.failure(); err != nil {
		return nil, err
	}
	return localSnapshot{f.n.cfg.DB}, nil
}

// localSnapshot is a promise that the database's file holds what was applied when it was made.
type localSnapshot struct{ db *kv.DB }

// Persist implements raft.FSMSnapshot. The log is truncated only after it returned.
func (s localSnapshot) Persist(to raft.SnapshotSink) error {
	k, ok := to.(*sink)
	if !ok {
		return fmt.Errorf("consensus: a snapshot into %T", to)
	}
	if err := s.db.Flush(); err != nil {
		return err
	}
	k.databaseHolds(s.db.Durable())
	return nil
}

// Release implements raft.FSMSnapshot.
func (localSnapshot) Release() {}

// Restore implements raft.FSM: the copy takes the database's place.
func (f fsm) Restore(r io.ReadCloser) error {
	if err := restore(f.n.cfg.DB, r); err != nil {
		if errors.Is(err, kv.ErrFailed) {
			f.n.fail(err)
		}
		return err
	}
	f.n.states.skip(f.n.cfg.DB.Applied())
	if err := f.n.cfg.Check(); err != nil {
		f.n.fail(err)
		return err
	}
	if err := f.n.snapshots.settled(); err != nil {
		f.n.log.Warn("a copy of the database that is not needed any more could not be removed", "error", err)
	}
	f.n.log.Info("took over a copy of the database", "index", f.n.cfg.DB.Applied())
	return nil
}

func restore(db *kv.DB, r io.Reader) error {
	d, err := decodeStream(r)
	if err != nil {
		return err
	}
	return db.Replace(d)
}
