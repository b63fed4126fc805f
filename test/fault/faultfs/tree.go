package faultfs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// node is a file or a directory. The fields are guarded by the tree's lock.
type node struct {
	ino      uint64
	mode     uint32 // type and permissions
	uid, gid uint32
	atime    time.Time
	mtime    time.Time
	ctime    time.Time

	data *content // of a file

	parent *node            // of a directory that has a name
	names  map[string]*node // of a directory, as programs see them
	stable map[string]*node // as would survive a loss of power

	// What keeps a node in being.
	links   int    // names
	stables int    // names that would survive
	waiting int    // changes that are not durable yet and give it a name
	lookups uint64 // by which the kernel knows it
	opens   int
}

func (n *node) isDir() bool { return n.mode&unix.S_IFMT == unix.S_IFDIR }

// tree is all names of a disk. Operations return errnos.
type tree struct {
	backing string
	space   *space

	mu      sync.Mutex
	root    *node
	nodes   map[uint64]*node
	next    uint64
	pending []*change // in the order in which they were made
}

// change is what an operation did to names, durable as a whole or not at all.
type change struct{ sets []set }

// set gives a name of a directory a meaning; nil: none.
type set struct {
	slot
	node *node
}

type slot struct {
	dir  *node
	name string
}

func newTree(backing string) *tree {
	t := &tree{backing: backing, space: &space{backing: backing}, nodes: map[uint64]*node{}}
	t.root = t.add(unix.S_IFDIR|0o755, 0, 0)
	t.root.links, t.root.stables = 1, 1
	t.root.parent = t.root
	return t
}

// add makes a node without a name.
func (t *tree) add(mode, uid, gid uint32) *node {
	t.next++
	now := time.Now()
	n := &node{ino: t.next, mode: mode, uid: uid, gid: gid, atime: now, mtime: now, ctime: now}
	if n.isDir() {
		n.names, n.stable = map[string]*node{}, map[string]*node{}
	}
	t.nodes[n.ino] = n
	return n
}

// child returns what has a name in a directory, nil if nothing has.
func (t *tree) child(dir *node, name string) (*node, error) {
	if dir == nil {
		return nil, unix.ESTALE
	}
	if !dir.isDir() {
		return nil, unix.ENOTDIR
	}
	return dir.names[name], nil
}

// vacant is child for a name that nothing must have.
func (t *tree) vacant(dir *node, name string) error {
	n, err := t.child(dir, name)
	switch {
	case err != nil:
		return err
	case n != nil:
		return unix.EEXIST
	case dir.links == 0:
		return unix.ENOENT // a directory that was removed takes no names
	}
	return nil
}

// create makes a file, or, by its mode, a directory.
func (t *tree) create(dir *node, name string, mode, uid, gid uint32) (*node, error) {
	if err := t.vacant(dir, name); err != nil {
		return nil, err
	}
	n := t.add(mode, uid, gid)
	if !n.isDir() {
		var err error
		if n.data, err = newContent(filepath.Join(t.backing, fmt.Sprint(n.ino)), t.space); err != nil {
			delete(t.nodes, n.ino)
			return nil, err
		}
	}
	t.apply(set{slot{dir, name}, n})
	return n, nil
}

func (t *tree) link(n, dir *node, name string) error {
	if err := t.vacant(dir, name); err != nil {
		return err
	}
	if n.isDir() {
		return unix.EPERM
	}
	t.apply(set{slot{dir, name}, n})
	return nil
}

// remove is unlink or rmdir.
func (t *tree) remove(dir *node, name string, wantDir bool) error {
	n, err := t.child(dir, name)
	switch {
	case err != nil:
		return err
	case n == nil:
		return unix.ENOENT
	case wantDir && !n.isDir():
		return unix.ENOTDIR
	case !wantDir && n.isDir():
		return unix.EISDIR
	case wantDir && len(n.names) > 0:
		return unix.ENOTEMPTY
	}
	t.apply(set{slot{dir, name}, nil})
	return nil
}

func (t *tree) rename(dir *node, name string, to *node, newName string, noReplace bool) error {
	n, err := t.child(dir, name)
	if err != nil {
		return err
	}
	target, err := t.child(to, newName)
	switch {
	case err != nil:
		return err
	case n == nil || to.links == 0:
		return unix.ENOENT
	case target != nil && noReplace:
		return unix.EEXIST
	case n == target:
		return nil
	case target != nil && n.isDir() && !target.isDir():
		return unix.ENOTDIR
	case target != nil && !n.isDir() && target.isDir():
		return unix.EISDIR
	case target != nil && len(target.names) > 0:
		return unix.ENOTEMPTY
	}
	for up := to; n.isDir(); up = up.parent {
		if up == n {
			return unix.EINVAL
		}
		if up == t.root {
			break
		}
	}
	t.apply(set{slot{dir, name}, nil}, set{slot{to, newName}, n})
	return nil
}

// apply makes a change that is not durable yet.
func (t *tree) apply(sets ...set) {
	now := time.Now()
	for _, s := range sets {
		if old := s.dir.names[s.name]; old != nil {
			old.links--
			old.ctime = now
		}
		if s.node == nil {
			delete(s.dir.names, s.name)
		} else {
			s.dir.names[s.name] = s.node
			s.node.links++
			s.node.waiting++
			s.node.ctime = now
			if s.node.isDir() {
				s.node.parent = s.dir
			}
		}
		s.dir.mtime, s.dir.ctime = now, now
	}
	t.pending = append(t.pending, &change{sets})
}

// sync makes the names in a directory durable, with all that they depend on: a rename into it with what was at its old name.
func (t *tree) sync(dir *node) {
	t.settle(func(c *change) bool {
		return slices.ContainsFunc(c.sets, func(s set) bool { return s.dir == dir })
	})
}

// settle makes changes durable that are wanted, and earlier ones of the same names.
func (t *tree) settle(wanted func(*change) bool) {
	touched := map[slot]bool{}
	chosen := map[*change]bool{}
	for _, c := range slices.Backward(t.pending) {
		if wanted(c) || slices.ContainsFunc(c.sets, func(s set) bool { return touched[s.slot] }) {
			chosen[c] = true
			for _, s := range c.sets {
				touched[s.slot] = true
			}
		}
	}
	t.pending = slices.DeleteFunc(t.pending, func(c *change) bool {
		if chosen[c] {
			t.commit(c)
		}
		return chosen[c]
	})
}

func (t *tree) commit(c *change) {
	for _, s := range c.sets {
		old := s.dir.stable[s.name]
		if s.node == nil {
			delete(s.dir.stable, s.name)
		} else {
			s.dir.stable[s.name] = s.node
			s.node.stables++
			s.node.waiting--
		}
		if old != nil {
			old.stables--
			t.collect(old)
		}
	}
	for _, s := range c.sets {
		if s.node != nil {
			t.collect(s.node)
		}
	}
}

// collect frees a node that nothing needs any more.
func (t *tree) collect(n *node) {
	if n.links > 0 || n.stables > 0 || n.waiting > 0 || n.lookups > 0 || n.opens > 0 || t.nodes[n.ino] != n {
		return
	}
	t.drop(n)
	for _, child := range n.stable { // of a directory that was removed before its names were
		child.stables--
		t.collect(child)
	}
	clear(n.stable)
}

func (t *tree) drop(n *node) {
	delete(t.nodes, n.ino)
	if n.data != nil {
		_ = t.space.force(n.data.length(), 0) // what was counted
		_ = os.Remove(n.data.path)            // at worst it is left for whoever removes the backing directory
	}
}
