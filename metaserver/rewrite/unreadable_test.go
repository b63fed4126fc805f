package rewrite

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// TestUnreadable: what cannot be read, as its servers are dead, keeps nothing else from being rewritten, and is rewritten when
// they are back.
func TestUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 7, eager)
		w.run(func() {
			w.busy = "writing"
			f, g := w.create(), w.create()
			w.write(f, 0, 500000, chunk.Copies(1))
			dead := w.servers[chunk.ServerID(w.open[chunk.Copies(1)].Servers[0])]
			w.expire()
			w.mu.Lock()
			dead.info.State = pb.ServerState_SERVER_STATE_DEAD
			w.mu.Unlock()
			w.write(g, 0, 500000, copies3)
			w.expire()
			w.truncate(f, 100000)
			w.truncate(g, 100000)
			garbage := func() uint64 {
				length, live, _ := w.totals()
				return length - live
			}
			if n := garbage(); n != 800000 {
				t.Errorf("%d bytes of garbage", n)
			}
			w.mu.Lock()
			w.busy = ""
			w.mu.Unlock()
			time.Sleep(5 * time.Minute)
			if n := garbage(); n != 400000 {
				t.Errorf("%d bytes of garbage are left", n)
			}
			if s := w.e.Stats(); s.Failed != 0 || s.Reclaimable != 0 {
				t.Errorf("%+v", s)
			}
			w.mu.Lock()
			dead.info.State = pb.ServerState_SERVER_STATE_HEALTHY
			w.mu.Unlock()
			time.Sleep(5 * time.Minute)
			if n := garbage(); n != 0 {
				t.Errorf("%d bytes of garbage are left when the server is back", n)
			}
			w.check()
		})
	})
}
