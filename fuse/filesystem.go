package fuse

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/internal/fserr"
)

// blockSize is st_blksize: what programs read and write at once if they go by it, bytes.
const blockSize = 64 << 10

// filesystem answers the kernel's requests. A node of the kernel is an inode of the file system by the same number, but
// for the root of the mount, which the kernel calls 1. It keeps no other state than the tables of open files.
type filesystem struct {
	gofuse.RawFileSystem // ENOSYS for what is not here

	ctx     context.Context // ends when the mount is given up
	low     *client.Low
	root    client.Ino
	log     *slog.Logger
	metrics *metrics
	kernel  *kernelCache
	callers callers
	files   table[*file]
	dirs    table[*dir]
	lost    lost

	unmounted chan struct{} // closed when the kernel asks nothing any more

	warnMu sync.Mutex
	warned time.Time
}

// call is a request being served.
type call struct {
	request
	since uint64 // see kernelCache.begin
}

// serve runs the handler of one request and turns its error into what the kernel expects.
func (f *filesystem) serve(o op, cancel <-chan struct{}, handle func(c *call) error) gofuse.Status {
	start := time.Now()
	c := &call{request: request{Context: f.ctx, interrupt: cancel, grace: interruptGrace}, since: f.kernel.begin()}
	err := handle(c)
	c.end()
	status := gofuse.Status(fserr.Errno(err))
	if status == gofuse.ENOSYS { // would make the kernel never ask again
		status = gofuse.Status(syscall.EOPNOTSUPP)
	}
	if status == gofuse.EIO {
		f.warn("a request failed", "op", opNames[o], "err", err)
	}
	f.metrics.observe(o, start, status)
	return status
}

// warn logs at most one line a second: a broken disk makes thousands of them.
func (f *filesystem) warn(msg string, args ...any) {
	f.warnMu.Lock()
	now := time.Now()
	quiet := now.Sub(f.warned) < time.Second
	if !quiet {
		f.warned = now
	}
	f.warnMu.Unlock()
	if !quiet {
		f.log.Warn(msg, args...)
	}
}

func (f *filesystem) String() string { return "shoal" }

func (f *filesystem) SetDebug(bool) {}

func (f *filesystem) ino(node uint64) client.Ino {
	if node == gofuse.FUSE_ROOT_ID {
		return f.root
	}
	return client.Ino(node)
}

func (f *filesystem) node(ino client.Ino) uint64 {
	if ino == f.root {
		return gofuse.FUSE_ROOT_ID
	}
	return uint64(ino)
}

func (f *filesystem) cred(h *gofuse.InHeader) client.Cred { return f.callers.cred(&h.Caller) }

func fillAttr(out *gofuse.Attr, a *client.Attr) {
	*out = gofuse.Attr{
		Ino: uint64(a.Ino), Size: a.Size, Blocks: (a.Allocated + 511) / 512,
		Atime: uint64(a.Atime.Unix()), Atimensec: uint32(a.Atime.Nanosecond()),
		Mtime: uint64(a.Mtime.Unix()), Mtimensec: uint32(a.Mtime.Nanosecond()),
		Ctime: uint64(a.Ctime.Unix()), Ctimensec: uint32(a.Ctime.Nanosecond()),
		Mode: a.Mode, Nlink: a.Nlink, Owner: gofuse.Owner{Uid: a.UID, Gid: a.GID}, Rdev: a.Rdev, Blksize: blockSize,
	}
}

// busyFor is how long after its last change a directory is likely to be changed again.
const busyFor = 10 * time.Second

// names returns how long the kernel may use a name of dir.
func (f *filesystem) names(c *call, dir client.Ino, until time.Time) time.Duration {
	return f.kernel.names(dir, c.since, until, func() bool {
		a, err := f.low.GetAttr(c, dir)
		return err != nil || time.Since(a.Mtime) < busyFor
	})
}

// entry answers with a name of dir and its inode.
func (f *filesystem) entry(c *call, out *gofuse.EntryOut, dir client.Ino, a *client.Attr, nameUntil time.Time) {
	out.NodeId = f.node(a.Ino)
	out.Generation = 0 // inode numbers are never used twice
	fillAttr(&out.Attr, a)
	out.SetAttrTimeout(f.kernel.attrs(a.Ino, c.since, a.LeaseUntil))
	out.SetEntryTimeout(f.names(c, dir, nameUntil))
}

// made answers with a name that this request made. It is not for the kernel to remember yet: the next lookup, which costs
// no message, says how long it holds.
func (f *filesystem) made(c *call, out *gofuse.EntryOut, dir client.Ino, a *client.Attr) {
	f.entry(c, out, dir, a, time.Time{})
}

