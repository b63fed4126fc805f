package faultfs

import (
	"errors"
	"sync"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fuseFS answers the kernel for a disk, from the mount until it ends.
type fuseFS struct {
	gofuse.RawFileSystem // says ENOSYS to everything else
	d                    *Disk
	tree                 *tree

	mu    sync.Mutex
	lists map[uint64][]gofuse.DirEntry // directories that are being read, by handle
	next  uint64
}

func newFuseFS(d *Disk) *fuseFS {
	return &fuseFS{RawFileSystem: gofuse.NewDefaultRawFileSystem(), d: d, tree: d.tree, lists: map[uint64][]gofuse.DirEntry{}}
}

// remember is how long the kernel may believe what it was told: nothing changes but by its own doing.
const remember = time.Hour

func status(err error) gofuse.Status {
	var errno syscall.Errno
	switch {
	case err == nil:
		return gofuse.OK
	case errors.As(err, &errno):
		return gofuse.Status(errno)
	}
	return gofuse.EIO
}

// names does an operation on names.
func (f *fuseFS) names(do func(t *tree) error) gofuse.Status {
	if errno := f.d.begin(Names); errno != 0 {
		return gofuse.Status(errno)
	}
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	return status(do(f.tree))
}

// attr is what is known of a node. The tree's lock is held.
func (n *node) attr(out *gofuse.Attr) {
	out.Ino, out.Mode, out.Nlink, out.Uid, out.Gid, out.Blksize = n.ino, n.mode, uint32(n.links), n.uid, n.gid, blockSize
	if n.isDir() {
		out.Nlink++
	} else {
		out.Size = uint64(n.data.length())
		out.Blocks = uint64(blocks(int64(out.Size)) / 512)
	}
	out.SetTimes(&n.atime, &n.mtime, &n.ctime)
}

// enter tells the kernel of a node, by which it knows it from then on.
func (n *node) enter(out *gofuse.EntryOut) {
	n.lookups++
	out.NodeId, out.Generation = n.ino, 1
	out.SetEntryTimeout(remember)
	out.SetAttrTimeout(remember)
	n.attr(&out.Attr)
}

// Lookup implements gofuse.RawFileSystem, as do all that follow.
func (f *fuseFS) Lookup(_ <-chan struct{}, in *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	return f.names(func(t *tree) error {
		n, err := t.child(t.nodes[in.NodeId], name)
		if err == nil && n == nil {
			err = unix.ENOENT
		}
		if err == nil {
			n.enter(out)
		}
		return err
	})
}

func (f *fuseFS) Forget(ino, lookups uint64) {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	if n := f.tree.nodes[ino]; n != nil {
		n.lookups -= min(lookups, n.lookups)
		f.tree.collect(n)
	}
}

func (f *fuseFS) node(ino uint64) *node {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	return f.tree.nodes[ino]
}

func (f *fuseFS) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	return f.names(func(t *tree) error { return t.getAttr(in.NodeId, out) })
}

func (t *tree) getAttr(ino uint64, out *gofuse.AttrOut) error {
	n := t.nodes[ino]
	if n == nil {
		return unix.ESTALE
	}
	out.SetTimeout(remember)
	n.attr(&out.Attr)
	return nil
}

func (f *fuseFS) SetAttr(_ <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	if size, ok := in.GetSize(); ok {
		n := f.node(in.NodeId)
		if n == nil || n.data == nil {
			return gofuse.EINVAL
		}
		if errno := f.d.begin(Write); errno != 0 {
			return gofuse.Status(errno)
		}
		if err := n.data.with(func() error { return n.data.truncate(int64(size)) }); err != nil {
			return status(err)
		}
	}
	return f.names(func(t *tree) error {
		n := t.nodes[in.NodeId]
		if n == nil {
			return unix.ESTALE
		}
		if mode, ok := in.GetMode(); ok {
			n.mode = n.mode&unix.S_IFMT | mode&0o7777
		}
		if uid, ok := in.GetUID(); ok {
			n.uid = uid
		}
		if gid, ok := in.GetGID(); ok {
			n.gid = gid
		}
		if at, ok := in.GetATime(); ok {
			n.atime = at
		}
		n.ctime = time.Now()
		if mt, ok := in.GetMTime(); ok {
			n.mtime = mt
		} else if _, ok := in.GetSize(); ok {
			n.mtime = n.ctime
		}
		return t.getAttr(in.NodeId, out)
	})
}

func (f *fuseFS) Mkdir(_ <-chan struct{}, in *gofuse.MkdirIn, name string, out *gofuse.EntryOut) gofuse.Status {
	return f.names(func(t *tree) error {
		n, err := t.create(t.nodes[in.NodeId], name, unix.S_IFDIR|in.Mode&0o7777, in.Uid, in.Gid)
		if err == nil {
			n.enter(out)
		}
		return err
	})
}

func (f *fuseFS) Create(_ <-chan struct{}, in *gofuse.CreateIn, name string, out *gofuse.CreateOut) gofuse.Status {
	return f.names(func(t *tree) error {
		n, err := t.create(t.nodes[in.NodeId], name, unix.S_IFREG|in.Mode&0o7777, in.Uid, in.Gid)
		if err != nil {
			return err
		}
		if err := n.data.retain(); err != nil {
			return err
		}
		n.opens++
		n.enter(&out.EntryOut)
		return nil
	})
}

func (f *fuseFS) Link(_ <-chan struct{}, in *gofuse.LinkIn, name string, out *gofuse.EntryOut) gofuse.Status {
	return f.names(func(t *tree) error {
		n := t.nodes[in.Oldnodeid]
		if n == nil {
			return unix.ESTALE
		}
		if err := t.link(n, t.nodes[in.NodeId], name); err != nil {
			return err
		}
		n.enter(out)
		return nil
	})
}

func (f *fuseFS) Unlink(_ <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	return f.names(func(t *tree) error { return t.remove(t.nodes[in.NodeId], name, false) })
}

func (f *fuseFS) Rmdir(_ <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	return f.names(func(t *tree) error { return t.remove(t.nodes[in.NodeId], name, true) })
}

func (f *fuseFS) Rename(_ <-chan struct{}, in *gofuse.RenameIn, name, newName string) gofuse.Status {
	if in.Flags&^unix.RENAME_NOREPLACE != 0 {
		return gofuse.EINVAL
	}
	return f.names(func(t *tree) error {
		return t.rename(t.nodes[in.NodeId], name, t.nodes[in.Newdir], newName, in.Flags != 0)
	})
}

func (f *fuseFS) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	if errno := f.d.begin(Names); errno != 0 {
		return gofuse.Status(errno)
	}
	total, free, err := f.tree.space.figures()
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, 255
	out.Blocks, out.Bfree, out.Bavail = total, free, free
	out.Files, out.Ffree = 1<<30, 1<<30
	return status(err)
}
