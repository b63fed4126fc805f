package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/client"
)

// remoteTree is the cluster.
type remoteTree struct{ fs *client.FS }

func (t remoteTree) Show(path string) string      { return remotePrefix + path }
func (t remoteTree) Join(dir, name string) string { return joinRemote(dir, name) }

func (t remoteTree) Same(other tree) bool {
	_, ok := other.(remoteTree)
	return ok
}

func (t remoteTree) Stat(ctx context.Context, path string) (*entry, error) {
	return entryOf(t.fs.Stat(ctx, path))
}

func (t remoteTree) Lstat(ctx context.Context, path string) (*entry, error) {
	return entryOf(t.fs.Lstat(ctx, path))
}

func entryOf(fi fs.FileInfo, err error) (*entry, error) {
	if err != nil {
		return nil, err
	}
	a, ok := fi.Sys().(*client.Attr)
	if !ok {
		return nil, fmt.Errorf("%s: attributes of type %T", fi.Name(), fi.Sys())
	}
	return &entry{
		Name: fi.Name(), Mode: a.Mode, Nlink: uint64(a.Nlink), UID: a.UID, GID: a.GID, Rdev: a.Rdev,
		Size: int64(a.Size), Allocated: int64(a.Allocated),
		Atime: a.Atime, Mtime: a.Mtime, Ctime: a.Ctime, Btime: a.Btime,
		ID: fileID{ino: uint64(a.Ino)}, LinkTarget: a.Symlink,
	}, nil
}

func (t remoteTree) ReadDir(ctx context.Context, path string) ([]*entry, error) {
	list, err := t.fs.ReadDir(ctx, path)
	if err != nil {
		return nil, err
	}
	out := make([]*entry, 0, len(list))
	for _, d := range list {
		e, err := entryOf(d.Info())
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

func (t remoteTree) Readlink(ctx context.Context, path string) (string, error) {
	return t.fs.Readlink(ctx, path)
}

func (t remoteTree) Open(ctx context.Context, path string) (io.ReadCloser, error) {
	f, err := t.fs.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err == nil && fi.IsDir() {
		_ = f.Close() // nothing was written
		return nil, syscall.EISDIR
	}
	return f, nil
}

func (t remoteTree) Create(ctx context.Context, path string, perm uint32) (io.WriteCloser, error) {
	late, cancel := cancelLate(ctx, cleanupTimeout)
	f, err := t.fs.OpenFile(late, path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, client.FileMode(perm&0o777))
	if err != nil {
		cancel()
		return nil, err
	}
	return &remoteFile{f, cancel}, nil
}

// remoteFile is a file that is written.
type remoteFile struct {
	*client.File
	cancel context.CancelFunc
}

func (f *remoteFile) Close() error {
	defer f.cancel()
	return f.File.Close()
}

// cancelLate returns a context that outlives ctx by a grace period, in which a file that is written can be closed in good
// order. The CancelFunc ends it at once.
func cancelLate(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		t := time.AfterFunc(grace, cancel)
		context.AfterFunc(late, func() { t.Stop() })
	})
	return late, func() { stop(); cancel() }
}

func (t remoteTree) Mkdir(ctx context.Context, path string, perm uint32) error {
	return t.fs.Mkdir(ctx, path, client.FileMode(perm))
}

func (t remoteTree) Symlink(ctx context.Context, target, path string) error {
	return t.fs.Symlink(ctx, target, path)
}

func (t remoteTree) Mknod(ctx context.Context, name string, mode, rdev uint32) error {
	dir, err := t.Stat(ctx, path.Dir(name))
	if err != nil {
		return err
	}
	_, err = t.fs.Low().Mknod(ctx, t.fs.Cred(), client.Ino(dir.ID.ino), path.Base(name), mode, rdev)
	return err
}

func (t remoteTree) SetMetadata(ctx context.Context, path string, m metadata) error {
	e, err := t.Lstat(ctx, path)
	if err != nil {
		return err
	}
	s := client.SetAttr{Atime: &m.Atime, Mtime: &m.Mtime}
	if !m.Symlink {
		s.Mode = &m.Perm
	}
	_, err = t.fs.Low().SetAttr(ctx, t.fs.Cred(), client.Ino(e.ID.ino), s)
	return err
}

func (t remoteTree) Rename(ctx context.Context, from, to string) error {
	return t.fs.Rename(ctx, from, to)
}

func (t remoteTree) Remove(ctx context.Context, path string) error { return t.fs.Remove(ctx, path) }
