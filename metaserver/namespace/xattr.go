package namespace

import (
	"strings"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	maxXattrName    = 255 // bytes, the namespace included
	capabilityXattr = "security.capability"
)

// xattrAccess says whether the caller may read or write (posix.Read or Write) an attribute of that name.
//
//	user.      files and directories only; like their contents; in a sticky directory only its owner writes
//	security.  everyone reads, root writes
//	trusted.   root only; to others they are not there
//
// Other namespaces, the ACLs of system. among them, are not supported.
func xattrAccess(in *inode, cred posix.Cred, name string, want uint32) error {
	switch {
	case name == "" || len(name) > maxXattrName:
		return fserr.New(syscall.ERANGE, "an xattr name of %d bytes, at most %d", len(name), maxXattrName)
	case strings.IndexByte(name, 0) >= 0:
		return fserr.New(syscall.EINVAL, "a NUL in the xattr name %q", name)
	}
	space, rest, _ := strings.Cut(name, ".")
	switch space {
	case "user":
		if !in.isFile() && !in.isDir() {
			if want == posix.Write {
				return syscall.EPERM
			}
			return syscall.ENODATA
		}
		if want == posix.Write && in.isDir() && in.mode&syscall.S_ISVTX != 0 && !cred.Root() && cred.UID != in.uid {
			return syscall.EPERM
		}
		if err := in.access(cred, want); err != nil {
			return err
		}
	case "security":
		if want == posix.Write && !cred.Root() {
			return syscall.EPERM
		}
	case "trusted":
		if !cred.Root() {
			if want == posix.Write {
				return syscall.EPERM
			}
			return syscall.ENODATA
		}
	default:
		return fserr.New(syscall.EOPNOTSUPP, "the xattr namespace of %q", name)
	}
	if rest == "" {
		return fserr.New(syscall.EINVAL, "the xattr name %q", name)
	}
	return nil
}

func (x *tx) setXattr(op *pb.SetXattr) (*pb.Result, error) {
	in, err := getInode(x, op.Inode)
	if err != nil {
		return nil, err
	}
	if err := xattrAccess(in, x.cred, op.Name, posix.Write); err != nil {
		return nil, err
	}
	if len(op.Value) > posix.MaxXattr {
		return nil, fserr.New(syscall.E2BIG, "an xattr of %d bytes, at most %d", len(op.Value), posix.MaxXattr)
	}
	key := xattrKey(in.num, op.Name)
	old, err := decodeXattr(x.Get(bXattr, key))
	switch {
	case err != nil:
		return nil, damaged(bXattr, key)
	case op.Create && old != nil:
		return nil, syscall.EEXIST
	case op.Replace && old == nil:
		return nil, syscall.ENODATA
	}
	total := int64(in.xattrBytes) + int64(len(op.Name)+len(op.Value))
	if old != nil {
		total -= int64(len(op.Name) + len(old))
	}
	switch {
	case total < 0:
		return nil, damaged(bInode, key8(in.num))
	case total > posix.MaxXattrs:
		return nil, fserr.New(syscall.ENOSPC, "xattrs of %d bytes in all, at most %d", total, posix.MaxXattrs)
	}
	in.xattrBytes = uint32(total)
	x.Put(bXattr, key, append([]byte{formatVersion}, op.Value...))
	x.changed(in)
	x.putInode(in)
	return &pb.Result{Attr: in.attr()}, nil
}

func (x *tx) removeXattr(op *pb.RemoveXattr) (*pb.Result, error) {
	in, err := getInode(x, op.Inode)
	if err != nil {
		return nil, err
	}
	if err := xattrAccess(in, x.cred, op.Name, posix.Write); err != nil {
		return nil, err
	}
	if x.Get(bXattr, xattrKey(in.num, op.Name)) == nil {
		return nil, syscall.ENODATA
	}
	if err := x.dropXattr(in, op.Name); err != nil {
		return nil, err
	}
	x.changed(in)
	x.putInode(in)
	return &pb.Result{Attr: in.attr()}, nil
}

// dropXattr removes an attribute if it is there; the caller records the inode.
func (x *tx) dropXattr(in *inode, name string) error {
	key := xattrKey(in.num, name)
	old, err := decodeXattr(x.Get(bXattr, key))
	if err != nil {
		return damaged(bXattr, key)
	}
	if old == nil {
		return nil
	}
	n := uint32(len(name) + len(old))
	if n > in.xattrBytes {
		return damaged(bInode, key8(in.num))
	}
	in.xattrBytes -= n
	x.Delete(bXattr, key)
	return nil
}

// dropXattrs removes all attributes of an inode that goes away.
func (x *tx) dropXattrs(in *inode) {
	var keys [][]byte
	scan8(x, bXattr, in.num, func(rest, _ []byte) bool {
		keys = append(keys, xattrKey(in.num, string(rest)))
		return true
	})
	for _, k := range keys {
		x.Delete(bXattr, k)
	}
}

// decodeXattr returns the value in a stored one, nil for nil; it shares its memory.
func decodeXattr(v []byte) ([]byte, error) {
	switch {
	case v == nil:
		return nil, nil
	case len(v) == 0 || v[0] != formatVersion:
		return nil, errDamaged
	}
	return v[1:len(v):len(v)], nil
}

func isTrusted(name string) bool { return strings.HasPrefix(name, "trusted.") }
