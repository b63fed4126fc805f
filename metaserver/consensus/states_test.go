package consensus

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// miscounts is the state machine with a bug: what it is told to spoil it counts twice.
func miscounts(t kv.Txn, index uint64, cmd *pb.Command) *pb.Result {
	res := toyApply(t, index, cmd)
	if name := cmd.Op.GetOpenSession().GetClient(); strings.HasPrefix(name, "spoil") {
		t.Put(names, []byte(name), binary.BigEndian.AppendUint64(nil, 2))
	}
	return res
}

// compare compares the states at a new mark while a member leads for which ok is true.
func (g *group) compare(ok func(id uint64) bool) (agreed int, wrong []uint64, err error) {
	g.t.Helper()
	return g.compareWithin(60*time.Second, ok)
}

// compareWithin is compare with so much patience.
func (g *group) compareWithin(patience time.Duration, ok func(id uint64) bool) (agreed int, wrong []uint64, err error) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 60*time.Second)
	defer cancel()
	for {
		m := g.leader()
		if !ok(m.id) {
			for id, other := range g.members {
				if ok(id) && other.Node != nil {
					_ = m.HandOver(id) // tried again
				}
			}
			continue
		}
		res, err := m.Propose(ctx, marking())
		if err == nil {
			if agreed, wrong, err = m.CompareStates(ctx, res.Index, patience); err == nil || status.Code(err) != codes.Unavailable {
				return agreed, wrong, err
			}
		}
		if ctx.Err() != nil {
			g.t.Fatal(err)
		}
	}
}

// outrun leaves a member that is down behind by more than one message may hold.
func (g *group) outrun(behind uint64) {
	g.t.Helper()
	for range maxAppend + 50 {
		g.propose("missed", behind)
	}
}

// truncate has the members that run forget all but the end of their logs.
func (g *group) truncate() {
	g.t.Helper()
	for _, m := range g.members {
		if m.Node == nil {
			continue
		}
		if err := m.Snapshot(); err != nil {
			g.t.Fatal(err)
		}
	}
}

func anyone(uint64) bool { return true }

func marking() *pb.Command {
	return &pb.Command{Version: 1, Op: &pb.Op{Op: &pb.Op_MarkState{MarkState: &pb.MarkState{}}}}
}

// TestStatesAgree: members agree, also one that was started anew and one that was sent a copy.
func TestStatesAgree(t *testing.T) {
	g := newGroup(t, 3, false, smallLog)
	m := g.leader()
	g.propose("a")
	if n, err := m.Commands(t.Context()); err != nil || n != 1 {
		t.Errorf("commands of all: %d, %v", n, err)
	}
	if agreed, wrong, err := g.compare(anyone); agreed != 3 || len(wrong) > 0 || err != nil {
		t.Fatalf("%d agree, %v are wrong, %v", agreed, wrong, err)
	}
	behind := m.id%3 + 1
	g.stop(behind)
	g.outrun(behind)
	g.truncate()
	if _, err := m.Commands(t.Context()); err == nil {
		t.Error("the commands of a member that is down are known")
	}
	g.start(behind)
	waitFor(t, "the member to catch up", func() bool { return g.members[behind].AppliedIndex() == m.AppliedIndex() })
	if g.members[behind].snapshots.newest() == nil {
		t.Fatal("no copy was received")
	}
	if agreed, wrong, err := g.compare(anyone); agreed != 3 || len(wrong) > 0 || err != nil {
		t.Fatalf("%d agree, %v are wrong, %v", agreed, wrong, err)
	}
}

// TestStateThatDiffers: whoever differs from most leaves the group, be it the leader, and nobody else does.
func TestStateThatDiffers(t *testing.T) {
	for _, leads := range []bool{false, true} {
		g := newGroup(t, 3, false, nil)
		const bad = 2
		g.leader()
		g.stop(bad)
		g.tune = func(c *Config) { c.Apply = miscounts }
		g.start(bad)
		g.tune = nil
		g.propose("spoil")
		agreed, wrong, err := g.compare(func(id uint64) bool { return id == bad == leads })
		if agreed != 2 || !slices.Equal(wrong, []uint64{bad}) || err != nil {
			t.Fatalf("it leads: %v; %d agree, %v are wrong, %v", leads, agreed, wrong, err)
		}
		waitFor(t, "the bad one to leave", func() bool { return g.members[bad].Failure() != nil })
		if err := g.members[bad].Failure(); !strings.Contains(err.Error(), "is not that of most") {
			t.Error(err)
		}
		g.propose("after", bad)
		if agreed, wrong, err := g.compare(func(id uint64) bool { return id != bad }); agreed != 2 || len(wrong) > 0 || err != nil {
			t.Errorf("afterwards %d agree, %v are wrong, %v", agreed, wrong, err)
		}
		for id, other := range g.members {
			if id != bad && other.Failure() != nil {
				t.Errorf("member %d: %v", id, other.Failure())
			}
		}
	}
}

// TestStatesUndecided: of two that differ nobody can tell who is right, and nobody stops.
func TestStatesUndecided(t *testing.T) {
	g := newGroup(t, 3, false, nil)
	bad := g.leader().id%3 + 1
	g.stop(bad)
	g.tune = func(c *Config) { c.Apply = miscounts }
	g.start(bad)
	waitFor(t, "the member to catch up", func() bool { return g.members[bad].AppliedIndex() == g.leader().AppliedIndex() })
	g.stop(bad%3 + 1)
	g.propose("spoil", bad%3+1)
	_, _, err := g.compare(anyone)
	if !errors.Is(err, ErrUndecided) {
		t.Errorf("two that differ: %v", err)
	}
	for id, other := range g.members {
		if other.Node != nil && other.Failure() != nil {
			t.Errorf("member %d: %v", id, other.Failure())
		}
	}
}

