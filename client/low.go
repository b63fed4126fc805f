package client

import (
	"context"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Low is the file system in terms of inodes, for adapters. Names are single components, "." and ".." are not among them.
// Errors carry an errno (see fserr.Errno) and name no path.
type Low struct{ fs *FS }

// Observer is told what the cache lost.
type Observer interface {
	// Revoked: another client is about to change ino, or the cache gives it up. Whoever keeps copies of its attributes or
	// (of a directory) names drops them and calls done; the other client waits for that. It must not block, and may call
	// done from another goroutine.
	Revoked(ino Ino, done func())
}

// Observe adds an observer, which lives as long as the FS.
func (l *Low) Observe(o Observer) {
	l.fs.meta.Observe(func(ino uint64, done func()) { o.Revoked(Ino(ino), done) })
}

// Lookup finds the inode that has the name in the directory parent, which the caller must be allowed to search. ENOENT
// when there is none.
func (l *Low) Lookup(ctx context.Context, cred Cred, parent Ino, name string) (Attr, error) {
	if err := posix.CheckName([]byte(name)); err != nil {
		return Attr{}, err
	}
	found, err := l.fs.meta.Lookup(ctx, cred, uint64(parent), name)
	if err != nil {
		return Attr{}, err
	}
	if found.Attr == nil {
		return Attr{ParentLeaseUntil: found.NameUntil}, syscall.ENOENT
	}
	a := l.fs.merged(found.Attr, found.Until)
	a.ParentLeaseUntil = found.NameUntil
	return a, nil
}

// GetAttr returns the attributes of an inode, what this client has written and not yet committed included.
func (l *Low) GetAttr(ctx context.Context, ino Ino) (Attr, error) {
	a, until, err := l.fs.meta.GetAttr(ctx, uint64(ino))
	if err != nil {
		return Attr{}, err
	}
	return l.fs.merged(a, until), nil
}

// Access checks mask (AccessRead, AccessWrite and AccessExecute, or'ed) as access(2) does.
func (l *Low) Access(ctx context.Context, cred Cred, ino Ino, mask uint32) error {
	a, _, err := l.fs.meta.GetAttr(ctx, uint64(ino))
	if err != nil {
		return err
	}
	return posix.Access(cred, a.Uid, a.Gid, a.Mode, mask)
}

// SetAttr changes attributes; the result is how they are then.
func (l *Low) SetAttr(ctx context.Context, cred Cred, ino Ino, s SetAttr) (Attr, error) {
	if s.Size != nil && *s.Size > posix.MaxSize {
		return Attr{}, syscall.EFBIG
	}
	op := &pb.SetAttr{Inode: uint64(ino), Mode: s.Mode, Uid: s.UID, Gid: s.GID, Size: s.Size, AtimeNow: s.AtimeNow, MtimeNow: s.MtimeNow, Opened: s.Opened}
	op.Atime, op.Mtime = nanos(s.Atime), nanos(s.Mtime)
	a, err := l.fs.setAttr(ctx, cred, op)
	if err != nil {
		return Attr{}, err
	}
	return a, nil
}

// Mknod makes a file, FIFO, socket or device node: mode has the type, the umask is applied already.
func (l *Low) Mknod(ctx context.Context, cred Cred, parent Ino, name string, mode, rdev uint32) (Attr, error) {
	return l.makeNode(ctx, cred, &pb.MakeNode{Parent: uint64(parent), Name: []byte(name), Mode: mode, Rdev: rdev, Exclusive: true})
}

// Mkdir makes a directory; the umask is applied to mode already.
func (l *Low) Mkdir(ctx context.Context, cred Cred, parent Ino, name string, mode uint32) (Attr, error) {
	return l.makeNode(ctx, cred, &pb.MakeNode{Parent: uint64(parent), Name: []byte(name), Mode: mode&^syscall.S_IFMT | syscall.S_IFDIR, Exclusive: true})
}

// Symlink makes a symlink to target.
func (l *Low) Symlink(ctx context.Context, cred Cred, parent Ino, name, target string) (Attr, error) {
	switch {
	case target == "":
		return Attr{}, syscall.ENOENT
	case len(target) > posix.MaxSymlink:
		return Attr{}, fserr.New(syscall.ENAMETOOLONG, "a symlink target of %d bytes, at most %d", len(target), posix.MaxSymlink)
	}
	return l.makeNode(ctx, cred, &pb.MakeNode{Parent: uint64(parent), Name: []byte(name), Mode: syscall.S_IFLNK | 0o777, Symlink: []byte(target), Exclusive: true})
}

func (l *Low) makeNode(ctx context.Context, cred Cred, op *pb.MakeNode) (Attr, error) {
	if err := posix.CheckName(op.Name); err != nil {
		return Attr{}, err
	}
	r, err := l.fs.meta.Mutate(ctx, cred, &pb.Op{Op: &pb.Op_MakeNode{MakeNode: op}})
	if err != nil {
		return Attr{}, err
	}
	return l.resultAttr(r)
}

// Link gives the inode one more name.
func (l *Low) Link(ctx context.Context, cred Cred, ino, parent Ino, name string) (Attr, error) {
	if err := posix.CheckName([]byte(name)); err != nil {
		return Attr{}, err
	}
	r, err := l.fs.meta.Mutate(ctx, cred, &pb.Op{Op: &pb.Op_Link{Link: &pb.Link{Inode: uint64(ino), Parent: uint64(parent), Name: []byte(name)}}})
	if err != nil {
		return Attr{}, err
	}
	return l.resultAttr(r)
}

func (l *Low) resultAttr(r *pb.Result) (Attr, error) {
	if r.Attr == nil {
		return Attr{}, fserr.New(syscall.EIO, "the metaserver's answer has no attributes")
	}
	return l.fs.merged(r.Attr, l.fs.meta.Until(r.Attr.Inode)), nil
}

// Unlink removes a name that is no directory's.
func (l *Low) Unlink(ctx context.Context, cred Cred, parent Ino, name string) error {
	return l.unlink(ctx, cred, parent, name, false)
}

// Rmdir removes an empty directory.
func (l *Low) Rmdir(ctx context.Context, cred Cred, parent Ino, name string) error {
	return l.unlink(ctx, cred, parent, name, true)
}

func (l *Low) unlink(ctx context.Context, cred Cred, parent Ino, name string, dir bool) error {
	if err := posix.CheckName([]byte(name)); err != nil {
		return err
	}
	_, err := l.fs.meta.Mutate(ctx, cred, &pb.Op{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{Parent: uint64(parent), Name: []byte(name), Directory: dir}}})
	return err
}

