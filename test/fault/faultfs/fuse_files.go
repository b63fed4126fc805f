package faultfs

import (
	"maps"
	"slices"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func (f *fuseFS) Open(_ <-chan struct{}, in *gofuse.OpenIn, _ *gofuse.OpenOut) gofuse.Status {
	return f.names(func(t *tree) error {
		n := t.nodes[in.NodeId]
		if n == nil || n.data == nil {
			return unix.ESTALE
		}
		if err := n.data.retain(); err != nil {
			return err
		}
		n.opens++
		return nil
	})
}

func (f *fuseFS) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	if n := f.tree.nodes[in.NodeId]; n != nil {
		n.data.release()
		n.opens--
		f.tree.collect(n)
	}
}

func (f *fuseFS) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status { return gofuse.OK }

// Read is of a node that is open, as are all that follow.
func (f *fuseFS) Read(_ <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	if errno := f.d.begin(Read); errno != 0 {
		return nil, gofuse.Status(errno)
	}
	n, err := f.node(in.NodeId).data.read(buf, int64(in.Offset))
	if err != nil {
		return nil, status(err)
	}
	return gofuse.ReadResultData(buf[:n]), gofuse.OK
}

func (f *fuseFS) Write(_ <-chan struct{}, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	if errno := f.d.begin(Write); errno != 0 {
		return 0, gofuse.Status(errno)
	}
	n := f.node(in.NodeId)
	if err := n.data.write(data, int64(in.Offset)); err != nil {
		return 0, status(err)
	}
	f.touch(n)
	return uint32(len(data)), gofuse.OK
}

func (f *fuseFS) touch(n *node) {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	n.mtime = time.Now()
	n.ctime = n.mtime
}

// Fallocate only makes files longer: there is no space that could be set aside.
func (f *fuseFS) Fallocate(_ <-chan struct{}, in *gofuse.FallocateIn) gofuse.Status {
	if in.Mode&^unix.FALLOC_FL_KEEP_SIZE != 0 {
		return gofuse.Status(unix.EOPNOTSUPP)
	}
	if errno := f.d.begin(Write); errno != 0 {
		return gofuse.Status(errno)
	}
	n := f.node(in.NodeId)
	end := int64(in.Offset + in.Length)
	if in.Mode == 0 && end > n.data.length() {
		return status(n.data.truncate(end))
	}
	return gofuse.OK
}

func (f *fuseFS) Fsync(_ <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	n := f.node(in.NodeId)
	if errno := f.d.begin(Sync); errno != 0 {
		n.data.failSync()
		return gofuse.Status(errno)
	}
	if !f.d.ignoresSync() {
		n.data.sync()
	}
	return gofuse.OK
}

func (f *fuseFS) FsyncDir(_ <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	if errno := f.d.begin(Sync); errno != 0 {
		return gofuse.Status(errno)
	}
	if f.d.ignoresSync() {
		return gofuse.OK
	}
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	f.tree.sync(f.tree.nodes[in.NodeId])
	return gofuse.OK
}

func (f *fuseFS) OpenDir(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	var list []gofuse.DirEntry
	st := f.names(func(t *tree) error {
		dir := t.nodes[in.NodeId]
		if dir == nil || !dir.isDir() {
			return unix.ENOTDIR
		}
		up := dir.parent
		if up == nil {
			up = dir // it was removed
		}
		list = append(list, gofuse.DirEntry{Name: ".", Ino: dir.ino, Mode: dir.mode}, gofuse.DirEntry{Name: "..", Ino: up.ino, Mode: up.mode})
		for _, name := range slices.Sorted(maps.Keys(dir.names)) {
			n := dir.names[name]
			list = append(list, gofuse.DirEntry{Name: name, Ino: n.ino, Mode: n.mode})
		}
		return nil
	})
	if st.Ok() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.next++
		out.Fh = f.next
		f.lists[out.Fh] = list
	}
	return st
}

func (f *fuseFS) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	f.mu.Lock()
	list := f.lists[in.Fh]
	f.mu.Unlock()
	for i := int(in.Offset); i < len(list); i++ {
		list[i].Off = uint64(i + 1)
		if !out.AddDirEntry(list[i]) {
			break
		}
	}
	return gofuse.OK
}

func (f *fuseFS) ReleaseDir(in *gofuse.ReleaseIn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.lists, in.Fh)
}
