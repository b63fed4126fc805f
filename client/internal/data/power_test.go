package data

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoalfs/shoalfs/internal/fserr"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// losePower has all servers lose power at once.
func (x *fixture) losePower() {
	for _, s := range x.servers {
		s.losePower(nil)
	}
}

// second is another client of the same cluster.
func (x *fixture) second() *fixture {
	y := &fixture{t: x.t, meta: x.meta, pool: x.pool}
	cfg := x.store.cfg
	cfg.CacheBytes = -1
	var err error
	if y.store, err = NewStore(cfg); err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { _ = y.store.Close() })
	return y
}

// safe waits until no server needs this client any more, and checks that a file is all there after a loss of power.
func (x *fixture) safe(f *File, want []byte) {
	x.t.Helper()
	eventually(x.t, "everything is on disk", func() bool {
		w := x.store.writer
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.unsynced) == 0
	})
	x.losePower()
	x.store.reader.cache.clear()
	checkContent(x.t, f, want)
	x.meta.with(func(m *fakeMeta) {
		for _, r := range m.reports {
			if strings.Contains(r, "is cut") {
				x.t.Error(r)
			}
		}
	})
}

// TestPowerLoss has all servers lose power between any two steps of a write.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"replicas=3", "ec=4+2"} {
		steps := map[string]func(*fixture, *File, []byte){
			"after it was received": func(x *fixture, f *File, want []byte) {
				f.flush()
				x.settled(f)
				x.losePower()
				mustCommit(x.t, f, false)
			},
			"before its commit is answered": func(x *fixture, f *File, want []byte) {
				x.meta.with(func(m *fakeMeta) {
					m.onCommit = func(*pb.Commit) error {
						m.with(func(m *fakeMeta) { m.onCommit = nil })
						x.losePower()
						return nil
					}
				})
				mustCommit(x.t, f, false)
			},
			"after its commit": func(x *fixture, f *File, want []byte) {
				mustCommit(x.t, f, false)
				x.losePower()
			},
			"after an older part was synced": func(x *fixture, f *File, want []byte) {
				mustCommit(x.t, f, true)
				copy(want, pattern(70_000, 9))
				mustWrite(x.t, f, want[:70_000], 0)
				mustCommit(x.t, f, false)
				x.losePower()
			},
			"again and again": func(x *fixture, f *File, want []byte) {
				mustCommit(x.t, f, false)
				for range 5 {
					x.losePower()
					time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
				}
			},
			"while it is relocated": func(x *fixture, f *File, want []byte) {
				var n atomic.Int32
				x.meta.with(func(m *fakeMeta) {
					m.onRelocate = func(*pb.Relocate) error {
						if n.Add(1) < 4 {
							x.losePower()
						}
						return nil
					}
				})
				mustCommit(x.t, f, false)
				x.losePower()
			},
			"while relocation fails": func(x *fixture, f *File, want []byte) {
				var n atomic.Int32
				x.meta.with(func(m *fakeMeta) {
					m.onRelocate = func(*pb.Relocate) error {
						switch n.Add(1) {
						case 1, 2:
							x.losePower()
							return fserr.New(syscall.EINVAL, "sealed by repair")
						case 3:
							return context.DeadlineExceeded
						}
						return nil
					}
				})
				mustCommit(x.t, f, false)
				x.losePower()
			},
			"with the session": func(x *fixture, f *File, want []byte) {
				mustCommit(x.t, f, false)
				x.meta.loseSession()
				x.losePower()
			},
			"then the session": func(x *fixture, f *File, want []byte) {
				var n atomic.Int32
				x.meta.with(func(m *fakeMeta) {
					m.onRelocate = func(*pb.Relocate) error {
						if n.Add(1) == 1 {
							x.meta.loseSession()
						}
						return nil
					}
				})
				mustCommit(x.t, f, false)
				x.losePower()
			},
		}
		for name, step := range steps {
			for _, sync := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s, sync %v", policy, name, sync), func(t *testing.T) {
					x := newCodedFixture(t, 7, policy, func(c *StoreConfig) { c.SyncAfter = 200 * time.Millisecond })
					other := x.second()
					f := x.file()
					want := pattern(1<<20+300_000, 1)
					mustWrite(t, f, want, 0)
					step(x, f, want)
					if strings.Contains(name, "session") { // nobody else knows that somebody may have it
						checkContent(t, f, want)
					}
					g := other.open(f.inode)
					checkContent(t, g, want)
					mustClose(t, g)
					checkContent(t, f, want)
					if sync {
						mustCommit(t, f, true)
						x.losePower()
					}
					x.safe(f, want)
					mustClose(t, f)
					x.memoryGivenBack()
					eventually(t, "nothing is pending", func() bool { return x.quiet() })
				})
			}
		}
	}
}