// Rename moves a name, replacing what has the new one unless flags say otherwise.
func (l *Low) Rename(ctx context.Context, cred Cred, parent Ino, name string, newParent Ino, newName string, flags RenameFlags) error {
	if err := posix.CheckName([]byte(name)); err != nil {
		return err
	}
	if err := posix.CheckName([]byte(newName)); err != nil {
		return err
	}
	if flags&^(RenameNoReplace|RenameExchange) != 0 || flags == RenameNoReplace|RenameExchange {
		return fserr.New(syscall.EINVAL, "rename flags %#x", uint32(flags))
	}
	_, err := l.fs.meta.Mutate(ctx, cred, &pb.Op{Op: &pb.Op_Rename{Rename: &pb.Rename{
		Parent: uint64(parent), Name: []byte(name), NewParent: uint64(newParent), NewName: []byte(newName),
		NoReplace: flags&RenameNoReplace != 0, Exchange: flags&RenameExchange != 0,
	}}})
	return err
}

// Create makes a regular file and opens it, or opens the one that is there: with O_EXCL in flags that is EEXIST. mode has
// permission bits, the umask applied already.
func (l *Low) Create(ctx context.Context, cred Cred, parent Ino, name string, flags int, mode uint32) (Attr, *Handle, error) {
	if err := posix.CheckName([]byte(name)); err != nil {
		return Attr{}, nil, err
	}
	op := &pb.MakeNode{Parent: uint64(parent), Name: []byte(name), Mode: mode&^syscall.S_IFMT | syscall.S_IFREG, Exclusive: flags&syscall.O_EXCL != 0}
	for {
		attr, existed, err := l.fs.meta.Create(ctx, cred, op)
		if err != nil {
			return Attr{}, nil, err
		}
		if !existed {
			h := l.fs.newHandle(cred, attr, flags)
			return l.fs.merged(attr, l.fs.meta.Until(attr.Inode)), h, nil
		}
		h, err := l.Open(ctx, cred, Ino(attr.Inode), flags)
		if vanished(err) && ctx.Err() == nil {
			continue // removed in between
		}
		if err != nil {
			return Attr{}, nil, err
		}
		a, err := h.Attr(ctx)
		if err != nil {
			_ = h.Release(ctx) // nothing was written
			return Attr{}, nil, err
		}
		return a, h, nil
	}
}

