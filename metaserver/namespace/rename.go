package namespace

import (
	"syscall"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// maxDepth bounds the walk from a directory to the root, so that a damaged database cannot make it endless.
const maxDepth = 1 << 20

// renaming is what a rename works on. With one directory, from and to are the same inode, in one place.
type renaming struct {
	op       *pb.Rename
	from, to *inode // the directories
	src, dst *inode // what moves; what has the new name, nil for nothing
}

func (x *tx) rename(op *pb.Rename) (*pb.Result, error) {
	if op.NoReplace && op.Exchange {
		return nil, fserr.New(syscall.EINVAL, "a rename that exchanges cannot also refuse to replace")
	}
	m, err := x.loadRename(op)
	if err != nil {
		return nil, err
	}
	if numOf(m.src) != op.Expect || numOf(m.dst) != op.ExpectReplaced {
		return &pb.Result{Mismatch: true}, nil
	}
	switch {
	case m.src == nil:
		return nil, syscall.ENOENT
	case op.NoReplace && m.dst != nil:
		return nil, syscall.EEXIST
	case op.Exchange && m.dst == nil:
		return nil, syscall.ENOENT
	}
	if err := x.checkLoops(m); err != nil {
		return nil, err
	}
	if m.dst != nil && m.src.num == m.dst.num { // two names of one inode: POSIX has nothing happen
		return m.result(), nil
	}
	if err := x.mayRename(m); err != nil {
		return nil, err
	}
	if op.Exchange {
		err = x.exchange(m)
	} else {
		err = x.move(m)
	}
	if err != nil {
		return nil, err
	}
	return m.result(), nil
}

func (x *tx) loadRename(op *pb.Rename) (*renaming, error) {
	m := &renaming{op: op}
	var err error
	if m.from, err = searchDir(x, x.cred, op.Parent, op.Name); err != nil {
		return nil, err
	}
	m.to = m.from
	if op.NewParent != op.Parent {
		m.to, err = searchDir(x, x.cred, op.NewParent, op.NewName)
	} else {
		err = posix.CheckName(op.NewName)
	}
	if err != nil {
		return nil, err
	}
	if m.src, err = child(x, op.Parent, op.Name); err != nil {
		return nil, err
	}
	m.dst, err = child(x, op.NewParent, op.NewName)
	return m, err
}

func (m *renaming) result() *pb.Result {
	res := &pb.Result{Attr: m.src.attr(), Parent: m.from.attr()}
	if m.to != m.from {
		res.Parent2 = m.to.attr()
	}
	if m.dst != nil {
		res.Replaced = m.dst.attr()
	}
	return res
}

// checkLoops refuses to move a directory below itself (EINVAL), and to replace one by something below it (ENOTEMPTY).
func (x *tx) checkLoops(m *renaming) error {
	if m.from == m.to {
		return nil
	}
	if m.src.isDir() {
		switch inside, err := isBelow(x, m.to, m.src.num); {
		case err != nil:
			return err
		case inside:
			return fserr.New(syscall.EINVAL, "a directory cannot move below itself")
		}
	}
	if m.dst == nil || !m.dst.isDir() {
		return nil
	}
	switch inside, err := isBelow(x, m.from, m.dst.num); {
	case err != nil:
		return err
	case inside && m.op.Exchange:
		return fserr.New(syscall.EINVAL, "a directory cannot move below itself")
	case inside:
		return syscall.ENOTEMPTY
	}
	return nil
}

// isBelow tells whether dir is the directory top or lies below it.
func isBelow(r kv.Reader, dir *inode, top uint64) (bool, error) {
	for range maxDepth {
		if dir.num == top {
			return true, nil
		}
		if dir.num == posix.RootInode || dir.nlink == 0 { // a removed directory is below nothing
			return false, nil
		}
		next, err := getDir(r, dir.parent)
		if err != nil {
			return false, damaged(bInode, key8(dir.num))
		}
		dir = next
	}
	return false, damaged(bInode, key8(dir.num))
}

// mayRename checks permissions and types in the order in which Linux does.
func (x *tx) mayRename(m *renaming) error {
	if err := x.mayRemove(m.from, m.src); err != nil {
		return err
	}
	if m.dst == nil {
		if err := x.mayAdd(m.to); err != nil {
			return err
		}
	} else if err := x.mayRemove(m.to, m.dst); err != nil {
		return err
	}
	if m.dst != nil && !m.op.Exchange {
		switch {
		case m.src.isDir() && !m.dst.isDir():
			return syscall.ENOTDIR
		case !m.src.isDir() && m.dst.isDir():
			return syscall.EISDIR
		}
	}
	if m.from != m.to {
		// The ".." of a directory that gets another parent is written.
		if m.src.isDir() {
			if err := m.src.access(x.cred, posix.Write); err != nil {
				return err
			}
		}
		if m.op.Exchange && m.dst.isDir() {
			if err := m.dst.access(x.cred, posix.Write); err != nil {
				return err
			}
		}
	}
	if m.dst != nil && !m.op.Exchange && m.dst.isDir() && m.dst.size > 0 {
		return syscall.ENOTEMPTY
	}
	return nil
}

// move gives src its new name; what had it before loses it.
func (x *tx) move(m *renaming) error {
	x.Delete(bDentry, dentryKey(m.from.num, m.op.Name))
	x.putDentry(m.to.num, m.op.NewName, m.src)
	m.from.size--
	m.to.size++
	if m.src.isDir() && m.from != m.to {
		if err := m.reparent(m.src, m.from, m.to); err != nil {
			return err
		}
	}
	x.changed(m.src)
	if m.dst != nil {
		m.to.size--
		if m.dst.isDir() {
			m.to.nlink--
		}
		if err := x.dropName(m.dst, m.op.Holders); err != nil {
			return err
		}
	}
	x.putInode(m.src)
	x.putRenamed(m)
	return nil
}

// exchange swaps what two names mean.
func (x *tx) exchange(m *renaming) error {
	x.putDentry(m.from.num, m.op.Name, m.dst)
	x.putDentry(m.to.num, m.op.NewName, m.src)
	if m.from != m.to {
		for _, move := range []struct{ in, from, to *inode }{{m.src, m.from, m.to}, {m.dst, m.to, m.from}} {
			if move.in.isDir() {
				if err := m.reparent(move.in, move.from, move.to); err != nil {
					return err
				}
			}
		}
	}
	x.changed(m.src)
	x.changed(m.dst)
	x.putInode(m.src)
	x.putInode(m.dst)
	x.putRenamed(m)
	return nil
}

// reparent points a directory's ".." from one directory to another.
func (m *renaming) reparent(dir, from, to *inode) error {
	from.nlink--
	dir.parent = to.num
	return addLink(to)
}

func (x *tx) putRenamed(m *renaming) {
	x.modified(m.from)
	x.putInode(m.from)
	if m.to != m.from {
		x.modified(m.to)
		x.putInode(m.to)
	}
}
