package client

import (
	"context"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/client/internal/data"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// openFile is a regular file that some handle of this client has open.
type openFile struct {
	file    *data.File
	handles int
	version uint64 // of the attributes when it was opened
}

// Handle is an open regular file. It is safe for concurrent use; after Release every method returns EBADF.
type Handle struct {
	fs       *FS
	ino      Ino
	file     *data.File // one reference
	cred     Cred
	flags    int
	losses   atomic.Int64 // of the file's data that were said to the holder of the handle, or came before it
	released atomic.Bool
}

// newHandle makes a handle of an inode whose open is recorded in the metadata client; the handle gives it up.
func (f *FS) newHandle(cred Cred, attr *pb.Attr, flags int) *Handle {
	h := &Handle{fs: f, ino: Ino(attr.Inode), file: f.store.File(attr.Inode, attr), cred: cred, flags: flags}
	h.losses.Store(int64(h.file.Losses()))
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.files[h.ino]
	if o == nil {
		o = &openFile{version: attr.Version}
		f.files[h.ino] = o
	}
	o.file = h.file
	o.handles++
	return h
}

// opened returns the data of an inode that this client has open, or nil.
func (f *FS) opened(ino Ino) *data.File {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.file(ino)
}

// file is opened for whoever holds mu.
func (f *FS) file(ino Ino) *data.File {
	if o := f.files[ino]; o != nil {
		return o.file
	}
	return nil
}

// merged turns attributes as the metaserver had them into what this client shows: with its own writes, be they uncommitted or
// committed since. It may only be cached if it has none of them.
func (f *FS) merged(a *pb.Attr, until time.Time) Attr {
	if a.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return attrOf(a, until)
	}
	f.mu.Lock()
	file, closed := f.file(Ino(a.Inode)), f.lately.get(a.Inode)
	f.mu.Unlock()
	v := data.View{Attr: closed}
	if file != nil {
		v = file.Merge(a)
	}
	if v.Attr != nil && v.Attr.Version > a.Version {
		a, until = v.Attr, time.Time{} // a commit was faster than whoever read a
	}
	out := attrOf(a, until)
	if v.Dirty {
		out.Size = v.Size
		if v.Mtime.After(out.Mtime) {
			out.Mtime, out.Ctime = v.Mtime, v.Mtime
		}
		out.LeaseUntil = time.Time{} // it changes without a revocation
	}
	return out
}

// closedFiles remembers the attributes of files that were changed and closed lately, for those that read them before the last
// commit and have not looked at them yet.
type closedFiles struct {
	attrs map[uint64]*pb.Attr
	ring  [closedBound]uint64 // inodes, the oldest at next; 0: none
	next  int
}

const closedBound = 1024

func (c *closedFiles) get(ino uint64) *pb.Attr { return c.attrs[ino] }

func (c *closedFiles) put(a *pb.Attr) {
	if c.attrs == nil {
		c.attrs = map[uint64]*pb.Attr{}
	}
	if _, ok := c.attrs[a.Inode]; !ok {
		delete(c.attrs, c.ring[c.next])
		c.ring[c.next] = a.Inode
		c.next = (c.next + 1) % closedBound
	}
	c.attrs[a.Inode] = a
}

// Ino returns the inode.
func (h *Handle) Ino() Ino { return h.ino }

// Flags returns what the handle was opened with.
func (h *Handle) Flags() int { return h.flags }

func (h *Handle) readable() error {
	if h.released.Load() || h.flags&syscall.O_ACCMODE == syscall.O_WRONLY {
		return syscall.EBADF
	}
	return nil
}

func (h *Handle) writable() error {
	if h.released.Load() || h.flags&syscall.O_ACCMODE == syscall.O_RDONLY {
		return syscall.EBADF
	}
	return nil
}

// ReadAt reads len(p) bytes from offset off, fewer with io.EOF at the end of the file.
func (h *Handle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := h.readable(); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, syscall.EINVAL
	}
	return h.file.ReadAt(ctx, p, off)
}

// WriteAt writes p at offset off, or, opened with O_APPEND, at the end of the file. The bytes are on their way when it
// returns; with O_SYNC or O_DSYNC they are durable.
func (h *Handle) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := h.writable(); err != nil {
		return 0, err
	}
	if h.flags&syscall.O_APPEND != 0 {
		return h.append(ctx, p)
	}
	if off < 0 {
		return 0, syscall.EINVAL
	}
	if uint64(off)+uint64(len(p)) > posix.MaxSize {
		return 0, fserr.New(syscall.EFBIG, "a write of %d bytes at %d", len(p), off)
	}
	if err := h.said(nil); err != nil {
		return 0, err
	}
	h.dropPrivileges()
	n, err := h.file.WriteAt(ctx, p, off)
	return n, h.written(ctx, err)
}

