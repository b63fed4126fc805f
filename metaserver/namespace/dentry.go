package namespace

import (
	"bytes"
	"math"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// searchDir reads a directory in which the caller wants to look a name up.
func searchDir(r kv.Reader, cred posix.Cred, parent uint64, name []byte) (*inode, error) {
	dir, err := getDir(r, parent)
	if err != nil {
		return nil, err
	}
	if err := dir.access(cred, posix.Execute); err != nil {
		return nil, err
	}
	return dir, posix.CheckName(name)
}

// mayAdd says whether the caller may add an entry to a directory. One that was removed takes none: ENOENT.
func (x *tx) mayAdd(dir *inode) error {
	if dir.nlink == 0 {
		return syscall.ENOENT
	}
	return dir.access(x.cred, posix.Write|posix.Execute)
}

// mayRemove says whether the caller may take the entry of in out of a directory.
func (x *tx) mayRemove(dir, in *inode) error {
	if err := dir.access(x.cred, posix.Write|posix.Execute); err != nil {
		return err
	}
	return posix.Sticky(x.cred, dir.uid, dir.mode, in.uid)
}

func (x *tx) putDentry(parent uint64, name []byte, in *inode) {
	x.Put(bDentry, dentryKey(parent, name), encodeDentry(in.num, in.mode))
}

// addLink counts a new subdirectory's "..".
func addLink(dir *inode) error {
	if dir.nlink == math.MaxUint32 {
		return syscall.EMLINK
	}
	dir.nlink++
	return nil
}

func (x *tx) makeNode(op *pb.MakeNode) (*pb.Result, error) {
	dir, err := searchDir(x, x.cred, op.Parent, op.Name)
	if err != nil {
		return nil, err
	}
	in, err := x.newNode(op)
	if err != nil {
		return nil, err
	}
	old, err := child(x, op.Parent, op.Name)
	if err != nil {
		return nil, err
	}
	if old != nil {
		if op.Exclusive || !in.isFile() || !old.isFile() {
			return nil, syscall.EEXIST
		}
		return &pb.Result{Existed: true, Attr: old.attr(), Parent: dir.attr()}, nil
	}
	if err := x.mayAdd(dir); err != nil {
		return nil, err
	}
	if t := in.typ(); (t == syscall.S_IFBLK || t == syscall.S_IFCHR) && !x.cred.Root() {
		return nil, syscall.EPERM
	}
	x.inheritGroup(in, dir)
	if in.isDir() || in.isFile() {
		in.layout = dir.layout
	}
	if in.isDir() {
		in.nlink, in.parent = 2, dir.num
		if err := addLink(dir); err != nil {
			return nil, err
		}
	}
	x.c.nextInode++
	x.c.inodes++
	dir.size++
	x.modified(dir)
	x.putInode(dir)
	x.putInode(in)
	x.putDentry(dir.num, op.Name, in)
	return &pb.Result{Attr: in.attr(), Parent: dir.attr()}, nil
}

// newNode is the inode that MakeNode asks for, before it takes anything from its directory.
func (x *tx) newNode(op *pb.MakeNode) (*inode, error) {
	in := &inode{num: x.c.nextInode, nlink: 1, uid: x.cred.UID, gid: x.cred.GID, atime: x.now, mtime: x.now, ctime: x.now, btime: x.now,
		mode: op.Mode & (syscall.S_IFMT | 0o7777), version: x.index, dataVersion: x.index}
	switch in.typ() {
	case 0: // mknod(2): a type of zero is a regular file
		in.mode |= syscall.S_IFREG
	case syscall.S_IFREG, syscall.S_IFDIR, syscall.S_IFIFO, syscall.S_IFSOCK:
	case syscall.S_IFBLK, syscall.S_IFCHR:
		in.rdev = op.Rdev
	case syscall.S_IFLNK:
		switch {
		case len(op.Symlink) == 0:
			return nil, syscall.ENOENT
		case len(op.Symlink) > posix.MaxSymlink:
			return nil, fserr.New(syscall.ENAMETOOLONG, "a symlink's target of %d bytes, at most %d", len(op.Symlink), posix.MaxSymlink)
		case bytes.IndexByte(op.Symlink, 0) >= 0:
			return nil, fserr.New(syscall.EINVAL, "a NUL in a symlink's target")
		}
		in.mode = syscall.S_IFLNK | 0o777
		in.symlink, in.size = op.Symlink, uint64(len(op.Symlink))
	default:
		return nil, fserr.New(syscall.EINVAL, "no such file type: mode %#o", op.Mode)
	}
	if op.Symlink != nil && in.typ() != syscall.S_IFLNK {
		return nil, fserr.New(syscall.EINVAL, "a target for something that is no symlink: mode %#o", op.Mode)
	}
	return in, nil
}

// inheritGroup gives a new inode its group: in a set-group-id directory the directory's, and a new directory the bit too.
func (x *tx) inheritGroup(in, dir *inode) {
	if dir.mode&syscall.S_ISGID == 0 {
		return
	}
	in.gid = dir.gid
	switch {
	case in.isDir():
		in.mode |= syscall.S_ISGID
	case !x.cred.Root() && !x.cred.InGroup(in.gid) && in.mode&syscall.S_IXGRP != 0:
		in.mode &^= syscall.S_ISGID // nobody gets to run code as a group that he is not in
	}
}

func (x *tx) link(op *pb.Link) (*pb.Result, error) {
	in, err := getInode(x, op.Inode)
	if err != nil {
		return nil, err
	}
	dir, err := searchDir(x, x.cred, op.Parent, op.Name)
	if err != nil {
		return nil, err
	}
	switch old, _, err := getDentry(x, op.Parent, op.Name); {
	case err != nil:
		return nil, err
	case old != 0:
		return nil, syscall.EEXIST
	}
	if err := x.mayAdd(dir); err != nil {
		return nil, err
	}
	switch {
	case in.isDir():
		return nil, syscall.EPERM
	case in.nlink == 0: // unlinked but open: it stays without a name
		return nil, syscall.ENOENT
	case in.nlink >= posix.MaxLinks:
		return nil, syscall.EMLINK
	}
	in.nlink++
	x.changed(in)
	dir.size++
	x.modified(dir)
	x.putInode(in)
	x.putInode(dir)
	x.putDentry(dir.num, op.Name, in)
	return &pb.Result{Attr: in.attr(), Parent: dir.attr()}, nil
}

func (x *tx) unlink(op *pb.Unlink) (*pb.Result, error) {
	dir, err := searchDir(x, x.cred, op.Parent, op.Name)
	if err != nil {
		return nil, err
	}
	in, err := child(x, op.Parent, op.Name)
	if err != nil {
		return nil, err
	}
	if numOf(in) != op.Expect {
		return &pb.Result{Mismatch: true}, nil
	}
	if in == nil {
		return nil, syscall.ENOENT
	}
	if err := x.mayRemove(dir, in); err != nil {
		return nil, err
	}
	switch {
	case op.Directory && !in.isDir():
		return nil, syscall.ENOTDIR
	case !op.Directory && in.isDir():
		return nil, syscall.EISDIR
	case in.isDir() && in.size > 0:
		return nil, syscall.ENOTEMPTY
	}
	x.Delete(bDentry, dentryKey(dir.num, op.Name))
	dir.size--
	if in.isDir() {
		dir.nlink--
	}
	x.modified(dir)
	x.putInode(dir)
	if err := x.dropName(in, op.Holders); err != nil {
		return nil, err
	}
	return &pb.Result{Attr: in.attr(), Parent: dir.attr()}, nil
}

// numOf is an inode's number, 0 for none.
func numOf(in *inode) uint64 {
	if in == nil {
		return 0
	}
	return in.num
}
