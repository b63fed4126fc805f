package data

import (
	"context"
	"errors"
	"maps"
	"slices"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// TestSessionsAgainstModel does random operations on two files that share chunks while sessions end, commits are refused because
// repair sealed their chunks, relocations fail, servers are slow, drained or lose power. What is not committed when a session ends is
// lost, which is said once; no other operation may fail, and no byte may be wrong. (Other clients may have to wait for what is written
// again, and do not know that it is once the session has ended.)
func TestSessionsAgainstModel(t *testing.T) {
	for _, policy := range []string{"replicas=3", "ec=4+2"} {
		t.Run(policy, func(t *testing.T) {
			x := newCodedFixture(t, 9, policy, func(c *StoreConfig) {
				c.StallTimeout, c.LagTimeout, c.SyncAfter = patience*100*time.Millisecond, 5*time.Millisecond, 20*time.Millisecond
				c.ReadTimeout, c.CacheBytes, c.Memory = 100*time.Millisecond, 2<<20, 8<<20
			})
			refuse := func(commits, relocations int) {
				x.meta.with(func(m *fakeMeta) {
					m.onCommit = func(c *pb.Commit) error {
						m.mu.Lock()
						defer m.mu.Unlock()
						if commits--; commits < 0 || len(c.Chunks) == 0 {
							return nil
						}
						for _, cc := range c.Chunks {
							if rec := m.chunks[chunk.ID(cc.Chunk)]; rec.length > 0 {
								rec.owner = 0 // sealed by repair
							}
						}
						return nil
					}
					m.onRelocate = func(*pb.Relocate) error {
						m.mu.Lock()
						defer m.mu.Unlock()
						if relocations--; relocations < 0 {
							return nil
						}
						if relocations%2 == 0 {
							return context.DeadlineExceeded
						}
						return fserr.New(syscall.EINVAL, "sealed by repair")
					}
				})
			}
			rapid.Check(t, func(t *rapid.T) {
				files := []*model{{x: x, other: x, f: x.file()}, {x: x, other: x, f: x.file(), seed: 1 << 30}}
				committed := make([][]byte, len(files))
				defer refuse(0, 0)
				pick := func(t *rapid.T) (int, *model) {
					i := rapid.IntRange(0, len(files)-1).Draw(t, "file")
					return i, files[i]
				}
				saving := func(fn func(*model, *rapid.T)) func(*rapid.T) {
					return func(t *rapid.T) {
						i, m := pick(t)
						fn(m, t)
						committed[i] = slices.Clone(m.view)
					}
				}
				on := func(fn func(*model, *rapid.T)) func(*rapid.T) {
					return func(t *rapid.T) {
						_, m := pick(t)
						fn(m, t)
					}
				}
				ops := x.troubles()
				maps.Copy(ops, map[string]func(*rapid.T){
					"write": on((*model).write), "append": on((*model).append), "read": on((*model).read),
					"truncate": saving((*model).truncate), "commit": saving((*model).commit), "reopen": saving((*model).reopen),
					"refuse": func(t *rapid.T) {
						refuse(rapid.IntRange(0, 4).Draw(t, "commits"), rapid.IntRange(0, 4).Draw(t, "relocations"))
					},
					"session": func(t *rapid.T) {
						dirty := make([]bool, len(files))
						for i, m := range files {
							dirty[i] = m.f.Dirty()
						}
						x.meta.loseSession()
						for i, m := range files {
							err := m.f.Commit(m.ctx(t), rapid.Bool().Draw(t, "durable"))
							if dirty[i] != errors.Is(err, syscall.EIO) || !dirty[i] && err != nil {
								t.Fatalf("file %d, dirty %v: %v", i, dirty[i], err)
							}
							m.view = slices.Clone(committed[i])
						}
					},
				})
				t.Repeat(ops)
				refuse(0, 0)
				x.healAll()
				for i, m := range files {
					m.check(t)
					m.must(t, m.f.Commit(m.ctx(t), true))
					committed[i] = slices.Clone(m.view)
				}
				x.losePower()
				x.store.reader.cache.clear()
				for _, m := range files {
					m.reopen(t)
					m.check(t)
					m.must(t, m.f.Close(m.ctx(t)))
				}
				x.meta.with(func(m *fakeMeta) { clear(m.leaving) })
			})
			x.memoryGivenBack()
			x.meta.with(func(m *fakeMeta) {
				for _, r := range m.reports {
					if len(r) > 5 && r[:5] == "chunk" {
						t.Error(r)
					}
				}
			})
		})
	}
}