func (f *filesystem) attr(c *call, out *gofuse.AttrOut, a *client.Attr) {
	fillAttr(&out.Attr, a)
	out.SetTimeout(f.kernel.attrs(a.Ino, c.since, a.LeaseUntil))
}

func (f *filesystem) Lookup(cancel <-chan struct{}, h *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	return f.serve(opLookup, cancel, func(c *call) error {
		dir := f.ino(h.NodeId)
		a, err := f.lookup(c, h, name)
		if err == nil {
			f.entry(c, out, dir, &a, a.ParentLeaseUntil)
			return nil
		}
		if fserr.Errno(err) == syscall.ENOENT {
			if d := f.names(c, dir, a.ParentLeaseUntil); d > 0 {
				out.NodeId = 0 // there is no such name, and that may be remembered
				out.SetEntryTimeout(d)
				return nil
			}
		}
		return err
	})
}

// Forget does nothing: nothing is kept for a node.
func (f *filesystem) Forget(node, nlookup uint64) {}

func (f *filesystem) GetAttr(cancel <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	return f.serve(opGetAttr, cancel, func(c *call) error {
		a, err := f.low.GetAttr(c, f.ino(in.NodeId))
		if err != nil {
			return f.stale(&in.InHeader, err)
		}
		f.attr(c, out, &a)
		return nil
	})
}

func (f *filesystem) SetAttr(cancel <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	return f.serve(opSetAttr, cancel, func(c *call) error {
		ino := f.ino(in.NodeId)
		set, any := setAttrOf(in)
		var a client.Attr
		var err error
		if any {
			a, err = f.low.SetAttr(c, f.cred(&in.InHeader), ino, set)
		} else {
			a, err = f.low.GetAttr(c, ino)
		}
		if err != nil {
			return stale(err)
		}
		f.attr(c, out, &a)
		return nil
	})
}

// setAttrOf translates the request, and says whether there is anything to change: ctime is the server's.
func setAttrOf(in *gofuse.SetAttrIn) (set client.SetAttr, any bool) {
	if m, ok := in.GetMode(); ok {
		set.Mode, any = &m, true
	}
	if u, ok := in.GetUID(); ok {
		set.UID, any = &u, true
	}
	if g, ok := in.GetGID(); ok {
		set.GID, any = &g, true
	}
	if s, ok := in.GetSize(); ok {
		_, set.Opened = in.GetFh()
		set.Size, any = &s, true
	}
	switch {
	case in.Valid&gofuse.FATTR_ATIME == 0:
	case in.Valid&gofuse.FATTR_ATIME_NOW != 0:
		set.AtimeNow, any = true, true
	default:
		t := time.Unix(int64(in.Atime), int64(in.Atimensec))
		set.Atime, any = &t, true
	}
	switch {
	case in.Valid&gofuse.FATTR_MTIME == 0:
	case in.Valid&gofuse.FATTR_MTIME_NOW != 0:
		set.MtimeNow, any = true, true
	default:
		t := time.Unix(int64(in.Mtime), int64(in.Mtimensec))
		set.Mtime, any = &t, true
	}
	return set, any
}

func (f *filesystem) Mknod(cancel <-chan struct{}, in *gofuse.MknodIn, name string, out *gofuse.EntryOut) gofuse.Status {
	return f.serve(opMknod, cancel, func(c *call) error {
		dir := f.ino(in.NodeId)
		a, err := f.low.Mknod(c, f.cred(&in.InHeader), dir, name, in.Mode, in.Rdev)
		if err == nil {
			f.made(c, out, dir, &a)
		}
		return err
	})
}

func (f *filesystem) Mkdir(cancel <-chan struct{}, in *gofuse.MkdirIn, name string, out *gofuse.EntryOut) gofuse.Status {
	return f.serve(opMkdir, cancel, func(c *call) error {
		dir := f.ino(in.NodeId)
		a, err := f.low.Mkdir(c, f.cred(&in.InHeader), dir, name, in.Mode)
		if err == nil {
			f.made(c, out, dir, &a)
		}
		return err
	})
}

func (f *filesystem) Symlink(cancel <-chan struct{}, h *gofuse.InHeader, target, name string, out *gofuse.EntryOut) gofuse.Status {
	return f.serve(opSymlink, cancel, func(c *call) error {
		dir := f.ino(h.NodeId)
		a, err := f.low.Symlink(c, f.cred(h), dir, name, target)
		if err == nil {
			f.made(c, out, dir, &a)
		}
		return err
	})
}

