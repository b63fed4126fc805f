package namespace

import (
	"slices"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func (x *tx) setAttr(op *pb.SetAttr) (*pb.Result, error) {
	in, err := getInode(x, op.Inode)
	if err != nil {
		return nil, err
	}
	if err := x.maySetAttr(in, op); err != nil {
		return nil, err
	}
	before := *in
	if err := x.setOwner(in, op); err != nil {
		return nil, err
	}
	if op.Mode != nil {
		x.setMode(in, *op.Mode)
	}
	if op.Size != nil {
		if err := x.truncate(in, *op.Size); err != nil {
			return nil, err
		}
	}
	x.setTimes(in, op)
	if op.Mode != nil || op.Uid != nil || op.Gid != nil || op.Size != nil || in.atime != before.atime || in.mtime != before.mtime ||
		op.Atime != nil || op.Mtime != nil || op.AtimeNow || op.MtimeNow {
		x.changed(in)
		x.putInode(in)
	}
	return &pb.Result{Attr: in.attr()}, nil
}

// maySetAttr checks all permissions before anything changes.
func (x *tx) maySetAttr(in *inode, op *pb.SetAttr) error {
	owner := x.cred.Root() || x.cred.UID == in.uid
	switch {
	case op.Uid != nil && *op.Uid != in.uid && !x.cred.Root(), op.Uid != nil && !owner:
		return syscall.EPERM
	case op.Gid != nil && !x.cred.Root() && (!owner || *op.Gid != in.gid && !x.cred.InGroup(*op.Gid)):
		return syscall.EPERM
	case op.Mode != nil && !owner:
		return syscall.EPERM
	case op.Mode != nil && in.typ() == syscall.S_IFLNK:
		return syscall.EOPNOTSUPP
	case (op.Atime != nil && !op.AtimeNow || op.Mtime != nil && !op.MtimeNow) && !owner:
		return syscall.EPERM
	}
	if (op.AtimeNow || op.MtimeNow) && !owner {
		if err := in.access(x.cred, posix.Write); err != nil {
			return err
		}
	}
	if op.Size == nil {
		return nil
	}
	switch {
	case in.isDir():
		return syscall.EISDIR
	case !in.isFile():
		return syscall.EINVAL
	case *op.Size > posix.MaxSize:
		return syscall.EFBIG
	case op.Opened:
		return nil
	}
	return in.access(x.cred, posix.Write)
}

func (x *tx) setOwner(in *inode, op *pb.SetAttr) error {
	if op.Uid == nil && op.Gid == nil {
		return nil
	}
	if !in.isDir() {
		// As on Linux, root's chown clears the bits too.
		if err := x.killPrivileges(in); err != nil {
			return err
		}
	}
	if op.Uid != nil {
		in.uid = *op.Uid
	}
	if op.Gid != nil {
		in.gid = *op.Gid
	}
	return nil
}

func (x *tx) setMode(in *inode, mode uint32) {
	mode &= 0o7777
	if !x.cred.Root() && !x.cred.InGroup(in.gid) {
		mode &^= syscall.S_ISGID
	}
	in.mode = in.typ() | mode
}

func (x *tx) setTimes(in *inode, op *pb.SetAttr) {
	if op.Atime != nil {
		in.atime = *op.Atime
	}
	if op.Mtime != nil {
		in.mtime = *op.Mtime
	}
	if op.AtimeNow {
		in.atime = x.now
	}
	if op.MtimeNow {
		in.mtime = x.now
	}
}

// killPrivileges takes from a file what would let others run its changed contents, or run it as its new owner, with more
// than their own rights: the set-id bits and file capabilities. Set-group-id without group execution is no such thing,
// unless the caller is not in the group.
func (x *tx) killPrivileges(in *inode) error {
	in.mode &^= syscall.S_ISUID
	if in.mode&syscall.S_IXGRP != 0 || !x.cred.Root() && !x.cred.InGroup(in.gid) {
		in.mode &^= syscall.S_ISGID
	}
	if in.xattrBytes > 0 {
		return x.dropXattr(in, capabilityXattr)
	}
	return nil
}

// truncate sets a file's length. Growing leaves a hole.
func (x *tx) truncate(in *inode, size uint64) error {
	if size < in.size {
		if err := x.cutExtents(in, size); err != nil {
			return err
		}
	}
	in.size = size
	in.dataVersion = x.index
	in.mtime = max(in.mtime, x.now)
	if !x.cred.Root() {
		return x.killPrivileges(in)
	}
	return nil
}

// dropName takes a name from an inode and records it. Without a name left, the inode is removed unless one of the sessions
// `holders` still lives: it then stays for them.
func (x *tx) dropName(in *inode, holders []uint64) error {
	x.changed(in)
	if in.isDir() {
		in.nlink = 0
	} else {
		in.nlink--
	}
	if in.nlink > 0 {
		x.putInode(in)
		return nil
	}
	held := false
	for _, session := range slices.Compact(slices.Sorted(slices.Values(holders))) {
		_, ok, err := getWindow(x, session)
		if err != nil {
			return err
		}
		if ok {
			held = true
			x.Put(bOrphan, key16(in.num, session), present)
			x.Put(bHeld, key16(session, in.num), present)
		}
	}
	if held {
		x.putInode(in)
		return nil
	}
	return x.removeInode(in)
}

// removeInode deletes an inode with its data and xattrs.
func (x *tx) removeInode(in *inode) error {
	if in.isFile() {
		if err := x.cutExtents(in, 0); err != nil {
			return err
		}
	}
	if in.xattrBytes > 0 {
		x.dropXattrs(in)
	}
	x.Delete(bInode, key8(in.num))
	return x.subtract(&x.c.inodes, 1, "inodes")
}

// release gives up a session's hold on an unlinked inode; the last one removes the inode.
func (x *tx) release(session, num uint64) error {
	key := key16(num, session)
	if x.Get(bOrphan, key) == nil {
		return nil
	}
	x.Delete(bOrphan, key)
	x.Delete(bHeld, key16(session, num))
	held := false
	scan8(x, bOrphan, num, func(_, _ []byte) bool {
		held = true
		return false
	})
	if held {
		return nil
	}
	in, err := getInode(x, num)
	if err != nil {
		return damaged(bOrphan, key)
	}
	return x.removeInode(in)
}

// maxReleases bounds how many inodes one command may release.
const maxReleases = 64 << 10

func (x *tx) releaseInodes(op *pb.ReleaseInodes) (*pb.Result, error) {
	if len(op.Inodes) > maxReleases {
		return nil, fserr.New(syscall.EINVAL, "%d inodes to release, at most %d", len(op.Inodes), maxReleases)
	}
	for _, num := range op.Inodes {
		if err := x.release(x.session, num); err != nil {
			return nil, err
		}
	}
	return &pb.Result{}, nil
}

// subtract takes n from a counter of the state; one that would become negative shows damage.
func (x *tx) subtract(counter *uint64, n uint64, what string) error {
	if *counter < n {
		return fserr.New(syscall.EIO, "damaged record in the metadata: %s: %d %s, to lose %d", countersKey, *counter, what, n)
	}
	*counter -= n
	return nil
}
