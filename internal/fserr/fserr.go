// Package fserr is the one place where errors of the file system are made and told apart.
//
// An error of a file-system operation carries an errno, because that is what every caller in the end wants: FUSE returns
// it to the kernel, errors.Is compares it with io/fs's sentinels, the wire carries it as a number.
package fserr

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// Error is an errno with a sentence that says what it is about. errors.Is(err, fs.ErrNotExist) and friends work as they
// do for the errno itself.
type Error struct {
	Errno  syscall.Errno
	Detail string // may be empty
}

// New returns an Error whose detail is formatted as by fmt.Sprintf.
func New(errno syscall.Errno, format string, args ...any) *Error {
	return &Error{Errno: errno, Detail: fmt.Sprintf(format, args...)}
}

func (e *Error) Error() string {
	if e.Detail == "" {
		return e.Errno.Error()
	}
	return e.Detail + ": " + e.Errno.Error()
}

func (e *Error) Unwrap() error { return e.Errno }

// Errno says how err looks to a program: the errno it carries, EINTR for a cancelled context, ETIMEDOUT for one whose
// deadline passed, EIO for everything else, and 0 for nil.
func Errno(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, context.Canceled):
		return syscall.EINTR
	case errors.Is(err, context.DeadlineExceeded):
		return syscall.ETIMEDOUT
	}
	return syscall.EIO
}