func (f *filesystem) Link(cancel <-chan struct{}, in *gofuse.LinkIn, name string, out *gofuse.EntryOut) gofuse.Status {
	return f.serve(opLink, cancel, func(c *call) error {
		dir := f.ino(in.NodeId)
		a, err := f.low.Link(c, f.cred(&in.InHeader), f.ino(in.Oldnodeid), dir, name)
		if err == nil {
			f.made(c, out, dir, &a)
		}
		return err
	})
}

func (f *filesystem) Unlink(cancel <-chan struct{}, h *gofuse.InHeader, name string) gofuse.Status {
	return f.serve(opUnlink, cancel, func(c *call) error { return f.low.Unlink(c, f.cred(h), f.ino(h.NodeId), name) })
}

func (f *filesystem) Rmdir(cancel <-chan struct{}, h *gofuse.InHeader, name string) gofuse.Status {
	return f.serve(opRmdir, cancel, func(c *call) error { return f.low.Rmdir(c, f.cred(h), f.ino(h.NodeId), name) })
}

func (f *filesystem) Rename(cancel <-chan struct{}, in *gofuse.RenameIn, name, newName string) gofuse.Status {
	return f.serve(opRename, cancel, func(c *call) error {
		var flags client.RenameFlags
		if in.Opcode == opcodeRename2 { // RENAME has no flags: what is there is not from the kernel
			if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
				return fserr.New(syscall.EINVAL, "rename flags %#x", in.Flags)
			}
			if in.Flags&unix.RENAME_NOREPLACE != 0 {
				flags |= client.RenameNoReplace
			}
			if in.Flags&unix.RENAME_EXCHANGE != 0 {
				flags |= client.RenameExchange
			}
		}
		return f.low.Rename(c, f.cred(&in.InHeader), f.ino(in.NodeId), name, f.ino(in.Newdir), newName, flags)
	})
}

const opcodeRename2 = 45 // FUSE_RENAME2

func (f *filesystem) Readlink(cancel <-chan struct{}, h *gofuse.InHeader) (out []byte, status gofuse.Status) {
	status = f.serve(opReadlink, cancel, func(c *call) error {
		a, err := f.low.GetAttr(c, f.ino(h.NodeId))
		if gone(err) {
			if target, known := f.lost.target(f.ino(h.NodeId)); known {
				out = []byte(target)
				return nil
			}
		}
		if err != nil {
			return f.stale(h, err)
		}
		if !a.IsSymlink() {
			return fserr.New(syscall.EINVAL, "readlink of inode %d, which is none", a.Ino)
		}
		out = []byte(a.Symlink)
		return nil
	})
	return out, status
}

func (f *filesystem) Access(cancel <-chan struct{}, in *gofuse.AccessIn) gofuse.Status {
	return f.serve(opAccess, cancel, func(c *call) error {
		return stale(f.low.Access(c, f.cred(&in.InHeader), f.ino(in.NodeId), in.Mask&7))
	})
}

func (f *filesystem) StatFs(cancel <-chan struct{}, h *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	return f.serve(opStatFS, cancel, func(c *call) error {
		s, err := f.low.StatFS(c)
		if err != nil {
			return err
		}
		const unit = 4096
		const inodes = math.MaxInt32 // there is no bound; programs like to see that some are free
		*out = gofuse.StatfsOut{
			Blocks: s.Total / unit, Bfree: s.Available / unit, Bavail: s.Available / unit,
			Files: s.Inodes + inodes, Ffree: inodes, Bsize: unit, Frsize: unit, NameLen: maxName,
		}
		return nil
	})
}

const maxName = 255 // bytes

// Ioctl knows none.
func (f *filesystem) Ioctl(cancel <-chan struct{}, in *gofuse.IoctlIn, inbuf []byte, out *gofuse.IoctlOut, outbuf []byte) gofuse.Status {
	return gofuse.Status(syscall.ENOTTY)
}

// table numbers the open files, and bounds nothing: the kernel's own limits do.
type table[T any] struct {
	mu   sync.RWMutex
	last uint64
	open map[uint64]T
}

func (t *table[T]) add(v T) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[uint64]T{}
	}
	t.last++
	t.open[t.last] = v
	return t.last
}

func (t *table[T]) get(fh uint64) (T, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	v, ok := t.open[fh]
	if !ok {
		return v, fserr.New(syscall.EBADF, "file handle %d", fh)
	}
	return v, nil
}

func (t *table[T]) remove(fh uint64) (v T, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, ok = t.open[fh]
	delete(t.open, fh)
	return v, ok
}

func (t *table[T]) all() map[uint64]T {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make(map[uint64]T, len(t.open))
	for fh, v := range t.open {
		out[fh] = v
	}
	return out
}
