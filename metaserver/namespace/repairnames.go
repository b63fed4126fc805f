package namespace

import (
	"strconv"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	lostFound     = "lost+found"
	lostFoundMode = syscall.S_IFDIR | 0o700
	// maxLostNames is how many names are tried in /lost+found, where people can put things, too.
	maxLostNames = 16
	// maxLookedAt bounds the entries of a directory that are read to find one.
	maxLookedAt = 16 << 10
)

// fixInode sets the fields of an inode that follow from others.
func (x *tx) fixInode(num uint64) bool {
	in, err := getInode(x, num)
	if err != nil {
		return false
	}
	changed := false
	if n := uint64(len(in.symlink)); in.typ() == syscall.S_IFLNK && in.size != n {
		in.size, changed = n, true
	}
	if !in.isDir() && in.parent != 0 {
		in.parent, changed = 0, true
	}
	if !in.isDir() && !in.isFile() && !in.layout.IsZero() {
		in.layout, changed = chunk.Layout{}, true
	}
	if changed {
		x.putFixed(in)
	}
	return changed
}

// fixParent points a directory's ".." to where its name is.
func (x *tx) fixParent(f *pb.StateFix) bool {
	if len(f.Key) < 9 {
		return false
	}
	parent, _ := nameOf(f.Key)
	num, _, err := decodeDentry(x.Get(bDentry, f.Key))
	if err != nil || num != f.Id {
		return false
	}
	in, err := getInode(x, num)
	if err != nil || !in.isDir() || in.nlink == 0 || in.parent == parent || num == posix.RootInode {
		return false
	}
	in.parent = parent
	x.putFixed(in)
	return true
}

// fixName removes a name of nothing, and gives one the type of its inode.
func (x *tx) fixName(k []byte) bool {
	if len(k) < 9 {
		return false
	}
	parent, _ := nameOf(k)
	num, typ, err := decodeDentry(x.Get(bDentry, k))
	if err != nil {
		return false
	}
	if x.Get(bInode, key8(num)) == nil {
		dir, err := getInode(x, parent)
		if err != nil || !dir.isDir() {
			return false
		}
		x.Delete(bDentry, k)
		dir.size--
		x.modified(dir)
		x.putInode(dir)
		return true
	}
	in, err := getInode(x, num)
	if err != nil || in.typ() == typ {
		return false
	}
	x.Put(bDentry, k, encodeDentry(num, in.mode))
	return true
}

// attach names an inode that has no name in /lost+found. The check saw all names of all directories: what it found holds as long
// as the inode did not change, as every command that gives it a name, or takes one, changes it.
func (x *tx) attach(f *pb.StateFix) bool {
	in, err := getInode(x, f.Id)
	if err != nil || in.version != f.Version || in.num == posix.RootInode {
		return false
	}
	if len(f.Key) == 0 && (in.isDir() && x.isNamed(in) || in.nlink == 0 && len(numbersUnder(x, bOrphan, in.num)) > 0) {
		return false // it has none where the check was made, but need not have lost it here
	}
	return x.putLost(in, uint32(f.Links), f.Key)
}

// isNamed looks for a directory's name in its parent, among so many entries.
func (x *tx) isNamed(in *inode) (named bool) {
	n := 0
	scan8(x, bDentry, in.parent, func(_, v []byte) bool {
		num, _, err := decodeDentry(v)
		named = err == nil && num == in.num
		n++
		return !named && n < maxLookedAt
	})
	return named
}

// namedBy returns the directory in which dentry k names in, nil if it does not.
func (x *tx) namedBy(k []byte, in *inode) *inode {
	if len(k) < 9 {
		return nil
	}
	parent, _ := nameOf(k)
	dir, err := getInode(x, parent)
	if num, _, e := decodeDentry(x.Get(bDentry, k)); err != nil || e != nil || num != in.num || !dir.isDir() || dir.size == 0 {
		return nil
	}
	return dir
}

