package client

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
)

// File is an open file or directory, in the shape of os.File. It is safe for concurrent use: Read, Write and Seek share
// one offset, as those of a file descriptor do, and are done one after another. After Close its methods return
// fs.ErrClosed.
type File struct {
	ctx    context.Context // of the open
	fs     *FS
	name   string
	h      *Handle // nil for a directory
	d      *Dir    // nil for a file
	closed atomic.Bool
	users  sync.RWMutex // Close waits for calls under way

	mu     sync.Mutex // orders what uses offset
	offset int64      // of a file in bytes, of a directory as of Dir
}

const copyBuffer = 1 << 20 // bytes that WriteTo and ReadFrom move at once

func newFile(ctx context.Context, f *FS, name string, h *Handle) *File {
	return &File{ctx: ctx, fs: f, name: name, h: h}
}

func newDirFile(ctx context.Context, f *FS, name string, d *Dir) *File {
	return &File{ctx: ctx, fs: f, name: name, d: d}
}

// Name returns the name that the file was opened with.
func (f *File) Name() string { return f.name }

// use guards a call against Close; the caller calls f.users.RUnlock if there is no error.
func (f *File) use(op string) error {
	f.users.RLock()
	if f.closed.Load() {
		f.users.RUnlock()
		return &fs.PathError{Op: op, Path: f.name, Err: fs.ErrClosed}
	}
	return nil
}

// handle is use for what only files can do.
func (f *File) handle(op string) (*Handle, error) {
	if err := f.use(op); err != nil {
		return nil, err
	}
	if f.h == nil {
		f.users.RUnlock()
		return nil, pathError(op, f.name, syscall.EISDIR)
	}
	return f.h, nil
}

// Read reads at the offset and advances it.
func (f *File) Read(p []byte) (int, error) {
	h, err := f.handle("read")
	if err != nil {
		return 0, err
	}
	defer f.users.RUnlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := readSome(f.ctx, h, p, f.offset)
	f.offset += int64(n)
	return n, pathError("read", f.name, err)
}

// readSome is ReadAt that says io.EOF only when there is nothing before it.
func readSome(ctx context.Context, h *Handle, p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := h.ReadAt(ctx, p, off)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// ReadAt reads len(p) bytes at off, fewer only with an error: io.EOF at the end of the file.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	h, err := f.handle("read")
	if err != nil {
		return 0, err
	}
	defer f.users.RUnlock()
	if len(p) == 0 && off >= 0 {
		return 0, nil
	}
	n, err := h.ReadAt(f.ctx, p, off)
	return n, pathError("read", f.name, err)
}

// Write writes at the offset and advances it, or, opened with os.O_APPEND, at the end of the file.
func (f *File) Write(p []byte) (int, error) {
	h, err := f.handle("write")
	if err != nil {
		return 0, err
	}
	defer f.users.RUnlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.write(h, p)
	return n, pathError("write", f.name, err)
}

func (f *File) write(h *Handle, p []byte) (int, error) {
	n, err := h.WriteAt(f.ctx, p, f.offset)
	if h.flags&os.O_APPEND != 0 {
		f.offset = int64(h.file.Size())
	} else {
		f.offset += int64(n)
	}
	return n, err
}

// WriteString is Write of a string.
func (f *File) WriteString(s string) (int, error) { return f.Write([]byte(s)) }

var errAppend = errors.New("WriteAt of a file opened with O_APPEND")

// WriteAt writes p at off.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	h, err := f.handle("write")
	if err != nil {
		return 0, err
	}
	defer f.users.RUnlock()
	if h.flags&os.O_APPEND != 0 {
		return 0, &fs.PathError{Op: "writeat", Path: f.name, Err: errAppend}
	}
	n, err := h.WriteAt(f.ctx, p, off)
	return n, pathError("write", f.name, err)
}

// Seek sets the offset of the next Read or Write. On a directory only to the start.
func (f *File) Seek(offset int64, whence int) (int64, error) {
	if err := f.use("seek"); err != nil {
		return 0, err
	}
	defer f.users.RUnlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	to := offset
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		to += f.offset
	case io.SeekEnd:
		if f.h != nil {
			a, err := f.h.Attr(f.ctx)
			if err != nil {
				return 0, pathError("seek", f.name, err)
			}
			to += int64(a.Size)
		}
	default:
		return 0, pathError("seek", f.name, syscall.EINVAL)
	}
	if to < 0 || f.d != nil && to != 0 {
		return 0, pathError("seek", f.name, syscall.EINVAL)
	}
	f.offset = to
	return to, nil
}

