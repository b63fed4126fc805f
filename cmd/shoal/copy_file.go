package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sync"
	"syscall"
)

// copyBuffer is how much of a file is moved at once, in bytes.
const copyBuffer = 1 << 20

var buffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// file copies the data of one file.
func (c *copier) file(ctx context.Context, e *entry, from, to string, where place) {
	err := c.copyFile(ctx, e, from, to, where)
	if err != nil {
		c.failed.addUnlessDone(ctx, err)
		return
	}
	c.meter.fileDone()
}

func (c *copier) copyFile(ctx context.Context, e *entry, from, to string, where place) error {
	to, direct, err := c.target(ctx, e, to, where)
	if err != nil {
		return err
	}
	in, err := c.src.Open(ctx, from)
	if err != nil {
		return &pathError{c.src.Show(from), err}
	}
	defer func() { _ = in.Close() }() // it was only read
	if direct {
		return writeDirect(ctx, to, c.meter.reader(in))
	}
	if !e.isRegular() {
		return writeStream(ctx, c.dst, to, c.meter.reader(in), c.src.Show(from))
	}
	return c.renamed(ctx, to, func(tmp string) error {
		if err := writeFile(ctx, c.dst, tmp, to, c.meter.reader(in), c.src.Show(from)); err != nil {
			return err
		}
		if err := c.dst.SetMetadata(ctx, tmp, c.metadata(e, c.keepSetID(ctx, e, tmp))); err != nil {
			return &pathError{c.dst.Show(to), err}
		}
		return nil
	})
}

// special makes a symlink, FIFO, socket or device node like e.
func (c *copier) special(ctx context.Context, e *entry, from, to string, where place) error {
	target := e.LinkTarget
	if e.isSymlink() && target == "" {
		var err error
		if target, err = c.src.Readlink(ctx, from); err != nil {
			return &pathError{c.src.Show(from), err}
		}
	}
	if where != vacant {
		if at, err := c.dst.Lstat(ctx, to); err == nil {
			if err := c.replaceable(e, at, to); err != nil {
				return err
			}
		}
	}
	return c.renamed(ctx, to, func(tmp string) error {
		var err error
		if e.isSymlink() {
			err = c.dst.Symlink(ctx, target, tmp)
		} else {
			err = c.dst.Mknod(ctx, tmp, e.Mode&^0o7777|e.Mode&0o777, e.Rdev)
		}
		if err == nil {
			err = c.dst.SetMetadata(ctx, tmp, c.metadata(e, c.keepSetID(ctx, e, tmp)))
		}
		if err != nil {
			return &pathError{c.dst.Show(to), err}
		}
		return nil
	})
}

// replaceable says whether a copy of e may take the place of what is at its destination.
func (c *copier) replaceable(e, at *entry, to string) error {
	switch {
	case at.isDir():
		return &pathError{c.dst.Show(to), errors.New("is a directory and stays: a file would replace it")}
	case c.src.Same(c.dst) && at.ID == e.ID:
		return &pathError{c.dst.Show(to), errors.New("source and target are the same file")}
	}
	return nil
}

// target checks what is at a file's destination. A symlink named on the command line is followed; direct says that a local
// device or FIFO named there is to be written to instead of being replaced.
func (c *copier) target(ctx context.Context, e *entry, to string, where place) (final string, direct bool, err error) {
	if where == vacant {
		return to, false, nil
	}
	if where == named {
		if to, err = follow(ctx, c.dst, to); err != nil {
			return "", false, err
		}
	}
	at, err := c.dst.Lstat(ctx, to)
	switch {
	case errors.Is(err, syscall.ENOENT):
		return to, false, nil
	case err != nil:
		return "", false, &pathError{c.dst.Show(to), err}
	}
	if err := c.replaceable(e, at, to); err != nil {
		return "", false, err
	}
	return to, where == named && !at.isRegular() && c.dst.Same(localTree{}), nil
}

