package data

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// onlyLags has targets be given up for nothing but holding up others.
func onlyLags(c *StoreConfig) {
	c.StallTimeout, c.LagTimeout, c.SyncAfter = time.Hour, patience*50*time.Millisecond, 100*time.Millisecond
}

// TestLaggardIsPassedOver: one server that does not answer holds up neither fsync nor close where enough others have the data.
func TestLaggardIsPassedOver(t *testing.T) {
	t.Parallel()
	faults := map[string]func(*fakeServer){
		"silent":              func(s *fakeServer) { s.stall = true },
		"with a slow disk":    func(s *fakeServer) { s.stallSync = true },
		"silent as it begins": func(s *fakeServer) { s.stallFirst = true },
	}
	for _, policy := range []string{"replicas=3", "replicas=4,min-copies=2", "ec=4+2"} {
		for name, fault := range faults {
			for _, durable := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, durable %v", policy, name, durable), func(t *testing.T) {
					x := newCodedFixture(t, 6, policy, onlyLags)
					x.servers[1].set(fault)
					f := x.file()
					var want []byte
					for i := range 3 {
						p := pattern(300_000, uint64(i))
						mustWrite(t, f, p, int64(len(want)))
						want = append(want, p...)
						mustCommit(t, f, durable)
					}
					for _, s := range x.servers {
						if s.id != 2 && durable {
							s.losePower(nil)
						}
					}
					checkContent(t, x.second().open(f.inode), want)
					x.servers[1].heal()
					x.safe(f, want)
					mustClose(t, f)
					x.memoryGivenBack()
				})
			}
		}
	}
}

// TestLaggardsBelowMinimum: that servers are slow makes nobody promise more than is so.
func TestLaggardsBelowMinimum(t *testing.T) {
	x := newFixture(t, 3, 3, 2, onlyLags)
	for _, s := range x.servers[1:] {
		s.set(func(s *fakeServer) { s.stall = true })
	}
	f := x.file()
	want := pattern(100_000, 1)
	mustWrite(t, f, want, 0)
	done := make(chan error, 1)
	go func() { done <- f.Commit(x.ctx(), true) }()
	w := x.store.writer
	eventually(t, "they have been silent for long", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		silent := 0
		for c := range w.chunks {
			for _, tg := range c.targets {
				if tg.live && !tg.late && tg.stalled(time.Now()) > 4*x.store.cfg.LagTimeout {
					silent++
				}
			}
		}
		return silent == 2
	})
	select {
	case err := <-done:
		t.Fatalf("one disk of the two that there must be has it: %v", err)
	default:
	}
	x.servers[1].heal() // two have it
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	x.servers[2].heal()
	x.safe(f, want)
	mustClose(t, f)
}

// onlyTwoOfThree is a fixture whose third server does not answer, and a file that is committed on the other two.
func onlyTwoOfThree(t *testing.T, servers int) (*fixture, *File, []byte) {
	x := newFixture(t, servers, 3, 2, onlyLags)
	x.servers[2].set(func(s *fakeServer) { s.stall = true })
	f := x.file()
	want := pattern(100_000, 1)
	mustWrite(t, f, want, 0)
	mustCommit(t, f, true)
	return x, f, want
}

// TestLaggardThatGetsThere is named as a holder in the end, as if it had never been slow.
func TestLaggardThatGetsThere(t *testing.T) {
	x, f, want := onlyTwoOfThree(t, 3)
	if got := x.recorded(f); len(got) != 1 || slices.Contains(got[0], 3) {
		t.Fatalf("committed on %v", got)
	}
	x.servers[2].heal()
	eventually(t, "it is recorded", func() bool { return slices.Contains(x.recorded(f)[0], 3) })
	x.safe(f, want)
	mustClose(t, f)
}

// TestLaggardThatFails leaves the chunk to the others.
func TestLaggardThatFails(t *testing.T) {
	x, f, want := onlyTwoOfThree(t, 4)
	for i := range 3 { // in chunks on it and on others
		p := pattern(100_000, uint64(i))
		mustWrite(t, f, p, int64(len(want)))
		want = append(want, p...)
		mustCommit(t, f, true)
	}
	x.servers[2].losePower(nil)
	x.safe(f, want)
	x.meta.with(func(m *fakeMeta) { m.onCommit = func(*pb.Commit) error { t.Error("committed again"); return nil } })
	mustCommit(t, f, true)
	mustClose(t, f)
	eventually(t, "the chunk is given up", func() bool {
		w := x.store.writer
		w.mu.Lock()
		defer w.mu.Unlock()
		for c := range w.chunks {
			for _, tg := range c.targets {
				if tg.late {
					return false
				}
			}
		}
		return true
	})
}

