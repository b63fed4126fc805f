package data

import (
	"context"
	"errors"
	"fmt"
	"github.com/shoalfs/shoalfs/internal/chunk"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// model is what a file must look like: to this client, and, committed, to everyone.
type model struct {
	x      *fixture
	other  *fixture // another client of the same cluster
	f      *File
	view   []byte
	seed   uint64
	faults int // servers that may fail at once
	faulty []*fakeServer
}

const modelMax = 3 << 20

// TestFileAgainstModel does random operations on a file while a server at a time, of codes as many as have parity, fail in
// random ways: no operation may fail, and no byte may be wrong, in this client at any time and in another one after every
// commit.
func TestFileAgainstModel(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		servers, faults int
		policies        []string
	}{
		{3, 1, nil},
		{4, 1, nil},
		{6, 2, []string{"ec=4+2"}},
		{9, 2, []string{"ec=4+2", "ec=3+2", "ec=2+3", "", "replicas=4"}},
	} {
		t.Run(fmt.Sprintf("%d servers %s", tc.servers, strings.Join(tc.policies, " ")), func(t *testing.T) {
			x := newFixture(t, tc.servers, 3, 2, func(c *StoreConfig) {
				c.StallTimeout, c.ReadTimeout, c.CacheBytes = patience*100*time.Millisecond, 20*time.Millisecond, 2<<20
			})
			other := &fixture{t: t, meta: x.meta, pool: x.pool}
			var err error
			cfg := x.store.cfg
			cfg.CacheBytes = -1
			if other.store, err = NewStore(cfg); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = other.store.Close() })
			policies := []chunk.Layout{{}}
			for i, s := range tc.policies {
				policies = append(policies[:i], chunk.Layout{})
				if s == "" {
					continue
				}
				if policies[i], err = chunk.ParseLayout(s); err != nil {
					t.Fatal(err)
				}
			}
			rapid.Check(t, func(t *rapid.T) {
				x.layout = policies[0]
				m := &model{x: x, other: other, f: x.file(), faults: tc.faults}
				defer m.heal()
				ops := map[string]func(*rapid.T){
					"write":    m.write,
					"rewrite":  m.write,
					"append":   m.append,
					"truncate": m.truncate,
					"read":     m.read,
					"commit":   m.commit,
					"reopen":   m.reopen,
					"fault":    m.fault,
					"":         func(*rapid.T) {},
				}
				if len(policies) > 1 {
					ops["policy"] = func(t *rapid.T) {
						m.f.Observe(x.meta.setLayout(m.f.inode, rapid.SampledFrom(policies).Draw(t, "policy")))
					}
				}
				t.Repeat(ops)
				m.check(t)
				m.reopen(t)
				m.check(t)
				m.must(t, m.f.Close(m.ctx(t)))
				m.heal()
				x.purge()
			})
		})
	}
}

