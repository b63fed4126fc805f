package fserr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

func TestErrorIsItsErrno(t *testing.T) {
	err := fmt.Errorf("open: %w", New(syscall.ENOENT, "no inode %d", 7))
	if !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, syscall.ENOENT) || errors.Is(err, fs.ErrExist) {
		t.Errorf("%v is not told apart", err)
	}
	if got, want := err.Error(), "open: no inode 7: no such file or directory"; got != want {
		t.Errorf("reads %q, want %q", got, want)
	}
}

func TestErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{syscall.EXDEV, syscall.EXDEV},
		{fmt.Errorf("x: %w", New(syscall.ENOSPC, "full")), syscall.ENOSPC},
		{context.Canceled, syscall.EINTR},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), syscall.ETIMEDOUT},
		{errors.New("whatever"), syscall.EIO},
	} {
		if got := Errno(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}