// TestLaggardsInDifferentThings: of two of which each lacks what the other one has only one can be gone on without.
func TestLaggardsInDifferentThings(t *testing.T) {
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) { c.StallTimeout, c.LagTimeout = time.Hour, time.Hour })
	for _, s := range x.servers {
		s.set(func(s *fakeServer) { s.stall = true })
	}
	f := x.file()
	want := pattern(100_000, 1)
	mustWrite(t, f, want, 0)
	f.flush()
	w := x.store.writer
	sent := func() (c *openChunk) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for o := range w.chunks {
			if len(o.queue) == 1 && !slices.ContainsFunc(o.targets, func(tg *target) bool { return tg.sent == 0 }) {
				c = o
			}
		}
		return c
	}
	eventually(t, "it is sent", func() bool { return sent() != nil })
	c := sent()
	w.mu.Lock()
	for i, m := range []mark{{100_000, 0}, {50_000, 50_000}, {100_000, 100_000}} {
		c.targets[i].received, c.targets[i].durable = m.received, m.durable
	}
	c.awaited, c.wanted = 100_000, 50_000
	now := time.Now()
	w.passLaggards(now)
	w.passLaggards(now.Add(3 * time.Hour))
	if live := c.live(); live != 2 {
		t.Errorf("%d are left", live)
	}
	w.mu.Unlock()
	for _, s := range x.servers {
		s.heal()
	}
	mustCommit(t, f, true)
	x.safe(f, want)
	mustClose(t, f)
}

// TestLaggardsAgainstModel does random operations on a file while a server is slow in some way, others are drained, and all or some
// lose power: no operation may fail, and no byte may be wrong, in this client at any time and in another one after every commit.
func TestLaggardsAgainstModel(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"replicas=3", "ec=4+2"} {
		t.Run(policy, func(t *testing.T) {
			x := newCodedFixture(t, 9, policy, func(c *StoreConfig) {
				c.CommitAfter, c.StallTimeout, c.LagTimeout, c.SyncAfter = 10*time.Millisecond, patience*100*time.Millisecond, 5*time.Millisecond, 20*time.Millisecond
				c.ReadTimeout, c.CacheBytes, c.Memory = 100*time.Millisecond, 2<<20, 8<<20
			})
			other := x.second()
			rapid.Check(t, func(t *rapid.T) {
				m := &model{x: x, other: other, f: x.file()}
				ops := x.troubles()
				maps.Copy(ops, map[string]func(*rapid.T){
					"write": m.write, "append": m.append, "truncate": m.truncate, "read": m.read, "commit": m.commit, "reopen": m.reopen,
				})
				t.Repeat(ops)
				m.check(t)
				m.must(t, m.f.Commit(m.ctx(t), true))
				x.healAll()
				x.losePower()
				m.reopen(t)
				x.store.reader.cache.clear()
				m.check(t)
				m.must(t, m.f.Close(m.ctx(t)))
				x.meta.with(func(m *fakeMeta) { clear(m.leaving) })
			})
			x.memoryGivenBack()
			if value(t, x.store.metrics.late) == 0 {
				t.Error("none was late")
			}
		})
	}
}

// TestCloseOfStoreWithLaggard: that data is on the disks of enough servers does not depend on the one that is slow, nor does that
// metadata is told.
func TestCloseOfStoreWithLaggard(t *testing.T) {
	var log strings.Builder
	x := newFixture(t, 3, 3, 2, onlyLags, func(c *StoreConfig) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))
		c.ClosePatience = time.Minute // after which it would log that it waited in vain
	})
	f := x.file()
	want := pattern(100_000, 1)
	mustWrite(t, f, want, 0)
	x.servers[2].set(func(s *fakeServer) { s.stallSync = true })
	mustClose(t, f)
	if err := x.store.Close(); err != nil || log.Len() > 0 {
		t.Fatal(err, log.String())
	}
	x.meta.with(func(m *fakeMeta) {
		for id, rec := range m.chunks {
			if rec.owner != 0 {
				t.Errorf("chunk %v is not sealed", id)
			}
		}
	})
	x.losePower()
	y := x.second()
	checkContent(t, y.open(f.inode), want)
}

// TestCloseOfStoreAfterLaggard: nor does it where the slow one was passed over before.
func TestCloseOfStoreAfterLaggard(t *testing.T) {
	var log strings.Builder
	x := newFixture(t, 3, 3, 2, onlyLags, func(c *StoreConfig) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))
		c.ClosePatience = time.Minute // after which it would log that it waited in vain
	})
	f := x.file()
	want := pattern(100_000, 1)
	mustWrite(t, f, want, 0)
	x.servers[2].set(func(s *fakeServer) { s.stallSync = true })
	mustCommit(t, f, true)
	mustClose(t, f)
	w := x.store.writer
	eventually(t, "the others are done", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		late := false
		for c := range w.chunks {
			for _, tg := range c.targets {
				if late = late || tg.late; !tg.late && tg.started && !tg.finished {
					return false
				}
			}
		}
		return late
	})
	if err := x.store.Close(); err != nil || log.Len() > 0 {
		t.Fatal(err, log.String())
	}
	x.meta.with(func(m *fakeMeta) {
		for id, rec := range m.chunks {
			if rec.owner != 0 {
				t.Errorf("chunk %v is not sealed", id)
			}
		}
	})
	checkContent(t, x.second().open(f.inode), want)
}