func (h *Handle) append(ctx context.Context, p []byte) (int, error) {
	if err := h.said(nil); err != nil {
		return 0, err
	}
	h.dropPrivileges()
	n, err := h.file.Append(ctx, p)
	return n, h.written(ctx, err)
}

// dropPrivileges has the commit take set-id bits away if it is not root who writes.
func (h *Handle) dropPrivileges() {
	if !h.cred.Root() {
		h.file.KillPrivileges()
	}
}

func (h *Handle) written(ctx context.Context, err error) error {
	if err == nil && h.flags&(syscall.O_SYNC|syscall.O_DSYNC) != 0 {
		err = h.file.Commit(ctx, true)
	}
	return h.said(err)
}

// said turns the outcome of an operation into what the holder of the handle is told: that data of the file was lost is said
// once to each, whoever else heard of it.
func (h *Handle) said(err error) error {
	losses, loss := h.file.Lost(int(h.losses.Load()))
	if loss == nil || err != nil && fserr.Errno(err) != fserr.Errno(loss) {
		return err
	}
	h.losses.Store(int64(losses))
	if err == nil {
		err = loss
	}
	return err
}

// Flush publishes what was written, as close(2) does: every open of the file that begins after it returned sees it. It
// returns the errors of earlier background writes.
func (h *Handle) Flush(ctx context.Context) error {
	if h.released.Load() {
		return syscall.EBADF
	}
	return h.said(h.file.Commit(ctx, false))
}

// Sync publishes what was written and returns when it is durable. dataOnly is fdatasync: there is nothing that it could
// save here, size and data become durable in one commit.
func (h *Handle) Sync(ctx context.Context, dataOnly bool) error {
	if h.released.Load() {
		return syscall.EBADF
	}
	return h.said(h.file.Commit(ctx, true))
}

// Truncate sets the size.
func (h *Handle) Truncate(ctx context.Context, size int64) error {
	if err := h.writable(); err != nil {
		return err
	}
	if size < 0 || size > posix.MaxSize {
		return syscall.EINVAL
	}
	s := uint64(size)
	_, err := h.fs.setAttr(ctx, h.cred, &pb.SetAttr{Inode: uint64(h.ino), Size: &s, Opened: true})
	return h.said(err)
}

// Attr returns the attributes, uncommitted writes of this client included.
func (h *Handle) Attr(ctx context.Context) (Attr, error) {
	if h.released.Load() {
		return Attr{}, syscall.EBADF
	}
	return h.fs.low.GetAttr(ctx, h.ino)
}

// Release publishes what was written and gives the handle up, whatever it returns. A second call returns EBADF.
func (h *Handle) Release(ctx context.Context) error {
	if !h.released.CompareAndSwap(false, true) {
		return syscall.EBADF
	}
	err := h.said(h.file.Close(ctx))
	f := h.fs
	f.mu.Lock()
	if o := f.files[h.ino]; o.handles > 1 {
		o.handles--
	} else {
		delete(f.files, h.ino)
		if a := h.file.Attr(); a.Version > o.version {
			f.lately.put(a)
		}
	}
	f.mu.Unlock()
	f.meta.CloseInode(uint64(h.ino))
	return err
}

// setAttr is every change of attributes. A change of size goes through the file's data if this client has it open, so
// that it is ordered with what is written.
func (f *FS) setAttr(ctx context.Context, cred Cred, op *pb.SetAttr) (Attr, error) {
	file := f.opened(Ino(op.Inode))
	if file != nil && op.Size == nil && (op.Mtime != nil || op.MtimeNow) {
		// Otherwise the commit of what was written before would set a later time than the one asked for.
		if err := file.Commit(ctx, false); err != nil {
			return Attr{}, err
		}
	}
	change := func(ctx context.Context) (*pb.Result, error) {
		return f.meta.Mutate(ctx, cred, &pb.Op{Op: &pb.Op_SetAttr{SetAttr: op}})
	}
	var r *pb.Result
	var err error
	if file != nil && op.Size != nil {
		err = file.Truncate(ctx, func(ctx context.Context) (*pb.Attr, error) {
			r, err = change(ctx)
			return r.GetAttr(), err
		})
	} else {
		r, err = change(ctx)
	}
	if err != nil {
		return Attr{}, err
	}
	return f.low.resultAttr(r)
}
