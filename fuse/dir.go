package fuse

import (
	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/shoalfs/shoalfs/client"
)

// dir is an open directory. Offset 0 is before ".", 1 before "..", and n+2 is the client's offset n.
type dir struct {
	ino client.Ino
	d   *client.Dir
}

const dots = 2 // entries that are not the client's

func (f *filesystem) OpenDir(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	return f.serve(opOpenDir, cancel, func(c *call) error {
		ino := f.ino(in.NodeId)
		d, err := f.low.OpenDir(c, f.cred(&in.InHeader), ino)
		if err != nil {
			return stale(err)
		}
		out.Fh = f.dirs.add(&dir{ino, d})
		f.metrics.handles.Inc()
		return nil
	})
}

func (f *filesystem) ReadDir(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.readDir(cancel, in, func(_ *call, _ *dir, e gofuse.DirEntry, _ *client.Attr) bool { return out.AddDirEntry(e) })
}

func (f *filesystem) ReadDirPlus(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.readDir(cancel, in, func(c *call, d *dir, e gofuse.DirEntry, a *client.Attr) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if a != nil {
			f.entry(c, entry, d.ino, a, a.ParentLeaseUntil)
		}
		return true
	})
}

// readDir hands the entries from an offset on to add, until that is full.
func (f *filesystem) readDir(cancel <-chan struct{}, in *gofuse.ReadIn, add func(*call, *dir, gofuse.DirEntry, *client.Attr) bool) gofuse.Status {
	return f.serve(opReadDir, cancel, func(c *call) error {
		d, err := f.dirs.get(in.Fh)
		if err != nil {
			return err
		}
		off := in.Offset
		if off == 0 {
			if !add(c, d, gofuse.DirEntry{Name: ".", Mode: gofuse.S_IFDIR, Ino: uint64(d.ino), Off: 1}, nil) {
				return nil
			}
			off = 1
		}
		if off == 1 {
			if !add(c, d, gofuse.DirEntry{Name: "..", Mode: gofuse.S_IFDIR, Ino: f.parent(c, d.ino), Off: dots}, nil) {
				return nil
			}
			off = dots
		}
		for {
			entries, err := d.d.ReadAt(c, off-dots)
			if err != nil {
				return stale(err)
			}
			if len(entries) == 0 {
				return nil
			}
			for i := range entries {
				e := &entries[i]
				off = e.Next + dots
				if !add(c, d, gofuse.DirEntry{Name: e.Name, Mode: e.Attr.Mode, Ino: uint64(e.Attr.Ino), Off: off}, &e.Attr) {
					return nil
				}
			}
		}
	})
}

// parent returns the inode that ".." shows: the root of a mount is its own parent.
func (f *filesystem) parent(c *call, ino client.Ino) uint64 {
	if ino == f.root {
		return uint64(ino)
	}
	if a, err := f.low.GetAttr(c, ino); err == nil && a.Parent != 0 {
		return uint64(a.Parent)
	}
	return uint64(ino)
}

func (f *filesystem) ReleaseDir(in *gofuse.ReleaseIn) {
	if _, ok := f.dirs.remove(in.Fh); ok {
		f.metrics.handles.Dec()
	}
}

// FsyncDir has nothing to do: a change of a directory is durable when it returns.
func (f *filesystem) FsyncDir(cancel <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	return gofuse.OK
}
