package traffic

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/test/fault/workload"
	"github.com/shoalfs/shoalfs/test/robust/history"
)

// system is a file system as a client reaches it. Paths are absolute in it.
type system interface {
	// Directory makes a directory unless it is there.
	Directory(path string) (directory, error)
	Open(path string, flag int) (workload.File, error)
	Chmod(ctx context.Context, path string, mode uint32) error
	Truncate(ctx context.Context, path string, size int64) error
	Stat(ctx context.Context, path string) (history.Output, error)
	// Cancels tells whether operations end with their contexts.
	Cancels() bool
	Close() error
}

// directory is one of a system. What it does happens at one moment.
type directory interface {
	Create(ctx context.Context, name string) (inode uint64, err error)
	Mkdir(ctx context.Context, name string) (inode uint64, err error) // 0: not told
	Unlink(ctx context.Context, name string) error
	Rmdir(ctx context.Context, name string) error
	Rename(ctx context.Context, op history.Op, from, to string) error
	Link(ctx context.Context, inode uint64, to string) error
	Lookup(ctx context.Context, name string) (found, error)
	List(ctx context.Context) ([]string, error)
	// Ops are the changes that it can do; the rest is for all.
	Ops() []history.Op
}

// found is what has a name.
type found interface {
	Inode() uint64
	Dir() bool
	Links(ctx context.Context) (uint32, error)
	Close()
}

// errnos are the errors that operations can have a reason for; whether they have it is for the model to say.
var errnos = map[history.Op][]syscall.Errno{
	history.Create:    {syscall.EEXIST},
	history.Mkdir:     {syscall.EEXIST},
	history.Unlink:    {syscall.ENOENT, syscall.EISDIR},
	history.Rmdir:     {syscall.ENOENT, syscall.ENOTDIR},
	history.Rename:    {syscall.ENOENT, syscall.EISDIR, syscall.ENOTDIR},
	history.NoReplace: {syscall.ENOENT, syscall.EEXIST},
	history.Exchange:  {syscall.ENOENT},
	history.Link:      {syscall.ENOENT, syscall.EEXIST, syscall.ESTALE},
	history.Lookup:    {syscall.ENOENT},
	history.Links:     {syscall.ENOENT, syscall.ESTALE},
}

// outcome sorts the errors of an operation: those that are an answer, those that its caller caused, and those that must not be.
func outcome(ctx context.Context, op history.Op, out history.Output, err error) (history.Output, error) {
	switch errno := fserr.Errno(err); {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return history.Output{}, history.ErrCancelled
	case slices.Contains(errnos[op], errno):
		return history.Output{Errno: errno}, nil
	}
	return history.Output{}, err
}

// exists is err, but nil where it says that something is there already.
func exists(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}
