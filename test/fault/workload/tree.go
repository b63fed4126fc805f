package workload

import (
	"errors"
	"path"
	"slices"
	"strings"
	"syscall"
)

// opMake makes an empty file, of a client that changes names.
const opMake = "make"

// Tree is what a client that changes names has made of its directory. Paths are relative to it; the directory itself is ".".
type Tree struct {
	dirs map[string]bool // every name: whether it is of a directory
	// What an operation that failed may have done to these names, and all below, is not known: nobody looks there again.
	unsure map[string]bool
}

// NewTree is an empty directory.
func NewTree() *Tree {
	return &Tree{dirs: map[string]bool{".": true}, unsure: map[string]bool{}}
}

// Unsure tells whether it is not known what is at, or below, a path.
func (t *Tree) Unsure(p string) bool {
	for up := p; up != "."; up = path.Dir(up) {
		if t.unsure[up] {
			return true
		}
	}
	for u := range t.unsure {
		if below(u, p) {
			return true
		}
	}
	return false
}

// below tells whether p is in the directory dir or deeper.
func below(p, dir string) bool { return dir == "." && p != "." || strings.HasPrefix(p, dir+"/") }

// List returns the names in a directory, sorted.
func (t *Tree) List(dir string) []string {
	var out []string
	for p := range t.dirs {
		if p != "." && path.Dir(p) == dir {
			out = append(out, path.Base(p))
		}
	}
	slices.Sort(out)
	return out
}

// parent returns why nothing can be at a path.
func (t *Tree) parent(p string) error {
	dir, ok := t.dirs[path.Dir(p)]
	switch {
	case ok && dir:
		return nil
	case ok:
		return syscall.ENOTDIR
	}
	if err := t.parent(path.Dir(p)); err != nil {
		return err
	}
	return syscall.ENOENT
}

// look returns whether a directory is at a path.
func (t *Tree) look(p string) (dir bool, err error) {
	if dir, ok := t.dirs[p]; ok {
		return dir, nil
	}
	if err := t.parent(p); err != nil {
		return false, err
	}
	return false, syscall.ENOENT
}

// Expect returns the error that an operation has to return.
func (t *Tree) Expect(e *Entry) syscall.Errno { return errnoOf(t.expect(e)) }

func (t *Tree) expect(e *Entry) error {
	dir, err := t.look(e.Path)
	absent := errors.Is(err, syscall.ENOENT) && t.parent(e.Path) == nil
	switch e.Op {
	case opMkdir, opMake:
		switch {
		case err == nil:
			return syscall.EEXIST
		case absent:
			return nil
		}
		return err
	case opRemove:
		if err == nil && dir && len(t.List(e.Path)) > 0 {
			return syscall.ENOTEMPTY
		}
		return err
	case opList:
		if err == nil && !dir {
			return syscall.ENOTDIR
		}
		return err
	case opRename:
		if err != nil {
			return err
		}
		return t.expectRename(e.Path, e.To, dir)
	}
	return err
}

func (t *Tree) expectRename(from, to string, dir bool) error {
	target, err := t.look(to)
	switch {
	case from == to:
		return nil
	case below(to, from):
		return syscall.EINVAL
	case errors.Is(err, syscall.ENOENT) && t.parent(to) == nil:
		return nil
	case err != nil:
		return err
	case below(from, to): // the target is a directory and not empty
		return syscall.ENOTEMPTY
	case dir && !target:
		return syscall.ENOTDIR
	case !dir && target:
		return syscall.EISDIR
	case dir && len(t.List(to)) > 0:
		return syscall.ENOTEMPTY
	}
	return nil
}

// Replay does what an operation did that has returned.
func (t *Tree) Replay(e *Entry) {
	switch e.Op {
	case opMkdir, opMake, opRemove, opRename:
	default:
		return
	}
	want := t.Expect(e)
	switch {
	case e.Errno != want:
		t.Doubt(e)
	case want == 0:
		t.do(e)
	}
}

func (t *Tree) do(e *Entry) {
	switch e.Op {
	case opMkdir:
		t.dirs[e.Path] = true
	case opMake:
		t.dirs[e.Path] = false
	case opRemove:
		delete(t.dirs, e.Path)
	case opRename:
		if e.Path == e.To {
			return
		}
		moved := map[string]bool{}
		for p, dir := range t.dirs {
			if p == e.Path || below(p, e.Path) {
				moved[e.To+strings.TrimPrefix(p, e.Path)] = dir
				delete(t.dirs, p)
			}
		}
		for p, dir := range moved {
			t.dirs[p] = dir
		}
	}
}

// Doubt records that an operation may have been done or not.
func (t *Tree) Doubt(e *Entry) {
	if e.Op == opStat || e.Op == opList {
		return
	}
	for _, p := range []string{e.Path, e.To} {
		if p == "" {
			continue
		}
		t.unsure[p] = true
		for q := range t.dirs {
			if q == p || below(q, p) {
				delete(t.dirs, q)
			}
		}
	}
}
