package fuse

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/internal/fserr"
)

// file is an open regular file.
type file struct {
	ino   client.Ino
	flags int // of open(2)
	h     *client.Handle

	// version is the data version that the file had when it was opened, if the kernel was told to drop its pages. That it
	// did is certain when the first request for this handle comes.
	version   uint64
	since     uint64      // see kernelCache.begin: before version was learned
	leased    bool        // version was learned under a lease
	dropping  atomic.Bool // the kernel was told to drop its pages, and whether it did is not known yet
	wrote     atomic.Bool // something was written since the last commit through this handle
	checked   atomic.Bool // a write has looked for capabilities
	otherMu   sync.Mutex
	otherOpen *client.Handle // as h, but with O_APPEND the other way round; opened when it is needed
}

// releaseGrace is how long the commit of a released file may go on after the mount is gone.
const releaseGrace = 10 * time.Second

func (f *filesystem) Create(cancel <-chan struct{}, in *gofuse.CreateIn, name string, out *gofuse.CreateOut) gofuse.Status {
	return f.serve(opCreate, cancel, func(c *call) error {
		dir := f.ino(in.NodeId)
		a, h, err := f.low.Create(c, f.cred(&in.InHeader), dir, name, int(in.Flags), in.Mode)
		if err != nil {
			return err
		}
		f.made(c, &out.EntryOut, dir, &a)
		f.opened(c, h, &a, int(in.Flags), &out.OpenOut)
		return nil
	})
}

func (f *filesystem) Open(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	return f.serve(opOpen, cancel, func(c *call) error {
		ino, flags := f.ino(in.NodeId), int(in.Flags)
		h, err := f.low.Open(c, f.cred(&in.InHeader), ino, flags)
		if err != nil {
			return f.stale(&in.InHeader, err)
		}
		a, err := h.Attr(c)
		if err != nil {
			return errors.Join(stale(err), h.Release(c)) // nothing was written
		}
		f.opened(c, h, &a, flags, out)
		return nil
	})
}

// opened answers with a new handle.
func (f *filesystem) opened(c *call, h *client.Handle, a *client.Attr, flags int, out *gofuse.OpenOut) {
	o := &file{ino: a.Ino, flags: flags, h: h, version: a.DataVersion, since: c.since, leased: !a.LeaseUntil.IsZero()}
	if f.kernel.keepPages(a.Ino, a.DataVersion) {
		out.OpenFlags |= gofuse.FOPEN_KEEP_CACHE
	} else {
		o.dropping.Store(true)
	}
	switch {
	case flags&syscall.O_ACCMODE == syscall.O_RDONLY:
		out.OpenFlags |= gofuse.FOPEN_NOFLUSH // there is nothing that a close could commit
	case flags&syscall.O_APPEND != 0:
		// The file's end is where the cluster says, not where the kernel believes: what is appended must not go into the
		// kernel's pages at another place.
		out.OpenFlags |= gofuse.FOPEN_DIRECT_IO
	}
	out.Fh = f.files.add(o)
	f.metrics.handles.Inc()
}

// file returns an open file for a request of the kernel.
func (f *filesystem) file(fh uint64) (*file, error) {
	o, err := f.files.get(fh)
	if err == nil {
		f.confirm(o)
	}
	return o, err
}

func (f *filesystem) confirm(o *file) {
	if o.dropping.Load() && o.dropping.CompareAndSwap(true, false) {
		f.kernel.pagesRead(o.ino, o.version, o.since, o.leased)
	}
}

// committed notes that what was written through a handle is published, so that the next open keeps the kernel's pages.
func (f *filesystem) committed(c *call, o *file) {
	if !o.wrote.Swap(false) {
		return
	}
	since := f.kernel.begin()
	if a, err := f.low.GetAttr(c, o.ino); err == nil && !a.LeaseUntil.IsZero() {
		f.kernel.pagesWritten(o.ino, a.DataVersion, since)
	}
}

// handle returns the client's handle that appends, or does not. The kernel says with every write which it is: fcntl can
// change it after the open, and pages of a shared mapping have their place whatever the mode.
func (f *filesystem) handle(c *call, o *file, appends bool) (*client.Handle, error) {
	if appends == (o.flags&syscall.O_APPEND != 0) {
		return o.h, nil
	}
	o.otherMu.Lock()
	defer o.otherMu.Unlock()
	if o.otherOpen == nil {
		flags := o.flags&(syscall.O_ACCMODE|syscall.O_SYNC|syscall.O_DSYNC) | ^o.flags&syscall.O_APPEND
		h, err := f.low.Open(c, client.Cred{}, o.ino, flags) // permission was checked at open
		if err != nil {
			return nil, stale(err)
		}
		o.otherOpen = h
	}
	return o.otherOpen, nil
}

func (f *filesystem) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (result gofuse.ReadResult, status gofuse.Status) {
	status = f.serve(opRead, cancel, func(c *call) error {
		o, err := f.file(in.Fh)
		if err != nil {
			return err
		}
		n, err := o.h.ReadAt(c, buf, int64(in.Offset))
		if err != nil && err != io.EOF {
			return stale(err)
		}
		f.metrics.bytes[0].Add(float64(n))
		result = gofuse.ReadResultData(buf[:n])
		return nil
	})
	return result, status
}

