package rewrite

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	copies3 = chunk.Copies(3)
	copies2 = chunk.Copies(2)
	ec42    = chunk.Layout{Data: 4, Parity: 2}.WithMin(0)
	ec21    = chunk.Layout{Data: 2, Parity: 1}.WithMin(0)
)

// eager is a Config that finds everything worth it.
var eager = Config{MinGain: 1, Rest: time.Second, Patience: time.Second}

// TestSpaceIsGivenBack: clients overwrite, cut and delete at random while servers fail now and then; at any moment every file
// reads as it should, and when all is quiet little garbage is left, in the state and on the servers.
func TestSpaceIsGivenBack(t *testing.T) {
	seeds := uint64(4)
	if os.Getenv("SHOAL_LONG") != "" {
		seeds = 40
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, seed, 7, eager)
				w.failing = true
				w.run(func() { churn(w, 400) })
			})
		})
	}
}

func churn(w *world, steps int) {
	layouts := []chunk.Layout{copies3, copies2, ec42, ec21}
	policy := map[uint64]chunk.Layout{}
	some := func() uint64 {
		all := slices.Sorted(maps.Keys(w.files))
		return all[w.rng.IntN(len(all))]
	}
	add := func() {
		f := w.create()
		policy[f] = layouts[w.rng.IntN(len(layouts))]
		w.do(&pb.Op{Op: &pb.Op_SetLayout{SetLayout: &pb.SetLayout{Inode: f, Layout: policy[f].Proto()}}})
	}
	for range 4 {
		add()
	}
	for range steps {
		f := some()
		switch w.rng.IntN(20) {
		case 0:
			w.truncate(f, uint64(w.rng.IntN(1<<20)))
		case 1:
			if len(w.files) < 6 {
				add()
			}
		case 2:
			w.expire()
		case 3: // a server goes away for a moment
			s := w.servers[chunk.ServerID(1+w.rng.IntN(len(w.servers)))]
			w.mu.Lock()
			for _, o := range w.servers {
				o.info.State = pb.ServerState_SERVER_STATE_HEALTHY
			}
			s.info.State = pb.ServerState_SERVER_STATE_DEAD
			w.mu.Unlock()
			w.expire() // the client would go on elsewhere
		case 4:
			w.check()
		default:
			w.write(f, uint64(w.rng.IntN(1<<20)), 1+w.rng.IntN(128<<10), policy[f])
		}
		time.Sleep(time.Duration(w.rng.IntN(1000)) * time.Millisecond)
	}
	w.expire()
	w.mu.Lock()
	w.failing = false
	for _, o := range w.servers {
		o.info.State = pb.ServerState_SERVER_STATE_HEALTHY
	}
	w.mu.Unlock()
	time.Sleep(10 * time.Minute)
	w.check()
	w.tidy()
	if length, live, n := w.totals(); length > 2*live+uint64(n)*tinyGarbage {
		w.t.Errorf("%d chunks have %d bytes, %d of them live", n, length, live)
	}
	if s := w.e.Stats(); s.Moved == 0 || s.Running > 0 || s.HeldBack != "" || s.Done == 0 {
		w.t.Errorf("%+v", s)
	} else {
		w.t.Logf("%+v", s)
	}
}

// tidy: servers hold what the state has, and nothing is under way.
func (w *world) tidy() {
	w.t.Helper()
	_ = w.db.View(func(r kv.Reader) error {
		if left := namespace.Rewrites(r); len(left) > 0 {
			w.t.Errorf("still being made: %v", left)
		}
		for id, s := range w.servers {
			for stored := range s.holds {
				if c, ok := namespace.Chunk(r, stored.Chunk()); !ok || !c.BelongsOn(id, stored) {
					w.t.Errorf("server %d still holds %v", id, stored)
				}
			}
		}
		return nil
	})
}