// settled waits until the frames of the last generation of a file are.
func (x *fixture) settled(f *File) {
	x.t.Helper()
	eventually(x.t, "it is settled", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		w := x.store.writer
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, fr := range f.gens[len(f.gens)-1].frames {
			if !fr.settled {
				return false
			}
		}
		return true
	})
}

// quiet tells whether no chunk is lost that is not given up, and no cut was refused.
func (x *fixture) quiet() bool {
	w := x.store.writer
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.chunks {
		if c.lost {
			return false
		}
	}
	return len(w.sealing) == 0
}

// TestPowerLossAgainstModel does random operations on a file while servers lose power, some or all at once: no operation may fail,
// and no byte may be wrong, in this client at any time and in another one after every commit.
func TestPowerLossAgainstModel(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"replicas=3", "ec=4+2"} {
		t.Run(policy, func(t *testing.T) {
			x := newCodedFixture(t, 7, policy, func(c *StoreConfig) {
				c.ReadTimeout, c.CacheBytes, c.SyncAfter, c.Memory = 100*time.Millisecond, 2<<20, 50*time.Millisecond, 8<<20
			})
			other := x.second()
			rapid.Check(t, func(t *rapid.T) {
				m := &model{x: x, other: other, f: x.file()}
				power := func(t *rapid.T) {
					survive := rapid.Bool().Draw(t, "some survives")
					for _, s := range x.servers {
						if rapid.IntRange(0, 3).Draw(t, "spared") == 0 {
							continue
						}
						if !survive {
							s.losePower(nil)
							continue
						}
						s.losePower(func(n int) int { return rand.IntN(n + 1) })
					}
				}
				t.Repeat(map[string]func(*rapid.T){
					"write": m.write, "append": m.append, "truncate": m.truncate, "read": m.read, "commit": m.commit, "reopen": m.reopen,
					"power of some": power, "power": func(*rapid.T) { x.losePower() }, "": func(*rapid.T) {},
				})
				m.check(t)
				m.must(t, m.f.Commit(m.ctx(t), true))
				x.losePower()
				m.reopen(t)
				x.store.reader.cache.clear()
				m.check(t)
				m.must(t, m.f.Close(m.ctx(t)))
				if used := x.store.buffers.budget.used(); used > 8<<20 {
					t.Fatalf("%d bytes in memory", used)
				}
			})
			x.memoryGivenBack()
			x.meta.with(func(m *fakeMeta) {
				if m.relocations == 0 || m.cuts == 0 {
					t.Errorf("%d relocations, %d cuts", m.relocations, m.cuts)
				}
			})
		})
	}
}

// TestRetainedMemory: what is kept until it is on disk is bounded, and so is for how long.
func TestRetainedMemory(t *testing.T) {
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) { c.Memory, c.SyncAfter = 8<<20, 50*time.Millisecond })
	var files []*File
	for i := range 40 {
		f := x.file()
		mustWrite(t, f, pattern(1<<20, uint64(i)), 0)
		mustCommit(t, f, false)
		if used := x.store.buffers.budget.used(); used > 8<<20 {
			t.Fatalf("%d bytes in memory", used)
		}
		files = append(files, f)
	}
	x.memoryGivenBack()
	for i, f := range files {
		checkContent(t, f, pattern(1<<20, uint64(i)))
		mustClose(t, f)
	}
}

// TestCloseOfStoreWaitsForDisks: what was closed is on disk once the store is.
func TestCloseOfStoreWaitsForDisks(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	want := pattern(100_000, 1)
	f := x.file()
	mustWrite(t, f, want, 0)
	mustClose(t, f)
	if err := x.store.Close(); err != nil {
		t.Fatal(err)
	}
	x.losePower()
	y := x.second()
	checkContent(t, y.open(f.inode), want)
}

// TestPowerLossAfterUnknownCommit: a chunk is not cut below what a commit names that was made though its answer was an error.
func TestPowerLossAfterUnknownCommit(t *testing.T) {
	h := new(hooked)
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) {
		h.fakeMeta, c.SyncAfter = c.Meta.(*fakeMeta), time.Hour
		c.Meta = h
	})
	f, g := x.file(), x.file()
	want := pattern(100_000, 1)
	mustWrite(t, f, want, 0)
	mustCommit(t, f, false)
	mustWrite(t, g, want, 0)
	h.lostAnswer = errors.New("resource exhausted")
	if err := g.Commit(x.ctx(), false); !errors.Is(err, h.lostAnswer) {
		t.Fatal(err)
	}
	h.lostAnswer = nil
	x.losePower()
	mustCommit(t, f, true)
	x.safe(f, want)
	mustClose(t, f)
	mustClose(t, g)
	eventually(t, "nothing is pending", x.quiet)
	x.safe(f, want)
}
