package metaserver

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// TestOlderMembersAreWaitedFor: nothing gets into the log that a metaserver of an older version does not know, also while it is down; once all are
// new it does, and the older version does not start any more.
func TestOlderMembersAreWaitedFor(t *testing.T) {
	peers := addresses(t, 3)
	begin := func(id uint64, knows uint32, dir string) *running {
		return start(t, Config{ID: id, Listen: peers[id], Peers: peers, Dir: dir, StateCheckEvery: 20 * time.Millisecond, knows: knows})
	}
	dirs, all := map[uint64]string{}, map[uint64]*running{}
	for id := range peers {
		dirs[id] = t.TempDir()
		all[id] = begin(id, map[bool]uint32{true: namespace.BaseCommands}[id == 3], dirs[id])
	}
	mark := &pb.Op{Op: &pb.Op_MarkState{MarkState: &pb.MarkState{}}}
	// refused has the leader try what only newer versions know. The older one leads now and then, and does not try.
	refused := func(when string) {
		t.Helper()
		tried := 0
		eventually(t, "the leader to have tried", func() bool {
			for id, s := range all {
				l := s.lead.Load()
				if l == nil || id == 3 {
					continue
				}
				if err := l.raiseCommands(); err != nil {
					t.Logf("%s: %v", when, err)
					continue
				}
				if _, err := l.own(mark); !errors.Is(err, syscall.EOPNOTSUPP) && l.ctx.Err() == nil {
					t.Fatalf("%s: a newer command: %v", when, err)
				}
				tried++
			}
			if l := all[3].lead.Load(); l != nil {
				_ = all[3].node.HandOver(1) // tried again
			}
			return tried >= 3
		})
	}
	for _, s := range all {
		s.ready()
	}
	refused("with an older member")
	all[3].stop()
	refused("with an older member that is down")
	if set, err := all[1].commands(); err != nil || set != namespace.BaseCommands {
		t.Fatalf("commands %d, %v", set, err)
	}
	all[3] = begin(3, 0, dirs[3])
	for id, s := range all {
		eventually(t, "the newer commands to be used", func() bool {
			set, err := s.commands()
			if err != nil {
				t.Fatalf("metaserver %d: %v", id, err)
			}
			return set == namespace.CommandVersion
		})
	}
	for _, s := range all {
		if err := s.node.Failure(); err != nil {
			t.Error(err)
		}
	}
	all[3].stop()
	_, err := New(Config{ID: 3, Listen: peers[3], Peers: peers, Dir: dirs[3], knows: namespace.BaseCommands})
	if err == nil || !strings.Contains(err.Error(), "start the version that the other metaservers run") || !strings.Contains(err.Error(), dirs[3]) {
		t.Errorf("an older version: %v", err)
	}
}
