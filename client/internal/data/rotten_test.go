package data

import (
	"slices"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// TestDamagedTargetIsNoDeadServer: a server that finds a chunk damaged which is being written is left out of that chunk, and of no
// other.
func TestDamagedTargetIsNoDeadServer(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	want := pattern(6<<20, 1)
	mustWrite(t, f, want[:3<<20], 0)
	mustCommit(t, f, false)
	rotten := x.servers[0]
	var before []chunk.ID
	rotten.set(func(s *fakeServer) {
		s.rotten = map[chunk.ID]bool{}
		for id := range s.chunks {
			before = append(before, id)
			s.rotten[id] = true
		}
	})
	mustWrite(t, f, want[3<<20:], 3<<20)
	mustCommit(t, f, false)
	checkContent(t, f, want)
	if avoid, _ := x.store.health.avoided(); len(avoid) > 0 {
		t.Errorf("servers %v are avoided", avoid)
	}
	other := x.file()
	mustWrite(t, other, want, 0)
	mustCommit(t, other, false)
	rotten.set(func(s *fakeServer) {
		for id := range s.chunks {
			if !slices.Contains(before, id) {
				return
			}
		}
		t.Error("nothing more is written there")
	})
	mustClose(t, f)
	mustClose(t, other)
}