func (m *model) ctx(t *rapid.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func (m *model) must(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (m *model) bytes(t *rapid.T) []byte {
	m.seed++
	n := rapid.OneOf(rapid.IntRange(1, 100), rapid.IntRange(1, 10_000), rapid.IntRange(60_000, 70_000), rapid.IntRange(1<<20-10, 1<<20+10)).Draw(t, "length")
	return pattern(n, m.seed)
}

func (m *model) set(p []byte, off int) {
	if need := off + len(p); need > len(m.view) {
		m.view = append(m.view, make([]byte, need-len(m.view))...)
	}
	copy(m.view[off:], p)
}

func (m *model) write(t *rapid.T) {
	p := m.bytes(t)
	off := rapid.OneOf(rapid.IntRange(0, 5000), rapid.IntRange(0, modelMax)).Draw(t, "offset")
	n, err := m.f.WriteAt(m.ctx(t), p, int64(off))
	m.must(t, err)
	if n != len(p) {
		t.Fatalf("wrote %d of %d bytes", n, len(p))
	}
	m.set(p, off)
}

func (m *model) append(t *rapid.T) {
	if len(m.view) > modelMax {
		return
	}
	p := m.bytes(t)
	_, err := m.f.Append(m.ctx(t), p)
	m.must(t, err)
	m.set(p, len(m.view))
}

func (m *model) truncate(t *rapid.T) {
	size := rapid.OneOf(rapid.IntRange(0, 5000), rapid.IntRange(0, modelMax)).Draw(t, "size")
	m.must(t, m.f.Truncate(m.ctx(t), func(context.Context) (*pb.Attr, error) {
		return m.x.meta.setSize(m.f.inode, uint64(size)), nil
	}))
	if size < len(m.view) {
		m.view = m.view[:size:size]
	} else {
		m.set(nil, size)
	}
}

func (m *model) commit(t *rapid.T) {
	durable := rapid.Bool().Draw(t, "durable")
	err := m.f.Commit(m.ctx(t), durable)
	if errors.Is(err, syscall.EIO) && durable && m.surprised() { // no disk has it for certain, which the next sync does not say again
		err = m.f.Commit(m.ctx(t), durable)
	}
	m.must(t, err)
	if m.f.Dirty() {
		t.Fatal("dirty after a commit")
	}
	f := m.other.open(m.f.inode)
	m.checkFile(t, f, 0, len(m.view)+1)
	m.must(t, f.Close(m.ctx(t)))
}

func (m *model) reopen(t *rapid.T) {
	m.must(t, m.f.Close(m.ctx(t)))
	m.f = m.x.open(m.f.inode)
}

func (m *model) read(t *rapid.T) {
	off := rapid.IntRange(0, len(m.view)).Draw(t, "offset")
	m.checkFile(t, m.f, off, rapid.IntRange(1, 200_000).Draw(t, "length"))
}

func (m *model) check(t *rapid.T) { m.checkFile(t, m.f, 0, len(m.view)+1) }

func (m *model) checkFile(t *rapid.T, f *File, off, length int) {
	if got := f.Size(); got != uint64(len(m.view)) {
		t.Fatalf("the size is %d, want %d", got, len(m.view))
	}
	p := pattern(length, 99)
	ctx, cancel := context.WithTimeout(m.ctx(t), 10*time.Second)
	defer cancel()
	n, err := f.ReadAt(ctx, p, int64(off))
	if errors.Is(err, context.DeadlineExceeded) && m.surprised() {
		m.heal()
		n, err = f.ReadAt(m.ctx(t), p, int64(off))
	}
	want := m.view[off:min(len(m.view), off+length)]
	if n != len(want) || (n < length) != errors.Is(err, io.EOF) || err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("read %d bytes at %d of %d: %d, %v", length, off, len(m.view), n, err)
	}
	if i := difference(p[:n], want); i >= 0 {
		t.Fatalf("read %d bytes at %d: the first difference is at %d", length, off, off+i)
	}
}

func (m *model) heal() {
	for _, s := range m.faulty {
		s.heal()
	}
	m.faulty = nil
	m.x.meta.with(func(x *fakeMeta) { clear(x.down) })
	m.x.forgive() // else chunks are placed on so few servers that they bear no failure
	m.other.forgive()
}

// surprised tells whether a server that nothing is wrong with was given up: this machine was so busy that it seemed to stall.
// Then more are down than there is parity for.
func (m *model) surprised() bool {
	h := m.x.store.health
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, s := range h.servers {
		if s.failures > 0 && !slices.Contains(m.faulty, m.x.servers[id-1]) {
			return true
		}
	}
	return false
}

// fault heals the servers that fail and has others fail in some way.
func (m *model) fault(t *rapid.T) {
	m.heal()
	// So many at a time: what the last failures set going comes to its end first, and what they cost is made good.
	m.must(t, m.f.Commit(m.ctx(t), false))
	w := m.x.store.writer
	w.mu.Lock()
	for c := range w.chunks {
		if len(c.targets) < c.layout.Width() { // it can bear less than what is to come
			c.close()
		}
	}
	w.mu.Unlock()
	eventually(m.x.t, "chunks that are closing are closed", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for c := range w.chunks {
			if c.closing && slices.ContainsFunc(c.targets, func(t *target) bool { return t.live && t.started && !t.finished }) {
				return false
			}
		}
		return len(w.sealing) == 0
	})
	m.x.repair(t)
	for range rapid.IntRange(0, m.faults).Draw(t, "faults") {
		m.failOne(t)
	}
}

