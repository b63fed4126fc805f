package kv

import (
	"bytes"

	"github.com/tidwall/btree"
)

// entry is a buffered write. A nil value is a deletion, an empty one is not.
type entry struct{ key, value []byte }

func (e entry) size() int64 { return int64(len(e.key)+len(e.value)) + entryOverhead }

// entryOverhead is roughly what an entry costs beside its bytes.
const entryOverhead = 64

// tree holds the buffered writes of one bucket in the order of their keys. It is not locked: many may read it while none
// writes.
type tree = btree.BTreeG[entry]

func newTree() *tree {
	return btree.NewBTreeGOptions(func(a, b entry) bool { return bytes.Compare(a.key, b.key) < 0 }, btree.Options{NoLocks: true})
}

// generation is what was written between two flushes.
type generation struct {
	trees   []*tree // by Bucket
	keys    int64   // distinct keys in all
	bytes   int64   // of all writes, those since overwritten too
	applied uint64  // log index of the last command in it; 0 if there is none
}

func newGeneration(buckets int) *generation {
	g := &generation{trees: make([]*tree, buckets)}
	for i := range g.trees {
		g.trees[i] = newTree()
	}
	return g
}

func (g *generation) set(b Bucket, e entry) {
	if _, replaced := g.trees[b].Set(e); !replaced {
		g.keys++
	}
	g.bytes += e.size()
}

// arena copies byte slices into blocks, so that a small write does not cost two allocations. Not for concurrent use; what
// it returned is never written again.
type arena struct{ free []byte }

const arenaBlock = 64 << 10

func (a *arena) clone(b []byte) []byte {
	switch {
	case len(b) == 0:
		return []byte{}
	case len(b) > arenaBlock/8:
		return bytes.Clone(b)
	case len(b) > len(a.free):
		a.free = make([]byte, arenaBlock)
	}
	c := a.free[:len(b):len(b)]
	a.free = a.free[len(b):]
	copy(c, b)
	return c
}