// TestManyPieces: a file that was written in small pieces at random becomes one of few, without having changed.
func TestManyPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 4, eager)
		w.run(func() {
			f := w.create()
			for _, i := range w.rng.Perm(600) {
				w.write(f, uint64(i)*1000, 1000, copies3)
			}
			w.expire()
			attr := func() (a *pb.Attr) {
				_ = w.db.View(func(r kv.Reader) (err error) { a, err = namespace.GetAttr(r, f); return err })
				return a
			}
			before := attr()
			time.Sleep(20 * time.Second)
			if n := w.pieces(f); n < 500 {
				t.Errorf("%d pieces, of a file that was written to just now", n)
			}
			time.Sleep(12 * time.Minute)
			if n := w.pieces(f); n != 1 {
				t.Errorf("%d pieces", n)
			}
			if after := attr(); after.String() != before.String() {
				t.Errorf("it changed: %v, before %v", after, before)
			}
			moved := w.e.Stats().Moved
			time.Sleep(30 * time.Minute)
			if again := w.e.Stats().Moved; again != moved {
				t.Errorf("written anew though there is nothing to gain: %d, before %d", again, moved)
			}
			w.check()
			w.tidy()
		})
	})
}

// TestSparseFilesAreLeftAlone: many pieces with holes between them do not become fewer.
func TestSparseFilesAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 4, eager)
		w.run(func() {
			f := w.create()
			for i := range 600 {
				w.write(f, uint64(i)*2000, 1000, copies3)
			}
			w.expire()
			time.Sleep(30 * time.Minute)
			if n := w.pieces(f); n != 600 || w.e.Stats().Moved > 0 {
				t.Errorf("%d pieces, %+v", n, w.e.Stats())
			}
			w.check()
		})
	})
}

func (w *world) pieces(f uint64) (n int) {
	_ = w.db.View(func(r kv.Reader) error {
		x, err := namespace.Extents(r, f, 0, 0)
		n = len(x.GetExtents())
		return err
	})
	return n
}

// TestConvert: files get the layouts of their policies while they are written to, and cost nothing when asked for again.
func TestConvert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 7, Config{})
		w.run(func() {
			var inodes []uint64
			for i := range 30 {
				f := w.create()
				inodes = append(inodes, f)
				for at := uint64(0); at < 300000; at += 50000 {
					w.write(f, at, 50000, copies3)
				}
				if i%3 > 0 {
					w.do(&pb.Op{Op: &pb.Op_SetLayout{SetLayout: &pb.SetLayout{Inode: f, Layout: ec42.Proto()}}})
				}
			}
			inodes = append(inodes, 1, 9999) // a directory, and nothing
			_ = w.db.View(func(r kv.Reader) error {
				if n := wrong(r, inodes); n != 20*300000 {
					t.Errorf("%d bytes are not as they should be", n)
				}
				return nil
			})
			var total, left uint64
			todo := inodes
			for i := 0; len(todo) > 0; i++ {
				left = 0
				var more []uint64
				for k, c := range w.e.Convert(w.wishes(todo), false) {
					left += c.Left
					if c.Done {
						total += c.Total
					} else {
						more = append(more, todo[k])
					}
					if n := slices.Index(inodes, todo[k]); c.Done && c.Left > 0 || c.Known && c.Total < c.Left || c.Known && n < 30 && n%3 == 0 && c.Total > 0 {
						t.Errorf("file %d: %+v", n, c)
					}
				}
				todo = more
				if i == 10 { // until now a chunk was still being written
					if left == 0 {
						t.Error("data in a chunk that is being written was converted")
					}
					w.expire()
				}
				if i > 1000 {
					t.Fatalf("%d bytes left", left)
				}
				f := inodes[w.rng.IntN(30)]
				w.write(f, uint64(w.rng.IntN(300000)), 1000, w.layout(f))
				time.Sleep(time.Second)
			}
			if left != 0 || total < 19*300000 || total > 21*300000 {
				t.Errorf("%d of %d bytes left", left, total)
			}
			w.check()
			_ = w.db.View(func(r kv.Reader) error {
				if n := wrong(r, inodes); n > 0 {
					t.Errorf("%d bytes are not as they should be", n)
				}
				return nil
			})
			if s := w.e.Stats(); s.Files > 0 || s.FilesLeft > 0 {
				t.Errorf("%+v", s)
			}
			// Again.
			moved := w.e.Stats().Moved
			time.Sleep(3 * time.Minute)
			w.e.Convert(w.wishes(inodes), true)
			time.Sleep(2 * time.Minute)
			if s := w.e.Stats(); s.Moved != moved || s.Files > 0 {
				t.Errorf("%+v, before %d", s, moved)
			}
			// And back, though nobody asks any more.
			for _, f := range inodes[:30] {
				w.do(&pb.Op{Op: &pb.Op_SetLayout{SetLayout: &pb.SetLayout{Inode: f, Layout: copies2.Proto()}}})
			}
			w.expire()
			w.e.Convert(w.wishes(inodes), true)
			time.Sleep(5 * time.Minute)
			_ = w.db.View(func(r kv.Reader) error {
				if n := wrong(r, inodes); n > 0 {
					t.Errorf("%d bytes are not as they should be", n)
				}
				return nil
			})
			w.check()
			time.Sleep(time.Minute)
			w.tidy()
		})
	})
}

