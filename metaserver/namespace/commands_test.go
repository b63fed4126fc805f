package namespace

import (
	"syscall"
	"testing"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// TestRaiseCommands: what the log may hold only ever grows, and a version that does not know it does not take the command that says so: it
// would have another state than those that do.
func TestRaiseCommands(t *testing.T) {
	w := newWorld(t)
	raise := func(version uint32) *pb.Op {
		return &pb.Op{Op: &pb.Op_RaiseCommands{RaiseCommands: &pb.RaiseCommands{Version: version}}}
	}
	check := func(want uint32) {
		t.Helper()
		if set, err := Commands(w.s); set != want || err != nil {
			t.Errorf("commands %d, %v; want %d", set, err, want)
		}
	}
	check(BaseCommands)
	if v := VersionOf(raise(CommandVersion + 1)); v != CommandVersion+1 {
		t.Errorf("to begin with command set %d takes command set %d", CommandVersion+1, v)
	}
	w.want(syscall.EOPNOTSUPP, w.own(raise(CommandVersion+1)))
	check(BaseCommands)
	w.want(0, w.own(raise(CommandVersion)))
	check(CommandVersion)
	w.want(0, w.own(raise(0)))
	check(CommandVersion)
}

// TestRecordsHaveNoWords: what a version says of a failure is not part of the state, in which versions must agree. Before all know that, it is.
func TestRecordsHaveNoWords(t *testing.T) {
	w := newWorld(t)
	for _, raised := range []bool{false, true} {
		if raised {
			w.want(0, w.own(&pb.Op{Op: &pb.Op_RaiseCommands{RaiseCommands: &pb.RaiseCommands{Version: wordless}}}))
		}
		w.seq++
		cmd := w.command(w.session, root, opAlloc(0))
		cmd.Sequence, cmd.Unanswered = w.seq, 1
		res := w.apply(cmd)
		w.want(syscall.EINVAL, res)
		if res.Message == "" {
			t.Error("the caller is not told in words")
		}
		again := w.apply(cmd)
		w.want(syscall.EINVAL, again)
		if (again.Message == "") != raised || again.Index != res.Index {
			t.Errorf("raised %v: a retry gets %v", raised, again)
		}
	}
	w.check()
}
