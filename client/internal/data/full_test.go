package data

import (
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/fserr"
)

func TestFullCluster(t *testing.T) {
	for name, fill := range map[string]func(x *fixture){
		"no chunks": func(x *fixture) {
			x.meta.with(func(m *fakeMeta) { m.allocErr = fserr.New(syscall.ENOSPC, "full") })
		},
		"full disks": func(x *fixture) {
			for _, s := range x.servers {
				s.set(func(s *fakeServer) { s.full = true })
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newFixture(t, 3, 3, 2)
			fill(x)
			f := x.file()
			mustWrite(t, f, pattern(100_000, 3), 0)
			if err := f.Commit(x.ctx(), false); !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			checkContent(t, f, nil)
			mustClose(t, f) // said once
		})
	}
}

// TestManyFullServers: that many disks are full is no reason to give up while others have room.
func TestManyFullServers(t *testing.T) {
	x := newFixture(t, 24, 3, 2)
	for _, s := range x.servers[:21] {
		s.set(func(s *fakeServer) { s.full = true })
	}
	f := x.file()
	want := pattern(3<<20, 3)
	mustWrite(t, f, want, 0)
	mustCommit(t, f, true)
	checkContent(t, f, want)
	mustClose(t, f)
}

// TestSpareChunksOfFewServers: chunks that were allocated while servers were away are not what is written to when they are back.
func TestSpareChunksOfFewServers(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	x.meta.with(func(m *fakeMeta) { m.down[3] = true })
	w, f := x.store.writer, x.file()
	mustWrite(t, f, pattern(50_000, 1), 0)
	mustCommit(t, f, true)
	eventually(t, "there are chunks in reserve", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, p := range w.pools {
			if len(p.spare) > 0 {
				for _, c := range p.spare {
					c.made = c.made.Add(-time.Minute)
				}
				for _, c := range slices.Clone(p.shared) {
					c.close() // it is full
				}
				return true
			}
		}
		return false
	})
	x.meta.with(func(m *fakeMeta) { clear(m.down) })
	g := x.file()
	mustWrite(t, g, pattern(50_000, 2), 0)
	mustCommit(t, g, true)
	if got := x.recorded(g); len(got) != 1 || len(got[0]) != 3 {
		t.Errorf("on %v", got)
	}
	mustClose(t, f)
	mustClose(t, g)
}