func (m *model) failOne(t *rapid.T) {
	s := m.x.servers[rapid.IntRange(0, len(m.x.servers)-1).Draw(t, "server")]
	m.faulty = append(m.faulty, s)
	if rapid.Bool().Draw(t, "noticed") || len(m.x.servers) < 7 && m.faults > 1 {
		m.x.meta.with(func(x *fakeMeta) { x.down[s.id] = true })
	}
	switch rapid.IntRange(0, 9).Draw(t, "fault") {
	case 0:
		s.set(func(s *fakeServer) { s.stall = true })
	case 1:
		s.set(func(s *fakeServer) { s.stallRead = true })
	case 2, 3:
		after := rapid.IntRange(0, 5).Draw(t, "after")
		s.set(func(s *fakeServer) { s.failAfter = after })
	case 4:
		s.set(func(s *fakeServer) { s.full = true })
	case 5, 6:
		s.set(func(s *fakeServer) { s.down = true })
	case 7:
		s.set(func(s *fakeServer) { s.corrupt = true })
	case 8:
		s.set(func(s *fakeServer) { s.amnesia = true })
	case 9:
		s.set(func(s *fakeServer) { s.partial = true })
	}
}

// purge forgets all sealed chunks: no file of them is used any more.
func (x *fixture) purge() {
	x.meta.mu.Lock()
	defer x.meta.mu.Unlock()
	for id, rec := range x.meta.chunks {
		if rec.owner != 0 {
			continue
		}
		delete(x.meta.chunks, id)
		for i, target := range rec.targets {
			if target != 0 {
				x.servers[target-1].set(func(s *fakeServer) { delete(s.chunks, id.Stored(rec.layout, i)) })
			}
		}
	}
}

// repair makes the shards of sealed chunks that servers missed.
func (x *fixture) repair(t *rapid.T) {
	x.meta.mu.Lock()
	defer x.meta.mu.Unlock()
	for id, rec := range x.meta.chunks {
		if rec.owner != 0 || rec.length == 0 || !slices.Contains(rec.servers, 0) {
			continue
		}
		l := rec.layout
		shards, wanted := make([][]byte, l.Width()), make([]bool, l.Width())
		for i, s := range rec.servers {
			if wanted[i] = s == 0; s != 0 {
				x.servers[s-1].set(func(s *fakeServer) {
					if b := s.chunks[id.Stored(l, i)]; uint64(len(b)) >= l.ShardLength(rec.length) {
						shards[i] = b[:l.ShardLength(rec.length)]
					}
				})
			}
		}
		if err := l.Rebuild(shards, wanted); err != nil {
			t.Fatalf("repair chunk %v of %v, on %d: %v", id, l, rec.servers, err)
		}
		for i, want := range wanted {
			if want {
				for _, s := range x.servers {
					if rec.targets[i] == 0 && !slices.Contains(rec.targets, uint32(s.id)) {
						rec.targets[i] = uint32(s.id)
					}
				}
				rec.servers[i] = rec.targets[i]
				x.servers[rec.targets[i]-1].set(func(s *fakeServer) { s.chunks[id.Stored(l, i)] = shards[i] })
			}
		}
	}
}

func (x *fixture) healAll() {
	for _, s := range x.servers {
		s.heal()
	}
}

// troubles are what servers do in random tests that no operation may fail for: one is slow, some are drained, all lose power.
func (x *fixture) troubles() map[string]func(*rapid.T) {
	server := func(t *rapid.T) *fakeServer { return x.servers[rapid.IntRange(0, len(x.servers)-1).Draw(t, "server")] }
	return map[string]func(*rapid.T){
		"slow": func(t *rapid.T) {
			x.healAll()
			how := rapid.IntRange(0, 3).Draw(t, "how")
			server(t).set(func(s *fakeServer) { s.stall, s.stallSync, s.stallFirst = how == 1, how == 2, how == 3 })
		},
		"drain": func(t *rapid.T) {
			a, b := server(t), server(t)
			on := rapid.Bool().Draw(t, "on")
			x.meta.with(func(m *fakeMeta) {
				clear(m.leaving)
				m.leaving[a.id], m.leaving[b.id] = on, on
			})
		},
		"power": func(t *rapid.T) {
			for _, s := range x.servers {
				if rapid.Bool().Draw(t, "survives") {
					s.losePower(func(n int) int { return rand.IntN(n + 1) })
				} else {
					s.losePower(nil)
				}
			}
		},
		"": func(*rapid.T) {},
	}
}