func (w *world) wishes(inodes []uint64) (out []Wish) {
	for _, f := range inodes {
		out = append(out, Wish{f, w.layout(f)})
	}
	return out
}

func (w *world) layout(f uint64) (l chunk.Layout) {
	_ = w.db.View(func(r kv.Reader) (err error) { l, err = namespace.LayoutOf(r, f); return err })
	if l.IsZero() {
		l = w.Default()
	}
	return l
}

// wrong is how many bytes of files are stored in another layout than their policies say.
func wrong(r kv.Reader, inodes []uint64) (n uint64) {
	for _, f := range inodes {
		want, err := namespace.LayoutOf(r, f)
		if err != nil {
			continue
		}
		if want.IsZero() {
			want = copies3
		}
		namespace.Blocks(r, namespace.FileBlock{Inode: f}, func(b namespace.BlockExtents) bool {
			for i := range b.Len() {
				x := b.At(i)
				if c, ok := namespace.Chunk(r, x.Chunk); b.Inode == f && ok && !same(c.Layout, want) {
					n += x.Length
				}
			}
			return b.Inode == f
		})
	}
	return n
}

// TestCancelledConversion: what nobody asks for any more is not gone on with.
func TestCancelledConversion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 7, Config{})
		w.busy = "repair has something to do"
		w.run(func() {
			f := w.create()
			w.write(f, 0, 100000, copies3)
			w.do(&pb.Op{Op: &pb.Op_SetLayout{SetLayout: &pb.SetLayout{Inode: f, Layout: ec42.Proto()}}})
			w.expire()
			w.e.Convert(w.wishes([]uint64{f}), false)
			time.Sleep(5 * time.Second)
			if s := w.e.Stats(); s.Files != 1 || s.HeldBack != w.busy || s.Moved > 0 {
				t.Errorf("%+v", s)
			}
			time.Sleep(2 * time.Minute)
			w.mu.Lock()
			w.busy = ""
			w.mu.Unlock()
			time.Sleep(time.Minute)
			if s := w.e.Stats(); s.Files != 0 || s.HeldBack != "" || s.Moved > 0 {
				t.Errorf("%+v", s)
			}
			w.check()
		})
	})
}

// TestNewLeaderDrops: what an earlier leader left is given up, whether some of it was published or not.
func TestNewLeaderDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 7, eager)
		f := w.create()
		w.write(f, 0, 100000, copies3)
		w.expire()
		for range 3 {
			w.own(&pb.Op{Op: &pb.Op_StartRewrite{StartRewrite: &pb.StartRewrite{Layout: copies2.Proto(), Candidates: w.candidates()}}})
		}
		w.run(func() {
			time.Sleep(time.Minute)
			w.check()
			w.tidy()
		})
	})
}
