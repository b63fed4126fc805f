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
		o = new(openFile)
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
	if o := f.files[ino]; o != nil {
		return o.file
	}
	return nil
}

// merged turns attributes as the metaserver has them into what this client shows: with its own uncommitted writes.
func (f *FS) merged(a *pb.Attr, until time.Time) Attr {
	out := attrOf(a, until)
	if a.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return out
	}
	file := f.opened(out.Ino)
	if file == nil {
		return out
	}
	file.Observe(a)
	if file.Dirty() {
		out.Size = file.Size()
		if m := file.Mtime(); m.After(out.Mtime) {
			out.Mtime, out.Ctime = m, m
		}
		out.LeaseUntil = time.Time{} // it changes without a revocation
	}
	return out
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
		err = file.Truncate(ctx, *op.Size, func(ctx context.Context) error {
			r, err = change(ctx)
			return err
		})
	} else {
		r, err = change(ctx)
	}
	if err != nil {
		return Attr{}, err
	}
	return f.low.resultAttr(r)
}