// putLost names an inode in /lost+found, in place of a dentry if there is a key of one.
func (x *tx) putLost(in *inode, links uint32, instead []byte) bool {
	lost := x.lostFound()
	if lost == nil || lost.num == in.num {
		return false
	}
	name := x.freeName(lost, in.num)
	if name == nil {
		return false
	}
	if len(instead) > 0 && !x.unname(in, instead, lost) {
		return false
	}
	in.nlink = links
	if in.isDir() {
		in.parent = lost.num
		lost.nlink++
	}
	x.changed(in)
	x.putInode(in)
	lost.size++
	x.modified(lost)
	x.putInode(lost)
	x.putDentry(lost.num, name, in)
	return true
}

// unname takes a dentry away that names in.
func (x *tx) unname(in *inode, k []byte, lost *inode) bool {
	dir := x.namedBy(k, in)
	if dir == nil || dir.num == lost.num {
		return false
	}
	x.Delete(bDentry, k)
	dir.size--
	if in.isDir() {
		dir.nlink--
	}
	x.modified(dir)
	x.putInode(dir)
	if dir.num == in.num { // a directory within itself
		in.size = dir.size
	}
	return true
}

// freeName is the inode's number in decimal, with something behind where that is taken.
func (x *tx) freeName(dir *inode, num uint64) []byte {
	name := strconv.AppendUint(nil, num, 10)
	for i := range maxLostNames {
		try := name
		if i > 0 {
			try = strconv.AppendInt(append(name[:len(name):len(name)], '-'), int64(i), 10)
		}
		if x.Get(bDentry, dentryKey(dir.num, try)) == nil {
			return try
		}
	}
	return nil
}

// lostFound returns the directory, made if it is missing; nil where something else has its name. It belongs to whom the root
// belongs to: nobody else is sure to be able to look at it.
func (x *tx) lostFound() *inode {
	root, err := getDir(x, posix.RootInode)
	if err != nil {
		return nil
	}
	num, _, err := getDentry(x, root.num, []byte(lostFound))
	if err != nil {
		return nil
	}
	if num != 0 {
		if in, err := getDir(x, num); err == nil && in.nlink > 0 {
			return in
		}
		return nil
	}
	in := &inode{num: x.c.nextInode, mode: lostFoundMode, nlink: 2, uid: root.uid, gid: root.gid, parent: root.num,
		atime: x.now, mtime: x.now, ctime: x.now, btime: x.now, version: x.index, dataVersion: x.index}
	x.c.nextInode++
	x.c.inodes++
	root.nlink++
	root.size++
	x.modified(root)
	x.putInode(root)
	x.putInode(in)
	x.putDentry(root.num, []byte(lostFound), in)
	return in
}

// remake makes an inode anew that is missing, for what is left of it: entries of a directory, or extents of a file. Nothing can
// have happened to them since the check, as all commands need the inode. Where it has a name it stays there.
func (x *tx) remake(f *pb.StateFix) bool {
	root, err := getDir(x, posix.RootInode)
	if err != nil || f.Id == 0 || f.Id >= x.c.nextInode || x.Get(bInode, key8(f.Id)) != nil {
		return false
	}
	in := &inode{num: f.Id, nlink: uint32(f.Links), uid: root.uid, gid: root.gid, size: f.Size, allocated: f.Allocated,
		atime: x.now, mtime: x.now, ctime: x.now, btime: x.now, version: x.index, dataVersion: x.index}
	entries, extents := false, false
	scan8(x, bDentry, f.Id, func(_, _ []byte) bool { entries = true; return false })
	scan8(x, bExtent, f.Id, func(_, _ []byte) bool { extents = true; return false })
	switch {
	case entries && !extents:
		in.mode = syscall.S_IFDIR | 0o700
	case extents && !entries:
		in.mode = syscall.S_IFREG | 0o600
	default:
		return false
	}
	if len(f.Key) == 0 {
		return x.putLost(in, in.nlink, nil)
	}
	num, typ, err := decodeDentry(x.Get(bDentry, f.Key))
	if len(f.Key) < 9 || err != nil || num != in.num || typ != in.typ() {
		return false
	}
	if in.isDir() {
		in.parent, _ = nameOf(f.Key)
	}
	x.putInode(in)
	return true
}
