package faultfs

import (
	"maps"
	"math/rand/v2"
)

// losePower makes the tree what is durable of it, for a kernel that knows nothing of it. With random numbers some of the rest
// survives.
func (t *tree) losePower(rng *rand.Rand) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if rng != nil {
		t.settle(func(*change) bool { return rng.IntN(2) == 0 })
	}
	t.pending = nil
	for _, n := range t.nodes {
		n.links, n.stables, n.waiting, n.lookups, n.opens, n.parent = 0, 0, 0, 0, 0, nil
	}
	t.root.links, t.root.stables, t.root.parent = 1, 1, t.root
	t.revive(t.root)
	for _, n := range t.nodes {
		if n.data != nil {
			n.data.forget()
		}
		if n.links == 0 {
			t.drop(n)
		} else if n.data != nil {
			if err := n.data.with(func() error { return n.data.losePower(rng) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// close lets go of all objects, when nobody uses them any more.
func (t *tree) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.nodes {
		if n.data != nil {
			n.data.forget()
		}
	}
}

// revive gives a directory, and all below, the names that survived.
func (t *tree) revive(dir *node) {
	dir.names = maps.Clone(dir.stable)
	for _, n := range dir.names {
		n.links++
		n.stables++
		if n.isDir() {
			n.parent = dir
			t.revive(n)
		}
	}
}
