package main

import (
	"context"
	"io"
	"syscall"
	"time"
)

// entry is a file, directory or whatever else has a name.
type entry struct {
	Name       string
	Mode       uint32 // type and permission bits, as st_mode
	Nlink      uint64
	UID, GID   uint32
	Rdev       uint32
	Size       int64 // bytes
	Allocated  int64 // bytes
	Atime      time.Time
	Mtime      time.Time
	Ctime      time.Time
	Btime      time.Time // zero where unknown
	ID         fileID
	LinkTarget string // of a symlink, where the tree knows it without asking
}

// fileID is the same for two names of one file of a tree.
type fileID struct{ dev, ino uint64 }

func (e *entry) kind() uint32      { return e.Mode & syscall.S_IFMT }
func (e *entry) isDir() bool       { return e.kind() == syscall.S_IFDIR }
func (e *entry) isRegular() bool   { return e.kind() == syscall.S_IFREG }
func (e *entry) isSymlink() bool   { return e.kind() == syscall.S_IFLNK }
func (e *entry) permBits() uint32  { return e.Mode & 0o7777 }
func (e *entry) setIDBits() uint32 { return e.Mode & (syscall.S_ISUID | syscall.S_ISGID) }

// metadata is what a copy takes over from its original beside the data.
type metadata struct {
	Perm         uint32 // permission bits; not applied to symlinks
	Symlink      bool
	Atime, Mtime time.Time
}

// tree is what is common to the local file system and the cluster. Errors of its methods carry an errno; the caller adds
// the path. None of the methods but Stat and Open follows a symlink that is the last element of a path.
type tree interface {
	// Show writes a path as on the command line.
	Show(path string) string
	Join(dir, name string) string
	// Same tells whether the other tree is this one, so that fileIDs can be compared.
	Same(tree) bool

	Stat(ctx context.Context, path string) (*entry, error)
	Lstat(ctx context.Context, path string) (*entry, error)
	ReadDir(ctx context.Context, path string) ([]*entry, error) // in the order of names
	Readlink(ctx context.Context, path string) (string, error)
	Open(ctx context.Context, path string) (io.ReadCloser, error)
	// Create makes a new file for writing, EEXIST if the name is taken. What is written is there for all when Close has
	// returned nil.
	Create(ctx context.Context, path string, perm uint32) (io.WriteCloser, error)
	Mkdir(ctx context.Context, path string, perm uint32) error
	Symlink(ctx context.Context, target, path string) error
	Mknod(ctx context.Context, path string, mode, rdev uint32) error
	SetMetadata(ctx context.Context, path string, m metadata) error
	Rename(ctx context.Context, from, to string) error
	Remove(ctx context.Context, path string) error // a file or an empty directory
}
