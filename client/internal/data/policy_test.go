package data

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// TestPolicyChange: what is written after a change is stored as the new policy says, and all of it is read.
func TestPolicyChange(t *testing.T) {
	x := newCodedFixture(t, 9, "ec=4+2")
	f := x.file()
	var want []byte
	for i, s := range []string{"", "ec=4+2", "ec=3+2", "replicas=2", "ec=4+2", "ec=2+1", ""} {
		var l chunk.Layout
		if s != "" {
			var err error
			if l, err = chunk.ParseLayout(s); err != nil {
				t.Fatal(err)
			}
		}
		f.Observe(x.meta.setLayout(f.inode, l))
		p := pattern(2<<20+70_000, uint64(i))
		mustWrite(t, f, p, int64(len(want)))
		if i%2 == 0 {
			mustCommit(t, f, i%4 == 0)
		}
		f.mu.Lock()
		for _, g := range f.gens {
			for _, fr := range g.frames[max(0, len(g.frames)-2):] {
				if fr.policy != l {
					t.Errorf("a frame of %v goes where %v do", l, fr.policy)
				}
			}
		}
		f.mu.Unlock()
		eventually(t, "the file writes to chunks of the new policy only", func() bool {
			w := x.store.writer
			w.mu.Lock()
			defer w.mu.Unlock()
			return f.own == nil || f.own.pool.policy() == l
		})
		checkContent(t, f, append(slices.Clone(want), p...))
		want = append(want, p...)
	}
	mustClose(t, f)
	f = x.open(f.inode)
	x.store.reader.cache.clear()
	checkContent(t, f, want)
	seen := map[string]bool{}
	r, err := x.meta.Extents(x.ctx(), f.inode, 0, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Chunks {
		l := chunk.LayoutOf(c.Layout)
		seen[fmt.Sprint(l, " ", l.Cell)] = true
	}
	for _, s := range []string{"replicas=3 0", "replicas=2 0", "ec=4+2 262144", "ec=4+2 1024", "ec=3+2 352256", "ec=3+2 1024", "ec=2+1 524288"} {
		if !seen[s] {
			t.Errorf("no chunk of %s: %v", s, seen)
		}
	}
	mustClose(t, f)
}

// TestCodeFallsBackToCopies: with too few servers for the code, copies are what comes, and it is taken.
func TestCodeFallsBackToCopies(t *testing.T) {
	x := newCodedFixture(t, 6, "ec=4+2", func(c *StoreConfig) { c.IdleTimeout = 30 * time.Millisecond })
	x.meta.with(func(m *fakeMeta) { m.down[1], m.down[2] = true, true })
	f := x.file()
	want := pattern(3<<20+9999, 1)
	mustWrite(t, f, want, 0)
	mustClose(t, f)
	f = x.open(f.inode)
	x.store.reader.cache.clear()
	checkContent(t, f, want)
	if wide, packed, copies := x.codedChunks(f); wide+packed > 0 || copies == 0 {
		t.Errorf("%d wide, %d packed, %d copied chunks", wide, packed, copies)
	}
	x.meta.with(func(m *fakeMeta) { clear(m.down) })
	eventually(t, "the chunks are given up", func() bool { return x.store.writer.stats().chunks == 0 })
	mustWrite(t, f, want, 0)
	mustClose(t, f)
	f = x.open(f.inode)
	x.store.reader.cache.clear()
	checkContent(t, f, want)
	if wide, packed, copies := x.codedChunks(f); wide == 0 || packed == 0 || copies > 0 {
		t.Errorf("%d wide, %d packed, %d copied chunks", wide, packed, copies)
	}
	mustClose(t, f)
}

// TestCopiesAreAStopgap: a file that is written all the time is not stored in copies for longer than need be.
func TestCopiesAreAStopgap(t *testing.T) {
	x := newCodedFixture(t, 6, "ec=4+2")
	x.meta.with(func(m *fakeMeta) { m.down[1], m.down[2] = true, true })
	f := x.file()
	var want []byte
	write := func() {
		t.Helper()
		p := pattern(2<<20+9999, uint64(len(want)))
		mustWrite(t, f, p, int64(len(want)))
		mustCommit(t, f, false)
		want = append(want, p...)
	}
	write()
	x.meta.with(func(m *fakeMeta) { clear(m.down) })
	write()
	if wide, packed, _ := x.codedChunks(f); wide+packed > 0 {
		t.Errorf("%d wide, %d packed chunks while copies are open", wide, packed)
	}
	w := x.store.writer
	w.mu.Lock()
	for c := range w.chunks {
		c.made = c.made.Add(-2 * stopgap)
	}
	w.mu.Unlock()
	write()
	if wide, packed, _ := x.codedChunks(f); wide == 0 || packed == 0 {
		t.Errorf("%d wide, %d packed chunks", wide, packed)
	}
	checkContent(t, f, want)
	mustClose(t, f)
}

// TestOnePolicyWithoutServers: files of a policy that cannot be met wait, others do not.
func TestOnePolicyWithoutServers(t *testing.T) {
	x := newCodedFixture(t, 3, "replicas=5,min-copies=5")
	starved := x.file()
	x.layout = chunk.Layout{}
	fine := x.file()
	want := pattern(100_000, 1)
	mustWrite(t, starved, want, 0)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := starved.Commit(ctx, false); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	mustWrite(t, fine, want, 0)
	mustClose(t, fine)
	for id := chunk.ServerID(4); id <= 5; id++ {
		s := startFakeServer(t, id)
		x.meta.with(func(m *fakeMeta) { m.servers[id] = s.address() })
	}
	mustClose(t, starved)
}

// TestPoolsRetire: a policy that nobody writes with any more leaves nothing behind.
func TestPoolsRetire(t *testing.T) {
	x := newCodedFixture(t, 6, "ec=4+2", func(c *StoreConfig) { c.IdleTimeout = 20 * time.Millisecond })
	for range 2 {
		f := x.file()
		mustWrite(t, f, pattern(1<<20+100_000, 1), 0)
		mustClose(t, f)
		w := x.store.writer
		eventually(t, "all pools are gone", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.pools) == 0
		})
	}
}
