package fuse

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/internal/fserr"
)

const (
	holdFor      = time.Second // what passes at most between a lookup and the open that it is for
	lostBound    = 1024        // callers remembered
	linksBound   = 256         // symlinks remembered
	holdAttempts = 20
)

// lost remembers the callers that were just told ESTALE: they named a file that was replaced between its lookup and its
// open. The kernel looks the name up again for them, but only once, and a file that is replaced all the time would be
// missed twice. So that second lookup holds the file that it finds until the open has come, and remembers the target of a
// symlink, which is to be read.
type lost struct {
	n      atomic.Int64
	mu     sync.Mutex
	caller map[uint32]time.Time  // by process (thread), until when
	links  map[client.Ino]string // targets, which never change
	held   sync.WaitGroup
}

func (l *lost) add(pid uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.caller) >= lostBound {
		clear(l.caller)
	}
	if l.caller == nil {
		l.caller = map[uint32]time.Time{}
	}
	l.caller[pid] = time.Now().Add(holdFor)
	l.n.Store(int64(len(l.caller)))
}

// has tells whether the caller was told ESTALE a moment ago. It costs nothing while nobody was.
func (l *lost) has(pid uint32) bool {
	if l.n.Load() == 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	until, ok := l.caller[pid]
	if ok && time.Now().After(until) {
		delete(l.caller, pid)
		l.n.Store(int64(len(l.caller)))
		return false
	}
	return ok
}

func (l *lost) remember(link *client.Attr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.links) >= linksBound {
		clear(l.links)
	}
	if l.links == nil {
		l.links = map[client.Ino]string{}
	}
	l.links[link.Ino] = link.Symlink
}

// target returns the target of a symlink that was remembered.
func (l *lost) target(ino client.Ino) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, ok := l.links[ino]
	return t, ok
}

// stale is the error of a request that names an inode which is not there any more: ESTALE makes the kernel look the path
// up again.
func (f *filesystem) stale(h *gofuse.InHeader, err error) error {
	if gone(err) {
		f.lost.add(h.Pid)
	}
	return stale(err)
}

// gone tells whether a request failed because the inode that it names does not exist.
func gone(err error) bool {
	errno := fserr.Errno(err)
	return errno == syscall.ESTALE || errno == syscall.ENOENT
}

func stale(err error) error {
	if gone(err) {
		return fserr.New(syscall.ESTALE, "the inode is gone")
	}
	return err
}

// lookup finds a name, and holds the file that has it if the caller missed it before.
func (f *filesystem) lookup(c *call, h *gofuse.InHeader, name string) (client.Attr, error) {
	dir, cred := f.ino(h.NodeId), f.cred(h)
	a, err := f.low.Lookup(c, cred, dir, name)
	if err != nil || !f.lost.has(h.Pid) {
		return a, err
	}
	for range holdAttempts {
		if !a.IsRegular() || f.hold(c, a.Ino) {
			break
		}
		if a, err = f.low.Lookup(c, cred, dir, name); err != nil {
			return a, err
		}
	}
	if a.IsSymlink() {
		f.lost.remember(&a)
	}
	return a, nil
}

// hold keeps a file in being for a moment, whatever happens to its name; false if it has gone already.
func (f *filesystem) hold(c *call, ino client.Ino) bool {
	h, err := f.low.Open(c, client.Cred{}, ino, syscall.O_RDONLY) // gives nobody access
	if err != nil {
		return !gone(err)
	}
	f.lost.held.Go(func() {
		t := time.NewTimer(holdFor)
		defer t.Stop()
		select {
		case <-t.C:
		case <-f.unmounted:
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(f.ctx), releaseGrace)
		defer cancel()
		if err := h.Release(ctx); err != nil {
			f.log.Error("what was written to a file is lost", "inode", uint64(ino), "err", err)
		}
	})
	return true
}
