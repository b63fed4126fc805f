package client

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/shoalfs/shoalfs/client/internal/meta"
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

// ConnectError is why Dial did not get in before its context ended; it wraps the context's error.
type ConnectError struct {
	Metaservers []MetaserverProblem // one for each address tried
	err         error
}

// MetaserverProblem is what is wrong with one metaserver.
type MetaserverProblem struct {
	Address  string
	Reason   string // for people to read
	Follower bool   // it answers, but does not lead and sends to no leader that does
}

// String is address and reason.
func (p MetaserverProblem) String() string { return p.Address + ": " + p.Reason }

func problemsOf(list []meta.Trouble) []MetaserverProblem {
	var out []MetaserverProblem
	for _, t := range list {
		out = append(out, MetaserverProblem(t))
	}
	return out
}

func (e *ConnectError) Error() string {
	var b strings.Builder
	for i, p := range e.Metaservers {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(p.String())
	}
	if b.Len() == 0 {
		return e.err.Error()
	}
	return e.err.Error() + " (" + b.String() + ")"
}

func (e *ConnectError) Unwrap() error { return e.err }
