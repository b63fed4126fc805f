package traffic

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"syscall"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/test/fault/workload"
	"github.com/shoalfs/shoalfs/test/robust/history"
)

// sdk is a system that is reached through package client. Calls wait for the cluster as long as it takes.
type sdk struct{ *client.FS }

func dial(addresses, name string) (system, error) {
	f, err := client.Dial(context.Background(), addresses, client.WithName(name), client.WithMemory(32<<20), client.WithCache(4<<20),
		client.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))))
	if err != nil {
		return nil, err
	}
	return sdk{f}, nil
}

func (s sdk) Directory(name string) (directory, error) {
	ctx := context.Background()
	for _, dir := range []string{path.Dir(name), name} {
		if err := exists(s.Mkdir(ctx, dir, 0o755)); err != nil {
			return nil, err
		}
	}
	info, err := s.FS.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	return &sdkDirectory{s.Low(), s.Cred(), info.Sys().(*client.Attr).Ino}, nil
}

func (s sdk) Open(name string, flag int) (workload.File, error) {
	f, err := s.OpenFile(context.Background(), name, flag, 0o644)
	if err != nil {
		return nil, err // and not a nil *client.File in a File
	}
	return f, nil
}

func (s sdk) Chmod(ctx context.Context, name string, mode uint32) error {
	return s.FS.Chmod(ctx, name, fs.FileMode(mode))
}

func (s sdk) Stat(ctx context.Context, name string) (history.Output, error) {
	info, err := s.FS.Stat(ctx, name)
	if err != nil {
		return history.Output{}, err
	}
	return history.Output{Mode: uint32(info.Mode().Perm()), Size: info.Size()}, nil
}

func (s sdk) Cancels() bool { return true }

type sdkDirectory struct {
	low  *client.Low
	cred client.Cred
	ino  client.Ino
}

func (d *sdkDirectory) Ops() []history.Op {
	return []history.Op{history.Create, history.Mkdir, history.Unlink, history.Rmdir, history.Rename, history.NoReplace, history.Exchange, history.Link}
}

func (d *sdkDirectory) Create(ctx context.Context, name string) (uint64, error) {
	a, h, err := d.low.Create(ctx, d.cred, d.ino, name, syscall.O_CREAT|syscall.O_EXCL|syscall.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	// Nothing was written that could be lost, and a context that ends now says nothing about what was done.
	return uint64(a.Ino), h.Release(context.WithoutCancel(ctx))
}

func (d *sdkDirectory) Mkdir(ctx context.Context, name string) (uint64, error) {
	a, err := d.low.Mkdir(ctx, d.cred, d.ino, name, 0o755)
	return uint64(a.Ino), err
}

func (d *sdkDirectory) Unlink(ctx context.Context, name string) error {
	return d.low.Unlink(ctx, d.cred, d.ino, name)
}

func (d *sdkDirectory) Rmdir(ctx context.Context, name string) error {
	return d.low.Rmdir(ctx, d.cred, d.ino, name)
}

func (d *sdkDirectory) Rename(ctx context.Context, op history.Op, from, to string) error {
	flags := map[history.Op]client.RenameFlags{history.NoReplace: client.RenameNoReplace, history.Exchange: client.RenameExchange}
	return d.low.Rename(ctx, d.cred, d.ino, from, d.ino, to, flags[op])
}

func (d *sdkDirectory) Link(ctx context.Context, inode uint64, to string) error {
	_, err := d.low.Link(ctx, d.cred, client.Ino(inode), d.ino, to)
	return err
}

func (d *sdkDirectory) Lookup(ctx context.Context, name string) (found, error) {
	a, err := d.low.Lookup(ctx, d.cred, d.ino, name)
	if err != nil {
		return nil, err
	}
	return &sdkFound{d.low, a}, nil
}

// List asks for what fits into one answer, which is all.
func (d *sdkDirectory) List(ctx context.Context) (names []string, err error) {
	dir, err := d.low.OpenDir(ctx, d.cred, d.ino)
	if err != nil {
		return nil, err
	}
	list, err := dir.ReadAt(ctx, 0)
	for _, e := range list {
		names = append(names, e.Name)
	}
	return names, err
}

type sdkFound struct {
	low  *client.Low
	attr client.Attr
}

func (f *sdkFound) Inode() uint64 { return uint64(f.attr.Ino) }
func (f *sdkFound) Dir() bool     { return f.attr.IsDir() }
func (f *sdkFound) Close()        {}

func (f *sdkFound) Links(ctx context.Context) (uint32, error) {
	a, err := f.low.GetAttr(ctx, f.attr.Ino)
	return a.Nlink, err
}
