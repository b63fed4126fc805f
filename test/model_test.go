package test

import (
	"path"
	"slices"
	"syscall"
)

// model is what a file system is, in a hundred lines: the random-operation test compares the real one with it.
type model struct {
	names map[string]*node // by absolute path; the root is not among them
}

// node is a file or directory.
type node struct {
	dir   bool
	links int
	// base is where the contents begin: all before it is a hole. It makes files that are longer than one block of extents
	// without holding them in memory.
	base int64
	data []byte
}

func newModel() *model { return &model{names: map[string]*node{}} }

func (n *node) size() int64 {
	if len(n.data) == 0 && n.base == 0 {
		return 0
	}
	return n.base + int64(len(n.data))
}

// write changes the file from off on, which is not before base.
func (n *node) write(p []byte, off int64) {
	if len(p) == 0 {
		return
	}
	n.truncate(max(n.size(), off+int64(len(p))))
	copy(n.data[off-n.base:], p)
}

// truncate sets the size: below base, the file has no base any more.
func (n *node) truncate(size int64) {
	if size < n.base {
		n.base, n.data = 0, make([]byte, size)
		return
	}
	have, want := len(n.data), int(size-n.base)
	if want <= have {
		n.data = n.data[:want]
		return
	}
	n.data = slices.Grow(n.data, want-have)[:want]
	clear(n.data[have:])
}

// read returns what is at off, at most length bytes.
func (n *node) read(off int64, length int) []byte {
	end := min(n.size(), off+int64(length))
	if off >= end {
		return nil
	}
	out := make([]byte, end-off)
	if end > n.base {
		from := max(off, n.base)
		copy(out[from-off:], n.data[from-n.base:end-n.base])
	}
	return out
}

// parent checks that the directory of a name is there.
func (m *model) parent(name string) error {
	dir := path.Dir(name)
	if dir == "/" {
		return nil
	}
	n := m.names[dir]
	switch {
	case n == nil:
		return syscall.ENOENT
	case !n.dir:
		return syscall.ENOTDIR
	}
	return nil
}

func (m *model) empty(dir string) bool {
	for name := range m.names {
		if path.Dir(name) == dir {
			return false
		}
	}
	return true
}

// list returns the names in a directory, sorted.
func (m *model) list(dir string) []string {
	var out []string
	for name := range m.names {
		if path.Dir(name) == dir {
			out = append(out, path.Base(name))
		}
	}
	slices.Sort(out)
	return out
}

// open returns the file, made if create says so.
func (m *model) open(name string, create, exclusive, truncate bool) (*node, error) {
	if err := m.parent(name); err != nil {
		return nil, err
	}
	n := m.names[name]
	switch {
	case n == nil && !create:
		return nil, syscall.ENOENT
	case n == nil:
		n = &node{links: 1}
		m.names[name] = n
		return n, nil
	case create && exclusive:
		return nil, syscall.EEXIST
	case n.dir:
		return nil, syscall.EISDIR
	case truncate:
		n.truncate(0)
	}
	return n, nil
}

func (m *model) mkdir(name string) error {
	if err := m.parent(name); err != nil {
		return err
	}
	if m.names[name] != nil {
		return syscall.EEXIST
	}
	m.names[name] = &node{dir: true, links: 1}
	return nil
}

// remove is os.Remove: unlink or rmdir.
func (m *model) remove(name string) error {
	if err := m.parent(name); err != nil {
		return err
	}
	n := m.names[name]
	switch {
	case n == nil:
		return syscall.ENOENT
	case n.dir && !m.empty(name):
		return syscall.ENOTEMPTY
	}
	n.links--
	delete(m.names, name)
	return nil
}

func (m *model) link(old, name string) error {
	if err := m.parent(old); err != nil {
		return err
	}
	n := m.names[old]
	if n == nil {
		return syscall.ENOENT
	}
	if err := m.parent(name); err != nil {
		return err
	}
	switch {
	case m.names[name] != nil:
		return syscall.EEXIST
	case n.dir:
		return syscall.EPERM
	}
	n.links++
	m.names[name] = n
	return nil
}

// rename moves files only, and onto anything.
func (m *model) rename(old, name string) error {
	if err := m.parent(old); err != nil {
		return err
	}
	if err := m.parent(name); err != nil {
		return err
	}
	n, target := m.names[old], m.names[name]
	switch {
	case n == nil:
		return syscall.ENOENT
	case n == target:
		return nil // two names of one file: nothing happens
	case target != nil && target.dir:
		return syscall.EISDIR
	}
	if target != nil {
		target.links--
	}
	m.names[name] = n
	delete(m.names, old)
	return nil
}
