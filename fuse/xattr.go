package fuse

import (
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/internal/fserr"
)

// GetXAttr returns the value's size and, where dest has room, the value. Most files have no xattrs, and programs ask for
// those all the time: that is answered from the attributes.
func (f *filesystem) GetXAttr(cancel <-chan struct{}, h *gofuse.InHeader, name string, dest []byte) (size uint32, status gofuse.Status) {
	status = f.serve(opGetXattr, cancel, func(c *call) error {
		ino := f.ino(h.NodeId)
		a, err := f.low.GetAttr(c, ino)
		if err != nil {
			return stale(err)
		}
		if !a.HasXattrs {
			return syscall.ENODATA
		}
		value, err := f.low.GetXattr(c, f.cred(h), ino, name)
		if err != nil {
			return stale(err)
		}
		size, err = answer(dest, value)
		return err
	})
	return size, status
}

func (f *filesystem) ListXAttr(cancel <-chan struct{}, h *gofuse.InHeader, dest []byte) (size uint32, status gofuse.Status) {
	status = f.serve(opListXattr, cancel, func(c *call) error {
		ino := f.ino(h.NodeId)
		a, err := f.low.GetAttr(c, ino)
		if err != nil {
			return stale(err)
		}
		if !a.HasXattrs {
			return nil
		}
		names, err := f.low.ListXattr(c, f.cred(h), ino)
		if err != nil {
			return stale(err)
		}
		var list []byte
		for _, name := range names {
			list = append(append(list, name...), 0)
		}
		size, err = answer(dest, list)
		return err
	})
	return size, status
}

// answer copies what was asked for. A caller that only wants to know the size has no room at all.
func answer(dest, value []byte) (uint32, error) {
	if len(dest) < len(value) {
		return uint32(len(value)), syscall.ERANGE // go-fuse makes a success of it when there was no room at all
	}
	return uint32(copy(dest, value)), nil
}

func (f *filesystem) SetXAttr(cancel <-chan struct{}, in *gofuse.SetXAttrIn, name string, value []byte) gofuse.Status {
	return f.serve(opSetXattr, cancel, func(c *call) error {
		flags := int(in.Flags)
		if flags&^(client.XattrCreate|client.XattrReplace) != 0 {
			return fserr.New(syscall.EINVAL, "setxattr flags %#x", flags)
		}
		// The value lies in a buffer that is used again after the answer, the mutation may be retried after that.
		value = append([]byte(nil), value...)
		return stale(f.low.SetXattr(c, f.cred(&in.InHeader), f.ino(in.NodeId), name, value, flags))
	})
}

func (f *filesystem) RemoveXAttr(cancel <-chan struct{}, h *gofuse.InHeader, name string) gofuse.Status {
	return f.serve(opRemoveXattr, cancel, func(c *call) error {
		return stale(f.low.RemoveXattr(c, f.cred(h), f.ino(h.NodeId), name))
	})
}