// follow resolves a symlink that is the last element of a path.
func follow(ctx context.Context, t tree, to string) (string, error) {
	const maxLinks = 40 // as Linux has it
	first := to
	for range maxLinks {
		at, err := t.Lstat(ctx, to)
		if errors.Is(err, syscall.ENOENT) {
			if to != first {
				return "", &pathError{t.Show(first), errors.New("is a symlink to nothing")}
			}
			return to, nil
		}
		if err != nil {
			return "", &pathError{t.Show(to), err}
		}
		if !at.isSymlink() {
			return to, nil
		}
		target, err := t.Readlink(ctx, to)
		if err != nil {
			return "", &pathError{t.Show(to), err}
		}
		if !path.IsAbs(target) {
			target = t.Join(parentOf(t, to), target)
		}
		to = target
	}
	return "", &pathError{t.Show(first), syscall.ELOOP}
}

func parentOf(t tree, p string) string {
	if t.Same(localTree{}) {
		return filepath.Dir(filepath.Clean(p)) // a slash at the end makes no difference
	}
	return path.Dir(p)
}

// renamed makes something under a temporary name beside `to` and gives it its name when it is whole. What is left of a
// failed attempt is removed, also when ctx has ended.
func (c *copier) renamed(ctx context.Context, to string, fill func(tmp string) error) error {
	return renamed(ctx, c.dst, to, fill)
}

func renamed(ctx context.Context, t tree, to string, fill func(tmp string) error) error {
	tmp := t.Join(parentOf(t, to), ".shoal-"+rand.Text())
	err := fill(tmp)
	if err == nil {
		if err = ctx.Err(); err == nil {
			err = t.Rename(ctx, tmp, to)
		}
		if err == nil {
			return nil
		}
		err = &pathError{t.Show(to), err}
	}
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if rm := t.Remove(cleanup, tmp); rm != nil && !errors.Is(rm, syscall.ENOENT) {
		return errors.Join(err, &pathError{t.Show(tmp), fmt.Errorf("this unfinished copy could not be removed: %s", reason(rm))})
	}
	return err
}

// writeFile puts all of in into the new file tmp; errors name `to`, what it is going to be.
func writeFile(ctx context.Context, t tree, tmp, to string, in io.Reader, from string) error {
	out, err := t.Create(ctx, tmp, 0o600)
	if err != nil {
		return &pathError{t.Show(to), err}
	}
	if err := pump(ctx, out, in, t.Show(to), from); err != nil {
		_ = out.Close() // the copy has failed already
		return err
	}
	if err := out.Close(); err != nil {
		return &pathError{t.Show(to), err}
	}
	return nil
}

// writeStream makes a file of what comes from something that has neither mode nor times worth keeping.
func writeStream(ctx context.Context, t tree, to string, in io.Reader, from string) error {
	return renamed(ctx, t, to, func(tmp string) error {
		if err := writeFile(ctx, t, tmp, to, in, from); err != nil {
			return err
		}
		e, err := t.Lstat(ctx, tmp)
		if err == nil {
			err = t.SetMetadata(ctx, tmp, metadata{Perm: 0o666 &^ umask(), Atime: e.Atime, Mtime: e.Mtime})
		}
		if err != nil {
			return &pathError{t.Show(to), err}
		}
		return nil
	})
}

// writeDirect writes to a local device or FIFO.
func writeDirect(ctx context.Context, to string, in io.Reader) error {
	out, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		return &pathError{to, err}
	}
	err = pump(ctx, out, in, to, "the source")
	if cerr := out.Close(); err == nil && cerr != nil {
		err = &pathError{to, cerr}
	}
	return err
}

// pump moves all of in to out and says in an error which of the two failed.
func pump(ctx context.Context, out io.Writer, in io.Reader, to, from string) error {
	buf := buffers.Get().(*[copyBuffer]byte)
	defer buffers.Put(buf)
	for {
		if err := ctx.Err(); err != nil {
			return &pathError{from, err}
		}
		n, err := in.Read(buf[:])
		if n > 0 {
			if _, err := out.Write(buf[:n]); err != nil {
				return &pathError{to, err}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return &pathError{from, err}
		}
	}
}

var umask = sync.OnceValue(func() uint32 {
	mask := syscall.Umask(0o022)
	syscall.Umask(mask)
	return uint32(mask)
})
