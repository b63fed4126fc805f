package metaserver

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// registered tells whether a server is known, and drained.
func (r *running) registered(t *testing.T, id uint32) (known, drained bool) {
	t.Helper()
	st, err := r.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range st.Servers {
		if s.Id == id {
			return true, s.Draining
		}
	}
	return false, false
}

// A server that is up is removed by force, though repair would rather have it hold what it held.
func TestRemovalByForceWhileRepairWorks(t *testing.T) {
	w := newOneWriter(t, 1000)
	w.commit(1000, 1000)
	w.seal(&pb.ChunkCommit{Chunk: w.id, Length: 1000, Servers: w.all})
	l := w.s.lead.Load()
	gone := make(chan struct{})
	var repair sync.WaitGroup
	repair.Go(func() { // as one that knows of nothing else
		for {
			select {
			case <-gone:
				return
			default:
			}
			_, _ = l.own(&pb.Op{Op: &pb.Op_StartMoves{StartMoves: &pb.StartMoves{Moves: []*pb.Move{{Chunk: w.id, Server: w.all[0]}}}}})
		}
	})
	err := l.remove(t.Context(), chunk.ServerID(w.all[0]), true)
	close(gone)
	repair.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if known, _ := w.s.registered(t, w.all[0]); known {
		t.Error("it is still known")
	}
	if err := l.remove(t.Context(), chunk.ServerID(w.all[1]), false); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("a server that holds data, without force: %v", err)
	}
	if err := l.remove(t.Context(), 99, true); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a server that there is not: %v", err)
	}
}

// A removal by force waits until a client that writes to the server has left it.
func TestRemovalByForceUnderWriter(t *testing.T) {
	w := newOneWriter(t, 1000)
	w.commit(1000, 1000)
	l := w.s.lead.Load()
	removed := make(chan error, 1)
	go func() { removed <- l.remove(t.Context(), chunk.ServerID(w.all[0]), true) }()
	eventually(t, "it is drained", func() bool { _, drained := w.s.registered(t, w.all[0]); return drained })
	select {
	case err := <-removed:
		t.Fatalf("a client writes there, and the removal ended: %v", err)
	default:
	}
	w.seal(&pb.ChunkCommit{Chunk: w.id, Length: 1000, Servers: w.all})
	if err := <-removed; err != nil {
		t.Fatal(err)
	}
	if known, _ := w.s.registered(t, w.all[0]); known {
		t.Error("it is still known")
	}
}

// A removal that the operator gave up does not go on behind his back.
func TestRemovalIsGivenUp(t *testing.T) {
	w := newOneWriter(t, 1000)
	w.commit(1000, 1000)
	w.seal(&pb.ChunkCommit{Chunk: w.id, Length: 1000, Servers: w.all})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.s.lead.Load().remove(ctx, chunk.ServerID(w.all[0]), true); !errors.Is(err, context.Canceled) {
		t.Errorf("removal: %v", err)
	}
	if known, _ := w.s.registered(t, w.all[0]); !known || !w.counts() {
		t.Errorf("known: %v, its shard counts: %v", known, w.counts())
	}
}
