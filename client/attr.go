package client

import (
	"io/fs"
	"path"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Ino is an inode number. It names a file or directory for ever: it is never used twice.
type Ino uint64

// Root is the inode of the root directory.
const Root Ino = posix.RootInode

// Cred is on whose behalf something is done. The metaserver checks permissions against it.
type Cred = posix.Cred

// Bits of Access, as in access(2).
const (
	AccessExecute = posix.Execute
	AccessWrite   = posix.Write
	AccessRead    = posix.Read
)

// Attr is an inode as stat(2) shows it.
type Attr struct {
	Ino              Ino
	Mode             uint32 // type and permission bits, as st_mode of Linux
	Nlink            uint32
	UID, GID         uint32
	Rdev             uint32
	Size             uint64 // bytes; of a directory the number of its entries
	Allocated        uint64 // bytes that are backed by data
	Atime            time.Time
	Mtime            time.Time
	Ctime            time.Time
	Btime            time.Time
	DataVersion      uint64 // raised by every change of the file's data or size
	Version          uint64 // raised by every change of the inode
	Parent           Ino    // of a directory: its parent; the root's is the root
	Symlink          string // a symlink's target
	HasXattrs        bool
	LeaseUntil       time.Time // this view may be used without asking again until then, unless the inode is revoked; zero: not at all
	ParentLeaseUntil time.Time // Lookup and DirEntry only: likewise the name
}

// IsDir tells whether the inode is a directory.
func (a *Attr) IsDir() bool { return a.Mode&syscall.S_IFMT == syscall.S_IFDIR }

// IsRegular tells whether the inode is a regular file.
func (a *Attr) IsRegular() bool { return a.Mode&syscall.S_IFMT == syscall.S_IFREG }

// IsSymlink tells whether the inode is a symlink.
func (a *Attr) IsSymlink() bool { return a.Mode&syscall.S_IFMT == syscall.S_IFLNK }

// SetAttr says what (*Low).SetAttr changes: the fields that are not nil.
type SetAttr struct {
	Mode               *uint32 // permission bits
	UID, GID           *uint32
	Size               *uint64
	Atime, Mtime       *time.Time
	AtimeNow, MtimeNow bool // the server's time; needs write permission only
	// Opened says that Size comes from a handle that is open for writing (ftruncate): permission was checked at open.
	Opened bool
}

// RenameFlags are those of renameat2(2).
type RenameFlags uint32

// What Rename can do beside replacing the target.
const (
	RenameNoReplace RenameFlags = 1 << iota // EEXIST if the target exists
	RenameExchange                          // swap the two names
)

// StatFS is what statfs(2) shows.
type StatFS struct {
	Capacity  uint64 // bytes of raw space
	Free      uint64 // of these, unused
	Total     uint64 // bytes of file data that fit in all
	Available uint64 // bytes of file data that still fit
	Inodes    uint64 // in use
}

// DirEntry is an entry of a directory, as (*Dir).ReadAt returns it.
type DirEntry struct {
	Name string
	Attr Attr
	Next uint64 // the offset that continues after this entry
}

func attrOf(a *pb.Attr, until time.Time) Attr {
	return Attr{
		Ino: Ino(a.Inode), Mode: a.Mode, Nlink: a.Nlink, UID: a.Uid, GID: a.Gid, Rdev: a.Rdev,
		Size: a.Size, Allocated: a.Allocated,
		Atime: time.Unix(0, a.Atime), Mtime: time.Unix(0, a.Mtime), Ctime: time.Unix(0, a.Ctime), Btime: time.Unix(0, a.Btime),
		DataVersion: a.DataVersion, Version: a.Version, Parent: Ino(a.Parent), Symlink: string(a.Symlink), HasXattrs: a.HasXattrs,
		LeaseUntil: until,
	}
}

// fileInfo is an fs.FileInfo and fs.DirEntry whose Sys is an *Attr.
type fileInfo struct {
	name string
	attr Attr
}

// FileInfo makes an fs.FileInfo of attributes; its Sys returns an *Attr.
func FileInfo(name string, a Attr) fs.FileInfo { return &fileInfo{path.Base(name), a} }

func (i *fileInfo) Name() string               { return i.name }
func (i *fileInfo) Size() int64                { return int64(i.attr.Size) }
func (i *fileInfo) Mode() fs.FileMode          { return FileMode(i.attr.Mode) }
func (i *fileInfo) Type() fs.FileMode          { return i.Mode().Type() }
func (i *fileInfo) ModTime() time.Time         { return i.attr.Mtime }
func (i *fileInfo) IsDir() bool                { return i.attr.IsDir() }
func (i *fileInfo) Sys() any                   { return &i.attr }
func (i *fileInfo) Info() (fs.FileInfo, error) { return i, nil }
func (i *fileInfo) String() string             { return fs.FormatDirEntry(i) }

// FileMode turns a mode as stat(2) has it into Go's.
func FileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	switch mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		m |= fs.ModeDir
	case syscall.S_IFLNK:
		m |= fs.ModeSymlink
	case syscall.S_IFIFO:
		m |= fs.ModeNamedPipe
	case syscall.S_IFSOCK:
		m |= fs.ModeSocket
	case syscall.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case syscall.S_IFBLK:
		m |= fs.ModeDevice
	}
	if mode&syscall.S_ISUID != 0 {
		m |= fs.ModeSetuid
	}
	if mode&syscall.S_ISGID != 0 {
		m |= fs.ModeSetgid
	}
	if mode&syscall.S_ISVTX != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// PermBits turns Go's permission bits into those of stat(2), without the type.
func PermBits(m fs.FileMode) uint32 {
	p := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		p |= syscall.S_ISUID
	}
	if m&fs.ModeSetgid != 0 {
		p |= syscall.S_ISGID
	}
	if m&fs.ModeSticky != 0 {
		p |= syscall.S_ISVTX
	}
	return p
}
