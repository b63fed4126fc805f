package faultfs

import (
	"errors"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// Kind is a kind of operation of a disk.
type Kind int

// The kinds.
const (
	Names Kind = iota // making, looking up and removing files and directories
	Read
	Write // and truncation
	Sync  // of files and directories
	kinds
)

// Faults are what is wrong with a disk, for each kind of operation.
type Faults struct {
	Errno [kinds]syscall.Errno // what it fails with; 0: it does not
	// Delay is how much longer it takes. The disk does one thing after another.
	Delay [kinds]time.Duration
	// IgnoreSync has fsync do nothing and return no error, as a disk that lies.
	IgnoreSync bool
}

// Disk is a file system in a directory, with faults.
type Disk struct {
	dir  string
	tree *tree

	busy sync.Mutex // held while an operation is delayed

	mu     sync.Mutex
	server *gofuse.Server
	faults Faults
	frozen chan struct{} // nil: not frozen; closed when it is no longer
	dead   bool
}

// Mount makes an empty disk and mounts it on dir. What it holds is kept in the directory backing, which must be empty.
func Mount(dir, backing string) (*Disk, error) {
	d := &Disk{dir: dir, tree: newTree(backing)}
	return d, d.mount()
}

func (d *Disk) kernel() *gofuse.Server {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.server
}

// SetFaults changes what is wrong with the disk.
func (d *Disk) SetFaults(f Faults) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = f
}

// SetCapacity bounds how many bytes the disk holds; 0: as many as there is room for.
func (d *Disk) SetCapacity(bytes int64) {
	d.tree.space.mu.Lock()
	defer d.tree.space.mu.Unlock()
	d.tree.space.limit = bytes
}

// Used returns how many bytes the disk holds.
func (d *Disk) Used() int64 {
	d.tree.space.mu.Lock()
	defer d.tree.space.mu.Unlock()
	return d.tree.space.used
}

// Freeze has every operation wait that begins from now on: nothing becomes durable any more, and nobody is told anything.
func (d *Disk) Freeze() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.frozen == nil {
		d.frozen = make(chan struct{})
	}
}

// Fail has every operation fail until power was lost, those that wait because the disk is frozen too: the processes that they
// are of can end.
func (d *Disk) Fail() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	if d.frozen != nil {
		close(d.frozen)
		d.frozen = nil
	}
}

// LosePower leaves of the disk's content what is durable. With random numbers some of the rest survives. Nothing may be
// using the disk: its processes were killed, which is what a loss of power does to them.
func (d *Disk) LosePower(rng *rand.Rand) error {
	if err := d.Unmount(); err != nil {
		return err
	}
	if err := d.tree.losePower(rng); err != nil {
		return err
	}
	d.mu.Lock()
	d.dead = false
	d.mu.Unlock()
	return d.mount()
}

// begin waits until the disk comes to an operation, and returns the error that it fails with.
func (d *Disk) begin(k Kind) syscall.Errno {
	d.mu.Lock()
	for d.frozen != nil {
		frozen := d.frozen
		d.mu.Unlock()
		<-frozen
		d.mu.Lock()
	}
	f, dead := d.faults, d.dead
	d.mu.Unlock()
	if dead {
		return syscall.EIO
	}
	if delay := f.Delay[k]; delay > 0 {
		d.busy.Lock()
		time.Sleep(delay) // which is the fault
		d.busy.Unlock()
	}
	return f.Errno[k]
}

func (d *Disk) ignoresSync() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.faults.IgnoreSync
}

// Files calls do with the path and size of every file.
func (d *Disk) Files(do func(path string, size int64)) {
	d.tree.mu.Lock()
	defer d.tree.mu.Unlock()
	d.tree.walk(d.tree.root, "", do)
}

func (t *tree) walk(dir *node, at string, do func(string, int64)) {
	for name, n := range dir.names {
		if n.isDir() {
			t.walk(n, path.Join(at, name), do)
		} else {
			do(path.Join(at, name), n.data.length())
		}
	}
}

// Flip changes a bit of a file where it lies on the disk.
func (d *Disk) Flip(file string, off int64) error {
	d.tree.mu.Lock()
	n := d.tree.root
	for name := range strings.SplitSeq(file, "/") {
		if n != nil && n.isDir() {
			n = n.names[name]
		}
	}
	d.tree.mu.Unlock()
	if n == nil || n.data == nil {
		return &os.PathError{Op: "flip", Path: file, Err: syscall.ENOENT}
	}
	if err := n.data.with(func() error { return n.data.flip(off) }); err != nil {
		return err
	}
	// What the kernel has of it is to be read again.
	if st := d.kernel().InodeNotify(n.ino, 0, 0); !st.Ok() && st != gofuse.ENOENT {
		return errors.New(st.String())
	}
	return nil
}