func (f *filesystem) Write(cancel <-chan struct{}, in *gofuse.WriteIn, data []byte) (written uint32, status gofuse.Status) {
	status = f.serve(opWrite, cancel, func(c *call) error {
		o, err := f.file(in.Fh)
		if err != nil {
			return err
		}
		if err := f.writing(c, o, in.WriteFlags); err != nil {
			return err
		}
		h, err := f.handle(c, o, in.Flags&syscall.O_APPEND != 0 && in.WriteFlags&gofuse.WRITE_CACHE == 0)
		if err != nil {
			return err
		}
		o.wrote.Store(true)
		n, err := h.WriteAt(c, data, int64(in.Offset))
		written = uint32(n)
		f.metrics.bytes[1].Add(float64(n))
		if n > 0 && fserr.Errno(err) == syscall.EINTR {
			return nil // what was taken counts
		}
		return err
	})
	return written, status
}

// writing takes away what a file must lose that is written to.
func (f *filesystem) writing(c *call, o *file, flags uint32) error {
	if flags&gofuse.WRITE_KILL_SUIDGID != 0 {
		return f.dropPrivileges(c, o.ino)
	}
	if o.checked.Load() {
		return nil
	}
	a, err := f.low.GetAttr(c, o.ino)
	if err != nil {
		return err
	}
	if err := f.dropCapabilities(c, &a); err != nil {
		return err
	}
	o.checked.Store(true)
	return nil
}

const capabilityXattr = "security.capability"

// dropPrivileges clears set-id bits and capabilities of a file that is written by an ordinary user. The kernel leaves this
// to the file system, in exchange for not asking for a file's capabilities before every write. For what truncates or
// changes the owner the metaserver does it.
func (f *filesystem) dropPrivileges(c *call, ino client.Ino) error {
	a, err := f.low.GetAttr(c, ino)
	if err != nil {
		return err
	}
	if !a.IsRegular() {
		return nil
	}
	if mode := withoutSetID(a.Mode); mode != a.Mode&0o7777 {
		if _, err := f.low.SetAttr(c, client.Cred{}, ino, client.SetAttr{Mode: &mode}); err != nil {
			return err
		}
	}
	return f.dropCapabilities(c, &a)
}

func (f *filesystem) dropCapabilities(c *call, a *client.Attr) error {
	if !a.HasXattrs {
		return nil
	}
	err := f.low.RemoveXattr(c, client.Cred{}, a.Ino, capabilityXattr)
	if fserr.Errno(err) == syscall.ENODATA {
		return nil
	}
	return err
}

// withoutSetID returns permission bits with set-user-id cleared, and set-group-id where it is not the mark of mandatory
// locking (set without execution by the group).
func withoutSetID(mode uint32) uint32 {
	mode &= 0o7777
	mode &^= syscall.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		mode &^= syscall.S_ISGID
	}
	return mode
}

// Flush is a close(2) of one of the descriptors of the handle. If it is interrupted, Release commits.
func (f *filesystem) Flush(cancel <-chan struct{}, in *gofuse.FlushIn) gofuse.Status {
	return f.serve(opFlush, cancel, func(c *call) error {
		o, err := f.file(in.Fh)
		if err != nil || o.flags&syscall.O_ACCMODE == syscall.O_RDONLY {
			return err
		}
		if err := o.h.Flush(c); err != nil {
			return err
		}
		f.committed(c, o)
		return nil
	})
}

func (f *filesystem) Fsync(cancel <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	return f.serve(opFsync, cancel, func(c *call) error {
		o, err := f.file(in.Fh)
		if err != nil {
			return err
		}
		if err := o.h.Sync(c, in.FsyncFlags&fsyncDataOnly != 0); err != nil {
			return err
		}
		f.committed(c, o)
		return nil
	})
}

const fsyncDataOnly = 1 // FUSE_FSYNC_FDATASYNC

// Release gives a handle up. Nobody waits for it, so it commits however long that takes: pages of a shared mapping can
// have come after the last close. It gives up only some time after the mount is gone.
func (f *filesystem) Release(cancel <-chan struct{}, in *gofuse.ReleaseIn) {
	f.serve(opRelease, cancel, func(c *call) error {
		c.grace = releaseGrace
		o, ok := f.files.remove(in.Fh)
		if !ok {
			return nil
		}
		f.metrics.handles.Dec()
		f.confirm(o)
		return f.release(c, o)
	})
}

// release commits and closes a file. Its error has nobody to go to but the log.
func (f *filesystem) release(ctx context.Context, o *file) error {
	o.otherMu.Lock()
	other := o.otherOpen
	o.otherMu.Unlock()
	var err error
	if other != nil {
		err = other.Release(ctx)
	}
	if err = errors.Join(err, o.h.Release(ctx)); err != nil {
		f.log.Error("what was written to a file after its last close is lost", "inode", uint64(o.ino), "err", err)
	}
	return err
}

// Fallocate makes a file longer where it ends before the range. Space is not reserved: data goes to new places whenever it
// is written, so that a reservation would be worth nothing.
func (f *filesystem) Fallocate(cancel <-chan struct{}, in *gofuse.FallocateIn) gofuse.Status {
	return f.serve(opFallocate, cancel, func(c *call) error {
		o, err := f.file(in.Fh)
		if err != nil {
			return err
		}
		if in.Mode&^unix.FALLOC_FL_KEEP_SIZE != 0 {
			return fserr.New(syscall.EOPNOTSUPP, "fallocate mode %#x", in.Mode)
		}
		a, err := o.h.Attr(c)
		if err != nil {
			return err
		}
		end := in.Offset + in.Length
		if in.Mode&unix.FALLOC_FL_KEEP_SIZE != 0 || end <= a.Size {
			return nil
		}
		// Not Truncate: were the file longer than is known here, that would cut it.
		h, err := f.handle(c, o, false)
		if err != nil {
			return err
		}
		_, err = h.WriteAt(c, []byte{0}, int64(end-1))
		return err
	})
}
