package data

import (
	"errors"
	"google.golang.org/grpc/mem"
	"math/rand/v2"
	"time"

	"bytes"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"pgregory.net/rapid"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// codedChunks returns the layouts of the chunks that hold a file.
func (x *fixture) codedChunks(f *File) (wide, packed, copies int) {
	x.t.Helper()
	r, err := x.meta.Extents(x.ctx(), f.inode, 0, 0, false)
	if err != nil {
		x.t.Fatal(err)
	}
	for _, c := range r.Chunks {
		switch l := chunk.LayoutOf(c.Layout); {
		case !l.Coded():
			copies++
		case l.Cell == chunk.PackedCell:
			packed++
		default:
			wide++
		}
	}
	return wide, packed, copies
}

func TestCodedRoundTrip(t *testing.T) {
	for i, policy := range []string{"ec=4+2", "ec=3+2", "ec=2+1", "ec=5+3,min-copies=5"} {
		for k, size := range []int{4097, 10_000, 100_000, 1<<20 - 1000, 1 << 20, 2<<20 + 123} {
			durable := (i+k)%2 == 0
			t.Run(fmt.Sprintf("%s, %d bytes, durable %v", policy, size, durable), func(t *testing.T) {
				x := newCodedFixture(t, 9, policy)
				f := x.file()
				want := pattern(size, uint64(size))
				mustWrite(t, f, want, 0)
				checkContent(t, f, want)
				mustCommit(t, f, durable)
				checkContent(t, f, want)
				mustClose(t, f)
				f = x.open(f.inode)
				x.store.reader.cache.clear()
				checkContent(t, f, want)
				for range 3 {
					at := size / 3
					got := make([]byte, min(5000, size-at))
					x.store.reader.cache.clear()
					if _, err := f.ReadAt(x.ctx(), got, int64(at)); err != nil || !bytes.Equal(got, want[at:at+len(got)]) {
						t.Fatalf("read at %d: %v", at, err)
					}
				}
				wide, packed, copies := x.codedChunks(f)
				if copies > 0 || (wide > 0) != (size > 1<<20-100_000) || (packed > 0) != (size%(1<<20) < 1<<20-100_000 && size != 1<<20) {
					t.Errorf("%d wide, %d packed, %d copied chunks", wide, packed, copies)
				}
				mustCommit(t, f, true)
				mustClose(t, f)
				x.memoryGivenBack()
			})
		}
	}
}

// put lays a chunk of a code out on the servers, a shard on each.
func (x *fixture) put(id chunk.ID, l chunk.Layout, content []byte) location {
	x.t.Helper()
	loc := location{chunk: id, layout: l, length: uint64(len(content)), servers: make([]chunk.ServerID, l.Width())}
	for i, b := range codeOf(x.t, l, content) {
		loc.servers[i] = x.servers[i].id
		x.servers[i].set(func(s *fakeServer) { s.chunks[id.Stored(l, i)] = b })
	}
	return loc
}

// TestCodedFetch reads ranges of chunks of any code while up to Parity of the servers fail in any way: it is right, and takes
// no more than it must when none fails.
func TestCodedFetch(t *testing.T) {
	x := newFixture(t, 18, 3, 2, func(c *StoreConfig) { c.ReadTimeout = 10 * time.Millisecond })
	id := chunk.ID(1000)
	rapid.Check(t, func(t *rapid.T) {
		id++
		l := drawLayout(t)
		content := pattern(l.Padded(rapid.IntRange(1, 2<<20).Draw(t, "length")), uint64(id))
		loc := x.put(id, l, content)
		for range 5 {
			for i, s := range x.servers {
				s.heal()
				if i < l.Width() {
					loc.servers[i] = s.id
				}
			}
			x.forgive()
			lost := rapid.IntRange(0, l.Parity).Draw(t, "lost")
			for _, i := range rand.Perm(l.Width())[:lost] {
				fault := rapid.SampledFrom([]string{"missing", "forgotten", "down", "corrupt", "stalled", "short"}).Draw(t, "fault")
				x.servers[i].set(func(s *fakeServer) {
					switch fault {
					case "missing":
						loc.servers[i] = 0
					case "forgotten":
						loc.servers[i] = 77 // nobody knows where that is
					case "down":
						s.down = true
					case "corrupt":
						s.corrupt = true
					case "stalled":
						s.stallRead = true
					case "short":
						s.amnesia = true
					}
				})
			}
			before := value(t, x.store.metrics.fetched)
			from := rapid.IntRange(0, len(content)-1).Draw(t, "from")
			n := min(rapid.OneOf(rapid.IntRange(1, 10_000), rapid.IntRange(1, 2<<20)).Draw(t, "bytes"), len(content)-from)
			loc.off, loc.n = uint64(from), n
			var payload mem.BufferSlice
			err := errUnreachable
			for loc.tries = 0; errors.Is(err, errUnreachable) && loc.tries < 5; loc.tries++ { // the machine may be busy
				payload, err = x.store.reader.fetch(x.ctx(), loc)
			}
			if err != nil {
				t.Fatalf("%v, cells of %d, [%d, %d) with %d shards lost: %v", l, l.Cell, from, from+n, lost, err)
			}
			got := payload.Materialize()
			payload.Free()
			if !bytes.Equal(got, content[from:from+n]) {
				t.Fatalf("%v, cells of %d, [%d, %d) with %d shards lost: %d bytes, different at %d", l, l.Cell, from, from+n, lost, len(got), difference(got, content[from:from+n]))
			}
			if took := value(t, x.store.metrics.fetched) - before; lost == 0 && took != n && !x.store.health.slows.Load() {
				t.Fatalf("%v, cells of %d: %d bytes were fetched to read %d", l, l.Cell, took, n)
			}
		}
	})
}

// forgive has the client forget what it knows about the health of servers.
func (x *fixture) forgive() {
	h := x.store.health
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.servers {
		s.failures, s.last, s.avoid, s.slow = 0, time.Time{}, time.Time{}, time.Time{}
	}
	h.bads.Store(0)
	h.slows.Store(false)
}

// value returns what a counter has counted.
func value(t interface{ Fatal(...any) }, c prometheus.Counter) int {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return int(m.GetCounter().GetValue())
}
