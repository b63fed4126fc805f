package client

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/fserr"
)

// pathError names operation and path; nil and io.EOF stay what they are.
func pathError(op, path string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &fs.PathError{Op: op, Path: path, Err: cause(err)}
}

func linkError(op, old, new string, err error) error {
	if err == nil {
		return nil
	}
	return &os.LinkError{Op: op, Old: old, New: new, Err: cause(err)}
}

// cause is what a path error wraps: a bare errno where there is no more to say, else an error that has one, so that
// errors.Is finds it. The end of a context stays to be found too.
func cause(err error) error {
	var e *fserr.Error
	switch {
	case errors.As(err, &e):
		if e.Detail == "" {
			return e.Errno
		}
		return e
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, fs.ErrClosed):
		return err
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return err
	}
	return &withErrno{err}
}

// withErrno is an error that is none of the file system's: EIO to programs.
type withErrno struct{ error }

func (e *withErrno) Unwrap() []error { return []error{e.error, fserr.Errno(e.error)} }
