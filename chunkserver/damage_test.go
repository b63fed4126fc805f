package chunkserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// damages are what may become of the part of a chunk's file that matters. One that is being written may have zeros behind it.
var damages = map[string]func(r *rand.Rand, file, another []byte, open bool) []byte{
	"a bit": func(r *rand.Rand, file, _ []byte, _ bool) []byte {
		file[r.IntN(len(file))] ^= 1 << r.IntN(8)
		return file
	},
	"a byte at an end": func(r *rand.Rand, file, _ []byte, _ bool) []byte {
		file[[]int{r.IntN(64), len(file) - 1 - r.IntN(80)}[r.IntN(2)]]++
		return file
	},
	"random bytes": func(r *rand.Rand, file, _ []byte, _ bool) []byte {
		at := r.IntN(len(file))
		was := bytes.Clone(file)
		for bytes.Equal(file, was) {
			for i := range file[at:min(len(file), at+1+r.IntN(5000))] {
				file[at+i] = byte(r.Uint32())
			}
		}
		return file
	},
	"a page of zeros": func(r *rand.Rand, file, _ []byte, _ bool) []byte {
		at := r.IntN(len(file)) / 4096 * 4096
		clear(file[at:min(len(file), at+4096)])
		return file
	},
	"all zeros": func(_ *rand.Rand, file, _ []byte, _ bool) []byte { return make([]byte, len(file)) },
	"a cut":     func(r *rand.Rand, file, _ []byte, _ bool) []byte { return file[:r.IntN(len(file))] },
	"nothing":   func(*rand.Rand, []byte, []byte, bool) []byte { return []byte{} },
	"no file":   func(*rand.Rand, []byte, []byte, bool) []byte { return nil },
	"too much": func(r *rand.Rand, file, _ []byte, open bool) []byte {
		if open { // which is nothing bad there
			return file[:len(file)-1]
		}
		return append(file, random(1+r.IntN(100))...)
	},
	"another chunk": func(_ *rand.Rand, _, another []byte, _ bool) []byte { return another },
}

