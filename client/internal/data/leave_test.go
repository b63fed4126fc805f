package data

import (
	"slices"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// openOn tells whether a chunk of which metadata knows a writer is placed on a server.
func (x *fixture) openOn(id chunk.ServerID) (open bool) {
	x.meta.with(func(m *fakeMeta) {
		for _, rec := range m.chunks {
			open = open || rec.owner != 0 && slices.Contains(rec.targets, uint32(id))
		}
	})
	return open
}

// TestDrainOfIdleClient: chunks that a client has in reserve, or writes now and then, do not hold up a drain.
func TestDrainOfIdleClient(t *testing.T) {
	for _, policy := range []string{"replicas=3", "ec=2+1"} {
		t.Run(policy, func(t *testing.T) {
			x := newCodedFixture(t, 5, policy)
			f := x.file()
			want := pattern(100_000, 1)
			mustWrite(t, f, want, 0)
			mustCommit(t, f, true)
			if !x.openOn(1) {
				t.Fatal("there is nothing to give up")
			}
			x.meta.with(func(m *fakeMeta) { m.leaving[1] = true })
			eventually(t, "nothing is open on the server", func() bool { return !x.openOn(1) })
			x.servers[0].set(func(s *fakeServer) { s.down = true })
			want = append(want, pattern(100_000, 2)...)
			mustWrite(t, f, want[100_000:], 100_000)
			mustCommit(t, f, true)
			checkContent(t, f, want)
			if x.openOn(1) {
				t.Error("it got something new")
			}
			mustClose(t, f)
		})
	}
}

// TestDrainUnderWriter: what was written and not committed is on servers that are drained one after the other, which then delete it.
func TestDrainUnderWriter(t *testing.T) {
	for _, policy := range []string{"replicas=3", "ec=4+2"} {
		t.Run(policy, func(t *testing.T) {
			x := newCodedFixture(t, 14, policy)
			f := x.file()
			want := pattern(4<<20, 1)
			mustWrite(t, f, want, 0)
			w := x.store.writer
			var used []chunk.ServerID
			eventually(t, "it is on disk, and not in memory any more", func() bool {
				w.bringAll()
				f.mu.Lock()
				defer f.mu.Unlock()
				w.mu.Lock()
				defer w.mu.Unlock()
				used = nil
				for _, fr := range f.gens[0].frames {
					if !fr.durable {
						return false
					}
					for _, tg := range fr.chunk.targets {
						used = append(used, tg.server)
					}
				}
				return true
			})
			slices.Sort(used)
			for _, id := range slices.Compact(used) {
				x.meta.with(func(m *fakeMeta) { m.leaving[id] = true })
				eventually(t, "enough have it elsewhere", func() bool {
					f.mu.Lock()
					defer f.mu.Unlock()
					w.mu.Lock()
					defer w.mu.Unlock()
					for _, fr := range f.gens[0].frames {
						if fr.chunk == nil || !fr.settled {
							return false
						}
						stay := 0
						for _, tg := range fr.chunk.targets {
							if _, leaves := w.leaving[tg.server]; tg.live && (!leaves || tg.server == id) {
								stay++
							}
						}
						if stay < fr.chunk.minimum {
							return false
						}
					}
					return w.leaving[id].Unix() > 0
				})
				s := x.servers[id-1]
				s.set(func(s *fakeServer) { clear(s.chunks) }) // of the one before all is moved by now
			}
			mustCommit(t, f, true)
			checkContent(t, f, want)
			mustClose(t, f)
			x.memoryGivenBack()
		})
	}
}

// TestChunksOnDeadServers: what is in reserve on a server that is said to be dead is given up, what is being written to it is not:
// this client knows better.
func TestChunksOnDeadServers(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	want := pattern(100_000, 1)
	mustWrite(t, f, want, 0)
	mustCommit(t, f, true)
	w := x.store.writer
	open := func() (started, spare int) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for c := range w.chunks {
			switch {
			case c.closing:
			case c.targets[0].started:
				started++
			case !c.made.After(w.leaving[1]):
				spare++
			}
		}
		return started, spare
	}
	x.meta.with(func(m *fakeMeta) { m.dead = []chunk.ServerID{1, 2, 3} })
	eventually(t, "nothing is in reserve that was there before", func() bool {
		w.mu.Lock()
		known := len(w.leaving) == 3
		w.mu.Unlock()
		_, spare := open()
		return known && spare == 0
	})
	if started, _ := open(); started == 0 {
		t.Error("what was being written is given up")
	}
	mustWrite(t, f, want, 100_000)
	mustCommit(t, f, true)
	checkContent(t, f, append(want, want...))
	mustClose(t, f)
}
