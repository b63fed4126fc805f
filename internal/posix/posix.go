// Package posix has the rules of POSIX that the metaserver enforces and the client repeats under its leases: who may do
// what, and which names and sizes are legal. It knows no state.
package posix

import (
	"bytes"
	"slices"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/fserr"
)

// Limits that users meet; docs/formats.md names them too.
const (
	MaxName    = 255       // bytes of a name
	MaxSymlink = 4095      // bytes of a symlink's target
	MaxXattr   = 64 << 10  // bytes of an xattr's value
	MaxXattrs  = 256 << 10 // bytes of all xattrs of an inode, names included
	MaxLinks   = 1 << 20   // names of one inode
	MaxGroups  = 65536     // supplementary groups of a caller
	MaxInline  = 4096      // bytes of a file that may be kept in its inode
	MaxSize    = 1<<62 - 1 // bytes of a file
	RootInode  = 1
	// ExtentBlock is the range of a file whose extents are kept under one key, in bytes.
	ExtentBlock = 64 << 20
)

// Bits of an access check, as in access(2).
const (
	Execute uint32 = 1
	Write   uint32 = 2
	Read    uint32 = 4
)

// Cred is on whose behalf something is done.
type Cred struct {
	UID, GID uint32
	Groups   []uint32
}

// InGroup tells whether the caller belongs to group gid.
func (c Cred) InGroup(gid uint32) bool { return c.GID == gid || slices.Contains(c.Groups, gid) }

// Root tells whether the caller passes every permission check.
func (c Cred) Root() bool { return c.UID == 0 }

// Access checks want (Read, Write and Execute, or'ed) against an inode's owner and mode: EACCES where it is not granted.
// Root may read and write all, and execute what has any execute bit, and search every directory.
func Access(c Cred, uid, gid, mode, want uint32) error {
	if c.Root() {
		if want&Execute != 0 && mode&syscall.S_IFMT != syscall.S_IFDIR && mode&0o111 == 0 {
			return syscall.EACCES
		}
		return nil
	}
	granted := mode & 7
	switch {
	case c.UID == uid:
		granted = mode >> 6 & 7
	case c.InGroup(gid):
		granted = mode >> 3 & 7
	}
	if want&^granted != 0 {
		return syscall.EACCES
	}
	return nil
}

// Sticky checks that the caller may remove or rename an entry owned by uid from a directory: with the sticky bit set only
// root and the owners of the entry and of the directory may (EPERM).
func Sticky(c Cred, dirUID, dirMode, uid uint32) error {
	if dirMode&syscall.S_ISVTX == 0 || c.Root() || c.UID == uid || c.UID == dirUID {
		return nil
	}
	return syscall.EPERM
}

// CheckName says whether name can be the name of a directory entry: ENAMETOOLONG above MaxName bytes, EINVAL for an empty
// one, for "." and "..", and for one with a slash or NUL.
func CheckName(name []byte) error {
	switch {
	case len(name) > MaxName:
		return fserr.New(syscall.ENAMETOOLONG, "a name of %d bytes, at most %d", len(name), MaxName)
	case len(name) == 0:
		return fserr.New(syscall.EINVAL, "an empty name")
	case string(name) == "." || string(name) == "..":
		return fserr.New(syscall.EINVAL, "the name %q", name)
	case bytes.IndexByte(name, '/') >= 0 || bytes.IndexByte(name, 0) >= 0:
		return fserr.New(syscall.EINVAL, "a slash or NUL in the name %q", name)
	}
	return nil
}
