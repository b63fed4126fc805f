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