// ReadFrom writes all that r gives, at the offset.
func (f *File) ReadFrom(r io.Reader) (int64, error) {
	h, err := f.handle("write")
	if err != nil {
		return 0, err
	}
	defer f.users.RUnlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	buf := make([]byte, copyBuffer)
	var total int64
	for {
		n, rerr := r.Read(buf)
		if n > 0 {
			w, err := f.write(h, buf[:n])
			total += int64(w)
			if err != nil {
				return total, pathError("write", f.name, err)
			}
		}
		if rerr == io.EOF {
			return total, nil
		}
		if rerr != nil {
			return total, rerr
		}
	}
}

// WriteTo reads from the offset to the end and gives it to w.
func (f *File) WriteTo(w io.Writer) (int64, error) {
	h, err := f.handle("read")
	if err != nil {
		return 0, err
	}
	defer f.users.RUnlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	buf := make([]byte, copyBuffer)
	var total int64
	for {
		n, err := h.ReadAt(f.ctx, buf, f.offset)
		if n > 0 {
			k, werr := w.Write(buf[:n])
			total += int64(k)
			f.offset += int64(k)
			if werr == nil && k < n {
				werr = io.ErrShortWrite
			}
			if werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, pathError("read", f.name, err)
		}
	}
}

func (f *File) readAll() ([]byte, error) {
	h, err := f.handle("read")
	if err != nil {
		return nil, err
	}
	defer f.users.RUnlock()
	b := make([]byte, 0, max(h.file.Size(), 512))
	for {
		n, err := h.ReadAt(f.ctx, b[len(b):cap(b)], int64(len(b)))
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, pathError("read", f.name, err)
		}
		b = slices.Grow(b, 1)
	}
}

// Stat returns what is open, uncommitted writes of this client included.
func (f *File) Stat() (fs.FileInfo, error) {
	if err := f.use("stat"); err != nil {
		return nil, err
	}
	defer f.users.RUnlock()
	var a Attr
	var err error
	if f.h != nil {
		a, err = f.h.Attr(f.ctx)
	} else {
		a, err = f.fs.low.GetAttr(f.ctx, f.d.ino)
	}
	if err != nil {
		return nil, pathError("stat", f.name, err)
	}
	return FileInfo(f.name, a), nil
}

// Sync publishes what was written and returns when it is durable on enough chunk servers.
func (f *File) Sync() error {
	if f.d != nil {
		return f.useOnly("sync") // every change of a directory is durable when it returns
	}
	h, err := f.handle("sync")
	if err != nil {
		return err
	}
	defer f.users.RUnlock()
	return pathError("sync", f.name, h.Sync(f.ctx, false))
}

func (f *File) useOnly(op string) error {
	err := f.use(op)
	if err == nil {
		f.users.RUnlock()
	}
	return err
}

// Truncate sets the size. The offset stays.
func (f *File) Truncate(size int64) error {
	h, err := f.handle("truncate")
	if err != nil {
		return err
	}
	defer f.users.RUnlock()
	return pathError("truncate", f.name, h.Truncate(f.ctx, size))
}

// Chmod sets the permission bits.
func (f *File) Chmod(mode fs.FileMode) error {
	if err := f.use("chmod"); err != nil {
		return err
	}
	defer f.users.RUnlock()
	m := PermBits(mode)
	_, err := f.fs.low.SetAttr(f.ctx, f.fs.cred, f.ino(), SetAttr{Mode: &m})
	return pathError("chmod", f.name, err)
}

func (f *File) ino() Ino {
	if f.h != nil {
		return f.h.Ino()
	}
	return f.d.ino
}

// ReadDir lists a directory from where the last ReadDir stopped: all that is left if n <= 0, else at most n entries, and
// io.EOF when there are none.
func (f *File) ReadDir(n int) ([]fs.DirEntry, error) {
	if err := f.use("readdir"); err != nil {
		return nil, err
	}
	defer f.users.RUnlock()
	if f.d == nil {
		return nil, pathError("readdir", f.name, syscall.ENOTDIR)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	entries, next, err := f.d.readAll(f.ctx, uint64(f.offset), n)
	f.offset = int64(next)
	out := make([]fs.DirEntry, len(entries))
	for i := range entries {
		out[i] = &fileInfo{entries[i].Name, entries[i].Attr}
	}
	if err == nil && n > 0 && len(out) == 0 {
		err = io.EOF
	}
	return out, pathError("readdir", f.name, err)
}

// Close publishes what was written and closes the file. What is written to a file that stays open is published by itself within some
// five seconds. An error says that some of it may be lost.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return &fs.PathError{Op: "close", Path: f.name, Err: fs.ErrClosed}
	}
	f.users.Lock()
	defer f.users.Unlock()
	if f.h == nil {
		return nil
	}
	return pathError("close", f.name, f.h.Release(f.ctx))
}
