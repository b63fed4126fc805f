package data

import (
	"slices"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
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

// TestRefusedSealKeepsNoOthersBack: of chunks that are given up together one that the metaserver refuses costs the others nothing.
func TestRefusedSealKeepsNoOthersBack(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	chunks, err := x.meta.AllocChunks(t.Context(), chunk.Layout{}, 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := x.store.writer
	w.mu.Lock()
	w.followSession()
	for _, id := range []uint64{chunks[0].Id, chunks[2].Id, chunks[1].Id} {
		c := &pb.ChunkCommit{Chunk: id, Seal: true}
		if id == chunks[2].Id {
			c.Servers = []uint32{99} // it is on no such server
		}
		w.seal(c, w.session)
	}
	w.mu.Unlock()
	for _, c := range chunks[:2] {
		eventually(t, "it is sealed", func() (sealed bool) {
			x.meta.with(func(m *fakeMeta) {
				rec := m.chunks[chunk.ID(c.Id)]
				sealed = rec == nil || rec.owner == 0
			})
			return sealed
		})
	}
}