// TestOneScrubFindsAll damages every file of a server, whatever kind of file it is and whatever the server has in memory of it. One
// scrub finds all, no read ever returns wrong bytes, and all can be made anew.
func TestOneScrubFindsAll(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	m := newMeta(t)
	cfg := Config{Dirs: []string{t.TempDir()}, Meta: []string{m.srv.Address()}, ScrubRate: -1}
	s := start(t, cfg)
	s.awaitReady(t)
	f := newSource(t)
	data := map[chunk.ID][]byte{}
	next := chunk.ID(1)
	write := func(id chunk.ID, frames, most int) *writer {
		t.Helper()
		w := dial(t, s).append(id)
		for range frames {
			b := random(1 + r.IntN(most))
			data[id] = append(data[id], b...)
			w.send(b, []func(*pb.AppendHeader){nil, durable}[r.IntN(2)])
			w.acked(w.length, 0)
		}
		return w
	}
	sealed := func() {
		t.Helper()
		m.until(t, "all are sealed", func() bool {
			for id := range data {
				if h, ok := s.store.disks[0].Held(id); !ok || h.Writing {
					return false
				}
			}
			return true
		})
	}
	end := func(w *writer) {
		t.Helper()
		w.send(nil, seal)
		if err := w.failure(); err != nil && rpc.Kind(err) != 0 {
			t.Fatal(err)
		}
	}
	// Chunks that a crash left unsealed, with zeros or half a record behind them.
	crashed := map[chunk.ID][]byte{}
	for ; next <= 10; next++ {
		w := write(next, 1+r.IntN(20), 3000)
		file, err := os.ReadFile(pathOf(s, next))
		if err != nil {
			t.Fatal(err)
		}
		crashed[next] = file
		end(w)
	}
	sealed()
	s.halt(t)
	for id, file := range crashed {
		if err := os.WriteFile(pathOf(s, id), file, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = start(t, cfg)
	s.awaitReady(t)
	for ; next <= 20; next++ {
		end(write(next, 1, 300_000))
	}
	for ; next <= 30; next++ {
		end(write(next, 50, 2000))
	}
	for ; next <= 40; next++ { // copies
		data[next] = random(1 + r.IntN(200_000))
		f.holdAll(next, copies2, data[next])
		mustCopy(t, m, s, f.order(next, copies2, len(data[next]), copies2, 0))
	}
	sealed()
	var open []*writer
	for ; next <= 55; next++ {
		open = append(open, write(next, 1+r.IntN(20), 20_000))
	}
	c := dial(t, s)
	for id, want := range data { // so that it is in memory where everything is
		c.mustRead(id, 0, want)
		f.holdAll(id, copies2, want)
	}
	pass := uint64(0)
	scrub := func(found int) {
		t.Helper()
		pass++
		m.order(t, s, &pb.HeartbeatReply{ScrubPass: pass})
		m.until(t, "a pass", func() bool { return m.last.Scrub.GetPass() == pass && m.last.Scrub.Finished })
		m.mu.Lock()
		defer m.mu.Unlock()
		if p := m.last.Scrub; p.Found != uint64(found) || p.Done != p.Total {
			t.Fatalf("found %d, want %d: %v", p.Found, found, p)
		}
	}
	scrub(0)

	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	defer readers.Wait()
	defer stop()
	for range 2 {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(rand.Uint64(), 0))
			for ctx.Err() == nil {
				id := chunk.ID(1 + r.IntN(len(data)))
				off := r.IntN(len(data[id]))
				n := 1 + r.IntN(len(data[id])-off)
				if got, err := c.read(id, uint64(off), n); err == nil && !bytes.Equal(got, data[id][off:off+n]) {
					t.Errorf("chunk %v: a read of %d bytes at %d returned wrong ones", id, n, off)
				}
			}
		})
	}
	kinds := slices.Sorted(maps.Keys(damages))
	for round := range 2 {
		another, err := os.ReadFile(pathOf(s, chunk.ID(11+round)))
		if err != nil {
			t.Fatal(err)
		}
		what := map[chunk.ID]string{}
		for id := chunk.ID(1); id < next; id++ {
			what[id] = kinds[r.IntN(len(kinds))]
			spoil(t, s, r, id, what[id], another)
		}
		scrub(len(data))
		m.until(t, "reports", func() bool { return len(m.corrupt) == len(data) })
		for _, w := range open {
			_ = w.CloseSend() // it failed, or is about to
			_ = w.failure()
		}
		open = nil
		sealed()
		for id, want := range data {
			if _, err := c.read(id, 0, len(want)); err == nil && what[id] == "all zeros" {
				t.Errorf("chunk %v is served", id)
			}
			mustCopy(t, m, s, f.order(id, copies2, len(want), copies2, 0))
			c.mustRead(id, 0, want)
		}
		scrub(0)
		m.update(func() { clear(m.corrupt) })
	}
}

// spoil damages the file of a chunk in place.
func spoil(t *testing.T, s *running, r *rand.Rand, id chunk.ID, kind string, another []byte) {
	t.Helper()
	path := pathOf(s, id)
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, _ := s.store.disks[0].Held(id)
	var tail []byte
	if h.Writing {
		n := len(bytes.TrimRight(file, "\x00"))
		file, tail = file[:n:n], file[n:]
	}
	was := bytes.Clone(file)
	spoilt := damages[kind](r, file, another, h.Writing)
	if bytes.Equal(spoilt, was) { // such a part already, or the chunk itself
		spoilt = was[:len(was)/2]
	}
	switch {
	case spoilt == nil:
		err = os.Remove(path)
	case len(spoilt) == len(was):
		err = os.WriteFile(path, append(spoilt, tail...), 0o600)
	default:
		err = os.WriteFile(path, spoilt, 0o600)
	}
	if err != nil {
		t.Fatal(errors.Join(fmt.Errorf("chunk %v: %s", id, kind), err))
	}
}