// vanished tells whether an inode that had a name a moment ago is gone.
func vanished(err error) bool {
	errno := fserr.Errno(err)
	return errno == syscall.ENOENT || errno == syscall.ESTALE
}

// Open opens a regular file; flags are those of open(2). Permission is checked now and not again.
func (l *Low) Open(ctx context.Context, cred Cred, ino Ino, flags int) (*Handle, error) {
	attr, err := l.fs.meta.Open(ctx, cred, uint64(ino), accessOf(flags))
	if err != nil {
		return nil, err
	}
	if err := openable(attr, flags); err != nil {
		l.fs.meta.CloseInode(attr.Inode)
		return nil, err
	}
	h := l.fs.newHandle(cred, attr, flags)
	if flags&syscall.O_TRUNC != 0 {
		if err := h.Truncate(ctx, 0); err != nil {
			_ = h.Release(ctx) // nothing was written
			return nil, err
		}
	}
	return h, nil
}

func openable(a *pb.Attr, flags int) error {
	switch a.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		return nil
	case syscall.S_IFDIR:
		return syscall.EISDIR
	case syscall.S_IFLNK:
		return syscall.ELOOP
	}
	return syscall.ENXIO // what FIFOs and devices do is their host's business
}

// fmodeExec is how Linux passes an open for execution to a FUSE server.
const fmodeExec = 0x20

func accessOf(flags int) uint32 {
	var want uint32
	switch flags & syscall.O_ACCMODE {
	case syscall.O_RDONLY:
		want = posix.Read
	case syscall.O_WRONLY:
		want = posix.Write
	default:
		want = posix.Read | posix.Write
	}
	if flags&fmodeExec != 0 {
		want = posix.Execute
	}
	if flags&syscall.O_TRUNC != 0 {
		want |= posix.Write
	}
	return want
}

// GetXattr returns the value of an extended attribute; ENODATA when it is not set.
func (l *Low) GetXattr(ctx context.Context, cred Cred, ino Ino, name string) ([]byte, error) {
	return l.fs.meta.GetXattr(ctx, cred, uint64(ino), name)
}

// ListXattr returns the names of the extended attributes.
func (l *Low) ListXattr(ctx context.Context, cred Cred, ino Ino) ([]string, error) {
	return l.fs.meta.ListXattr(ctx, cred, uint64(ino))
}

// Flags of SetXattr, as of setxattr(2).
const (
	XattrCreate  = 1 // EEXIST if it is set
	XattrReplace = 2 // ENODATA if it is not set
)

// SetXattr sets an extended attribute.
func (l *Low) SetXattr(ctx context.Context, cred Cred, ino Ino, name string, value []byte, flags int) error {
	_, err := l.fs.meta.Mutate(ctx, cred, &pb.Op{Op: &pb.Op_SetXattr{SetXattr: &pb.SetXattr{
		Inode: uint64(ino), Name: name, Value: value, Create: flags&XattrCreate != 0, Replace: flags&XattrReplace != 0}}})
	return err
}

// RemoveXattr removes an extended attribute; ENODATA when it is not set.
func (l *Low) RemoveXattr(ctx context.Context, cred Cred, ino Ino, name string) error {
	_, err := l.fs.meta.Mutate(ctx, cred, &pb.Op{Op: &pb.Op_RemoveXattr{RemoveXattr: &pb.RemoveXattr{Inode: uint64(ino), Name: name}}})
	return err
}

// StatFS says how much fits into the cluster.
func (l *Low) StatFS(ctx context.Context) (StatFS, error) {
	r, err := l.fs.meta.StatFS(ctx)
	if err != nil {
		return StatFS{}, err
	}
	return StatFS{Capacity: r.Capacity, Free: r.Free, Total: r.Total, Available: r.Available, Inodes: r.Inodes}, nil
}

func nanos(t *time.Time) *int64 {
	if t == nil {
		return nil
	}
	n := t.UnixNano()
	return &n
}
