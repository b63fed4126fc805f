package faultfs

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// modelFile is a file in two copies. Blocks are compared as a whole, so that the sizes that are drawn lie near their borders.
type modelFile struct {
	live, durable []byte
	dirty, lost   map[int64]bool // blocks
}

func grown(b []byte, size int) []byte {
	if size <= len(b) {
		return b[:size:size]
	}
	return append(b[:len(b):len(b)], make([]byte, size-len(b))...)
}

// block is one of a file that is padded with zeros.
func block(b []byte, i int64) []byte {
	out := make([]byte, blockSize)
	if from := i * blockSize; from < int64(len(b)) {
		copy(out, b[from:])
	}
	return out
}

func (m *modelFile) touch(from, to int64) {
	for b := from / blockSize; b*blockSize < to; b++ {
		m.dirty[b] = true
		delete(m.lost, b)
	}
}

func (m *modelFile) sync() {
	old := m.durable
	m.durable = bytes.Clone(m.live)
	for b := range m.lost {
		if from := b * blockSize; from < int64(len(m.durable)) {
			copy(m.durable[from:], block(old, b))
		}
	}
	clear(m.dirty)
}

func TestContentAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, err := newContent(path.Join(tempDir(t), "object"), &space{})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.retain(); err != nil {
			t.Fatal(err)
		}
		defer c.release()
		m := &modelFile{dirty: map[int64]bool{}, lost: map[int64]bool{}}
		check := func() {
			t.Helper()
			got := make([]byte, len(m.live)+10)
			n, err := c.read(got, 0)
			if err != nil || !bytes.Equal(got[:n], m.live) || c.length() != int64(len(m.live)) {
				t.Fatalf("read %d bytes, %v, want %d", n, err, len(m.live))
			}
		}
		offset := rapid.Custom(func(t *rapid.T) int64 {
			return rapid.Int64Range(0, 4).Draw(t, "block")*blockSize + rapid.SampledFrom([]int64{0, 1, 7, blockSize - 1}).Draw(t, "in it")
		})
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				off := offset.Draw(t, "off")
				p := bytes.Repeat([]byte{rapid.Byte().Draw(t, "what")}, rapid.SampledFrom([]int{1, 8, 100, blockSize, 2*blockSize + 1}).Draw(t, "length"))
				if err := c.write(p, off); err != nil {
					t.Fatal(err)
				}
				m.live = grown(m.live, max(len(m.live), int(off)+len(p)))
				copy(m.live[off:], p)
				m.touch(off, off+int64(len(p)))
			},
			"truncate": func(t *rapid.T) {
				size := offset.Draw(t, "size")
				if err := c.truncate(size); err != nil {
					t.Fatal(err)
				}
				for b := range m.lost {
					if b*blockSize >= size {
						delete(m.lost, b)
					}
				}
				for b := size / blockSize; b*blockSize < int64(len(m.live)); b++ {
					m.dirty[b] = true
				}
				m.live = grown(m.live, int(size))
			},
			"sync": func(*rapid.T) { c.sync(); m.sync() },
			"fail to sync": func(*rapid.T) {
				c.failSync()
				for b := int64(0); b*blockSize < int64(len(m.live)); b++ {
					if m.dirty[b] {
						m.lost[b] = true
					}
				}
			},
			"lose power": func(t *rapid.T) {
				if err := c.losePower(nil); err != nil {
					t.Fatal(err)
				}
				m.live = bytes.Clone(m.durable)
				clear(m.dirty)
				clear(m.lost)
			},
			"lose some": func(t *rapid.T) {
				live := m.live
				if err := c.losePower(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, c.length())
				if _, err := c.read(got, 0); err != nil {
					t.Fatal(err)
				}
				if n, a, b := len(got), len(live), len(m.durable); n != a && n != b && (n < b || n > a) {
					t.Fatalf("of %d bytes, %d durable, there are %d left", a, b, n)
				}
				for b := int64(0); b*blockSize < int64(len(got)); b++ {
					have := block(got, b)
					end := len(got) - int(b*blockSize)
					if x, y := block(live, b), block(m.durable, b); end < blockSize {
						clear(x[end:])
						clear(y[end:])
						if !bytes.Equal(have, x) && !bytes.Equal(have, y) {
							t.Fatalf("the last block, %d, is neither old nor new", b)
						}
					} else if !bytes.Equal(have, x) && !bytes.Equal(have, y) {
						t.Fatalf("block %d is neither old nor new", b)
					}
				}
				m.live, m.durable = bytes.Clone(got), bytes.Clone(got)
				clear(m.dirty)
				clear(m.lost)
			},
			"": func(*rapid.T) { check() },
		})
	})
}

// modelTree is the log of all changes of names. What is durable is replayed from those that are.
type modelTree struct{ log []*modelChange }

type modelChange struct {
	sets    []modelSet
	durable bool
}

type modelSet struct {
	dir  uint64 // inodes
	name string
	node uint64 // 0: none
}

func (m *modelTree) add(sets ...modelSet) { m.log = append(m.log, &modelChange{sets: sets}) }

// settle makes changes durable, and, again and again until nothing is left to do, what they depend on.
func (m *modelTree) settle(wanted func(*modelChange) bool) {
	fresh := map[*modelChange]bool{}
	for _, c := range m.log {
		if !c.durable && wanted(c) {
			fresh[c] = true
		}
	}
	for before := -1; before != len(fresh); {
		before = len(fresh)
		for i, early := range m.log {
			for _, late := range m.log[i+1:] {
				if !early.durable && fresh[late] && overlap(early, late) {
					fresh[early] = true
				}
			}
		}
	}
	for c := range fresh {
		c.durable = true
	}
}