// TestStateOfNoMark: what was not marked is not known, which is no reason to stop.
func TestStateOfNoMark(t *testing.T) {
	g := newGroup(t, 1, false, nil)
	m := g.leader()
	index := g.propose("a").Index
	g.propose("b")
	if sum, err := m.stateAt(t.Context(), index); err == nil {
		t.Errorf("it was %x", sum)
	}
	r, err := m.layer.State(t.Context(), &pb.StateRequest{Member: 1, Index: index, Verdict: make([]byte, 32)})
	if err != nil || len(r.Sum) > 0 || m.Failure() != nil {
		t.Errorf("%v, %v, %v", r, err, m.Failure())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.layer.State(ctx, &pb.StateRequest{Member: 1, Index: index + 100}); err == nil {
		t.Error("a state of the future is known")
	}
}

// TestStateOfALeap: a member that got past a mark without applying it says so at once: it was started anew, or sent a copy.
func TestStateOfALeap(t *testing.T) {
	g := newGroup(t, 3, false, smallLog)
	m := g.leader()
	res, err := m.Propose(t.Context(), marking())
	if err != nil {
		t.Fatal(err)
	}
	behind := g.members[m.id%3+1]
	waitFor(t, "the mark", func() bool { return behind.AppliedIndex() == res.Index })
	g.stop(behind.id)
	if err := behind.openDB(); err != nil {
		t.Fatal(err)
	}
	if behind.db.Applied() != res.Index {
		t.Fatalf("the database holds entry %d, the mark is at %d", behind.db.Applied(), res.Index)
	}
	if err := behind.db.Close(); err != nil {
		t.Fatal(err)
	}
	g.outrun(behind.id)
	later, err := g.leader(behind.id).Propose(t.Context(), marking())
	if err != nil {
		t.Fatal(err)
	}
	g.truncate()
	g.start(behind.id)
	for _, index := range []uint64{res.Index, later.Index} {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		if sum, err := behind.stateAt(ctx, index); err == nil || ctx.Err() != nil {
			t.Errorf("entry %d: %x, %v", index, sum, err)
		}
	}
}

// TestGarbledVerdict: what nobody of the cluster says, or makes no sense, stops nobody.
func TestGarbledVerdict(t *testing.T) {
	id := []byte("0123456789abcdef")
	g := newGroup(t, 1, false, func(c *Config) { c.Cluster = func() []byte { return id } })
	m := g.leader()
	res, err := m.Propose(t.Context(), marking())
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range []*pb.StateRequest{
		{Cluster: id, Verdict: []byte("short")},
		{Cluster: id, Verdict: make([]byte, 33)},
		{Verdict: make([]byte, 32)},
		{Cluster: id[1:], Verdict: make([]byte, 32)},
		{Cluster: id, Verdict: make([]byte, 32), Member: 2},
	} {
		req.Index = res.Index
		if req.Member == 0 {
			req.Member = 1
		}
		if r, err := m.layer.State(t.Context(), req); err == nil || m.Failure() != nil {
			t.Errorf("%v: %v, %v, %v", req, r, err, m.Failure())
		}
	}
}

// TestSilentMember: a member that does not answer does not keep another from learning that it is wrong.
func TestSilentMember(t *testing.T) {
	const bad, silent = 2, 3
	released := make(chan struct{})
	g := newGroup(t, 5, false, func(c *Config) {
		switch c.ID {
		case bad:
			c.Apply = miscounts
		case silent:
			c.Apply = func(t kv.Txn, index uint64, cmd *pb.Command) *pb.Result {
				if cmd.Op.GetMarkState() != nil {
					<-released
				}
				return toyApply(t, index, cmd)
			}
		}
	})
	defer close(released)
	g.propose("spoil")
	waitFor(t, "the bad one to be told", func() bool {
		agreed, wrong, err := g.compareWithin(5*time.Second, func(id uint64) bool { return id != bad && id != silent })
		return agreed == 3 && slices.Equal(wrong, []uint64{bad}) && err == nil
	})
	waitFor(t, "the bad one to leave", func() bool { return g.members[bad].Failure() != nil })
}

// TestCopyThatIsRefused: a member that must not go on with the copy that it was sent stops, and does not start again with it.
func TestCopyThatIsRefused(t *testing.T) {
	g := newGroup(t, 3, false, smallLog)
	behind := g.members[g.leader().id%3+1]
	g.stop(behind.id)
	g.outrun(behind.id)
	g.truncate()
	newer := errors.New("it is of a newer version")
	g.tune = func(c *Config) {
		smallLog(c)
		c.Check = func() error {
			if behind.db.Applied() > maxAppend {
				return newer
			}
			return nil
		}
	}
	g.start(behind.id)
	waitFor(t, "the member to refuse the copy", func() bool { return behind.Failure() != nil })
	if err := behind.Failure(); !errors.Is(err, newer) {
		t.Error(err)
	}
	g.stop(behind.id)
	if err := g.tryStart(behind.id); !errors.Is(err, newer) {
		t.Errorf("it started again: %v", err)
	}
}
