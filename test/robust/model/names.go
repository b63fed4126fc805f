package model

import (
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/shoalfs/shoalfs/test/robust/history"
)

// Names are those that a directory can have; they are few, so that clients meet at them.
var Names = []string{"a", "b", "c", "d", "e"}

// directory is a directory as the model sees it: what each of the Names is of.
type directory [5]entry

// entry is what has a name.
type entry struct {
	kind kind
	// inode is 0 until somebody was told: who calls mkdir(2) is not, nor is anybody of what a client made that died in the call. The
	// first who sees it says what it is.
	inode uint64
}

type kind byte

const (
	nothing kind = iota
	file
	dir
)

func place(name string) int {
	i := slices.Index(Names, name)
	if i < 0 {
		panic("no name of a directory: " + name) // the traffic's mistake
	}
	return i
}

// links counts the names of an inode.
func (d directory) links(inode uint64) (n uint32) {
	for _, e := range d {
		if e.kind != nothing && e.inode == inode {
			n++
		}
	}
	return n
}

// change says what an operation does: the errors that it may return, or, where there are none, what is then. made is the inode
// that it made, as far as that is known. Where several things are wrong it is open which of them an error tells.
func (d directory) change(in *history.Input, made uint64) (errs []syscall.Errno, next directory) {
	wrong := func(is bool, errno ...syscall.Errno) {
		if is {
			errs = append(errs, errno...)
		}
	}
	next = d
	switch in.Op {
	case history.Create, history.Mkdir:
		i := place(in.Name)
		wrong(d[i].kind != nothing, syscall.EEXIST)
		next[i] = entry{kindOf(in.Op == history.Mkdir), made}
	case history.Unlink, history.Rmdir:
		e := &next[place(in.Name)]
		wrong(e.kind == nothing, syscall.ENOENT)
		wrong(in.Op == history.Unlink && e.kind == dir, syscall.EISDIR)
		wrong(in.Op == history.Rmdir && e.kind == file, syscall.ENOTDIR)
		*e = entry{}
	case history.Link:
		i := place(in.To)
		wrong(d[i].kind != nothing, syscall.EEXIST)
		wrong(d.links(in.Inode) == 0, syscall.ENOENT, syscall.ESTALE)
		next[i] = entry{file, in.Inode}
	default:
		return d.rename(in.Op, place(in.Name), place(in.To))
	}
	return errs, next
}

func kindOf(isDir bool) kind {
	if isDir {
		return dir
	}
	return file
}

func (d directory) rename(op history.Op, from, to int) (errs []syscall.Errno, next directory) {
	src, dst := d[from], d[to]
	if src.kind == nothing {
		errs = append(errs, syscall.ENOENT)
	}
	next = d
	switch {
	case op == history.NoReplace && dst.kind != nothing:
		errs = append(errs, syscall.EEXIST)
	case op == history.Exchange && dst.kind == nothing:
		errs = append(errs, syscall.ENOENT)
	case op == history.Exchange:
		next[from], next[to] = dst, src
		return errs, next
	case src.kind == dir && dst.kind == file:
		errs = append(errs, syscall.ENOTDIR)
	case src.kind == file && dst.kind == dir:
		errs = append(errs, syscall.EISDIR)
	case src.kind != nothing && src.inode != 0 && src.inode == dst.inode: // two names of one inode: nothing happens
		return errs, d
	}
	next[from], next[to] = entry{}, src
	return errs, next
}

// step is what the directory does next: whether an operation can have had that answer, and what is then.
func (d directory) step(in *history.Input, out *history.Output) (bool, directory) {
	switch in.Op {
	case history.Lookup:
		return d.lookup(in.Name, out)
	case history.Links:
		gone := out.Errno == syscall.ENOENT || out.Errno == syscall.ESTALE
		return (out.Errno == 0 || gone) && d.links(in.Inode) == out.Links, d
	case history.List:
		return out.Errno == 0 && slices.Equal(d.names(), out.Names), d
	}
	made := uint64(0)
	if out != nil {
		made = out.Inode
	}
	errs, next := d.change(in, made)
	switch {
	case out == nil: // unknown: done if it could be
		if len(errs) > 0 {
			return true, d
		}
		return true, next
	case out.Errno != 0:
		return slices.Contains(errs, out.Errno), d
	}
	return len(errs) == 0 && (made == 0 || d.links(made) == 0), next
}

func (d directory) lookup(name string, out *history.Output) (bool, directory) {
	e := &d[place(name)]
	switch {
	case e.kind == nothing:
		return out.Errno == syscall.ENOENT, d
	case out.Errno != 0 || out.Inode == 0 || e.kind != kindOf(out.Dir):
		return false, d
	case e.inode == 0 && d.links(out.Inode) == 0:
		e.inode = out.Inode
	}
	return e.inode == out.Inode, d
}

// names lists those that something has.
func (d directory) names() (list []string) {
	for i, e := range d {
		if e.kind != nothing {
			list = append(list, Names[i])
		}
	}
	return list
}

func (d directory) String() string {
	var list []string
	for i, e := range d {
		switch {
		case e.kind == nothing:
		case e.inode == 0:
			list = append(list, fmt.Sprintf("%s: %s #?", Names[i], e.kind))
		default:
			list = append(list, fmt.Sprintf("%s: %s #%d", Names[i], e.kind, e.inode))
		}
	}
	return "{" + strings.Join(list, ", ") + "}"
}

func (k kind) String() string { return [...]string{"nothing", "file", "directory"}[k] }