func overlap(a, b *modelChange) bool {
	return slices.ContainsFunc(a.sets, func(x modelSet) bool {
		return slices.ContainsFunc(b.sets, func(y modelSet) bool { return x.dir == y.dir && x.name == y.name })
	})
}

// paths replays what is durable.
func (m *modelTree) paths() map[string]uint64 {
	dirs := map[uint64]map[string]uint64{}
	for _, c := range m.log {
		for _, s := range c.sets {
			if !c.durable {
				continue
			}
			if dirs[s.dir] == nil {
				dirs[s.dir] = map[string]uint64{}
			}
			if s.node == 0 {
				delete(dirs[s.dir], s.name)
			} else {
				dirs[s.dir][s.name] = s.node
			}
		}
	}
	out := map[string]uint64{}
	var walk func(uint64, string)
	walk = func(dir uint64, at string) {
		for name, n := range dirs[dir] {
			out[path.Join(at, name)] = n
			walk(n, path.Join(at, name))
		}
	}
	walk(1, "/")
	return out
}

func (t *tree) paths() (out map[string]uint64, dirs, files []*node) {
	out = map[string]uint64{}
	var walk func(*node, string)
	walk = func(dir *node, at string) {
		dirs = append(dirs, dir)
		for _, name := range slices.Sorted(maps.Keys(dir.names)) {
			n := dir.names[name]
			out[path.Join(at, name)] = n.ino
			if n.isDir() {
				walk(n, path.Join(at, name))
			} else {
				files = append(files, n)
			}
		}
	}
	walk(t.root, "/")
	return out, dirs, files
}

func TestNamesAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tr, m := newTree(tempDir(t)), new(modelTree)
		name := rapid.SampledFrom([]string{"a", "b", "c"})
		dir := func(t *rapid.T) *node {
			_, dirs, _ := tr.paths()
			return rapid.SampledFrom(dirs).Draw(t, "directory")
		}
		lost := func(t *rapid.T, rng *rand.Rand) {
			if err := tr.losePower(rng); err != nil {
				t.Fatal(err)
			}
			got, dirs, files := tr.paths()
			if want := m.paths(); !maps.Equal(got, want) {
				t.Fatalf("after the loss there is %v, want %v", got, want)
			}
			distinct := map[*node]bool{}
			for _, n := range append(dirs, files...) {
				distinct[n] = true
			}
			if len(tr.nodes) != len(distinct) {
				t.Fatalf("%d nodes, %d of them with a name", len(tr.nodes), len(distinct))
			}
			m.log = slices.DeleteFunc(m.log, func(c *modelChange) bool { return !c.durable })
		}
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				d, n, mode := dir(t), name.Draw(t, "name"), rapid.SampledFrom([]uint32{unix.S_IFREG, unix.S_IFDIR}).Draw(t, "mode")
				if node, err := tr.create(d, n, mode|0o755, 0, 0); err == nil {
					m.add(modelSet{d.ino, n, node.ino})
				}
			},
			"link": func(t *rapid.T) {
				_, _, files := tr.paths()
				if len(files) == 0 {
					return
				}
				f, d, n := rapid.SampledFrom(files).Draw(t, "file"), dir(t), name.Draw(t, "name")
				if tr.link(f, d, n) == nil {
					m.add(modelSet{d.ino, n, f.ino})
				}
			},
			"remove": func(t *rapid.T) {
				d, n := dir(t), name.Draw(t, "name")
				if tr.remove(d, n, rapid.Bool().Draw(t, "rmdir")) == nil {
					m.add(modelSet{d.ino, n, 0})
				}
			},
			"rename": func(t *rapid.T) {
				d, n, to, as := dir(t), name.Draw(t, "name"), dir(t), name.Draw(t, "to")
				moved, target := d.names[n], to.names[as]
				if tr.rename(d, n, to, as, false) == nil && moved != target {
					m.add(modelSet{d.ino, n, 0}, modelSet{to.ino, as, moved.ino})
				}
			},
			"sync": func(t *rapid.T) {
				d := dir(t)
				tr.sync(d)
				m.settle(func(c *modelChange) bool {
					return slices.ContainsFunc(c.sets, func(s modelSet) bool { return s.dir == d.ino })
				})
			},
			"lose power": func(t *rapid.T) { lost(t, nil) },
			"lose some": func(t *rapid.T) {
				seed := rapid.Uint64().Draw(t, "seed")
				rng := rand.New(rand.NewPCG(seed, 1))
				// The tree draws once for each change that waits, the last first, unless a later one needs it anyway.
				chosen := drawn(tr, rand.New(rand.NewPCG(seed, 1)))
				i := 0
				m.settle(func(*modelChange) bool { i++; return chosen[i-1] })
				lost(t, rng)
			},
		})
	})
}

// drawn says which changes losePower takes with random numbers, in the order in which they were made.
func drawn(tr *tree, rng *rand.Rand) []bool {
	out := make([]bool, len(tr.pending))
	for i := range out {
		out[len(out)-1-i] = rng.IntN(2) == 0
	}
	return out
}

func tempDir(t *rapid.T) string {
	dir, err := mkTemp()
	if err != nil {
		t.Fatal(fmt.Errorf("a directory for the objects: %w", err))
	}
	t.Cleanup(func() { removeAll(dir) })
	return dir
}
