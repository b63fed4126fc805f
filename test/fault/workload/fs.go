package workload

import (
	"context"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/client"
)

// FS is the file system under load. Paths are absolute in it.
type FS interface {
	Open(name string, flag int) (File, error)
	Mkdir(name string) error
	Remove(name string) error
	Rename(from, to string) error
	Stat(name string) (fs.FileInfo, error)
	ReadDir(name string) ([]string, error)
	Close() error
}

// File is an open file.
type File interface {
	io.Writer
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
}

// Mounted is a file system that is mounted at a directory.
type Mounted string

func (m Mounted) at(name string) string { return filepath.Join(string(m), name) }

// Open implements FS.
func (m Mounted) Open(name string, flag int) (File, error) {
	return os.OpenFile(m.at(name), flag, 0o644)
}

// Mkdir implements FS.
func (m Mounted) Mkdir(name string) error { return os.Mkdir(m.at(name), 0o755) }

// Remove implements FS.
func (m Mounted) Remove(name string) error { return os.Remove(m.at(name)) }

// Rename implements FS. os.Rename refuses what has the name of a directory before the file system is asked.
func (m Mounted) Rename(from, to string) error {
	if err := unix.Rename(m.at(from), m.at(to)); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// Stat implements FS.
func (m Mounted) Stat(name string) (fs.FileInfo, error) { return os.Lstat(m.at(name)) }

// ReadDir implements FS.
func (m Mounted) ReadDir(name string) ([]string, error) {
	list, err := os.ReadDir(m.at(name))
	return namesOf(list), err
}

// Close implements FS.
func (m Mounted) Close() error { return nil }

func namesOf(list []fs.DirEntry) []string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = e.Name()
	}
	return out
}

// cluster is a file system that is reached through the SDK. Calls wait for it as long as it takes, as a program on a mount does.
type cluster struct{ fs *client.FS }

// dial connects, and keeps nothing in memory of what it read: whoever reads is to get it from the servers.
func dial(ctx context.Context, addresses, name string, log io.Writer) (FS, error) {
	f, err := client.Dial(ctx, addresses, client.WithName(name), client.WithCache(-1), client.WithMemory(32<<20),
		client.WithLogger(slog.New(slog.NewTextHandler(log, nil))))
	if err != nil {
		return nil, err
	}
	return &cluster{f}, nil
}

func (c *cluster) Open(name string, flag int) (File, error) {
	f, err := c.fs.OpenFile(context.Background(), name, flag, 0o644)
	if err != nil {
		return nil, err // and not a nil *client.File in a File
	}
	return f, nil
}

func (c *cluster) Mkdir(name string) error  { return c.fs.Mkdir(context.Background(), name, 0o755) }
func (c *cluster) Remove(name string) error { return c.fs.Remove(context.Background(), name) }
func (c *cluster) Rename(from, to string) error {
	return c.fs.Rename(context.Background(), from, to)
}
func (c *cluster) Stat(name string) (fs.FileInfo, error) {
	return c.fs.Lstat(context.Background(), name)
}

func (c *cluster) ReadDir(name string) ([]string, error) {
	list, err := c.fs.ReadDir(context.Background(), name)
	return namesOf(list), err
}

func (c *cluster) Close() error { return c.fs.Close() }
