package meta

import (
	"context"
	"slices"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// opens counts which inodes are open in this client, and which of them the server may hold for it although they have no
// name any more. It is part of the cache, under the cache's lock, because whether an inode is open is answered together
// with a revocation.
type opens struct {
	counts   map[uint64]int
	guards   map[uint64]*guard // inodes that an own mutation in flight may take the last name of
	creating map[uint64]struct{}
	created  uint64            // number of the last creation begun
	suspects map[uint64]uint64 // inodes that may be held: creations before this one must have ended to know better
	wake     func()            // there may be something to release
}

// guard makes opens of an inode wait: the server was told whether it is open.
type guard struct {
	n    int
	done chan struct{}
}

func (o *opens) init() {
	o.counts, o.guards = map[uint64]int{}, map[uint64]*guard{}
	o.creating, o.suspects = map[uint64]struct{}{}, map[uint64]uint64{}
	o.wake = func() {}
}

// revoked notes that the server may from now on hold the inode for this client.
func (o *opens) revoked(ino uint64) {
	if o.counts[ino] > 0 || len(o.creating) > 0 {
		o.suspects[ino] = o.created
		if o.counts[ino] == 0 {
			o.wake()
		}
	}
}

func (o *opens) beginCreate() uint64 {
	o.created++
	o.creating[o.created] = struct{}{}
	return o.created
}

func (o *opens) endCreate(id uint64) {
	delete(o.creating, id)
	if len(o.suspects) > 0 {
		o.wake()
	}
}

func (o *opens) protect(ino uint64) {
	g := o.guards[ino]
	if g == nil {
		g = &guard{done: make(chan struct{})}
		o.guards[ino] = g
	}
	g.n++
}

func (o *opens) unprotect(ino uint64) {
	if g := o.guards[ino]; g != nil {
		if g.n--; g.n == 0 {
			delete(o.guards, ino)
			close(g.done)
		}
	}
}

// open records an open of ino. With a usable cached view that is all: it returns the attributes. Without, the inode is
// recorded provisionally, so that a revocation is answered "open", and the server must be asked: it returns nil.
func (c *cache) open(ctx context.Context, cred posix.Cred, ino uint64, access uint32) (*pb.Attr, error) {
	for {
		c.mu.Lock()
		g := c.opens.guards[ino]
		if g == nil {
			break
		}
		c.mu.Unlock()
		select {
		case <-g.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer c.mu.Unlock()
	e := c.get(ino)
	if e == nil || c.pending[ino].all > 0 {
		c.opens.counts[ino]++
		return nil, nil
	}
	if err := posix.Access(cred, e.attr.Uid, e.attr.Gid, e.attr.Mode, access); err != nil {
		return nil, err
	}
	c.opens.counts[ino]++
	return e.attr, nil
}

// close takes one open back.
func (c *cache) close(ino uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &c.opens
	if o.counts[ino]--; o.counts[ino] > 0 {
		return
	}
	delete(o.counts, ino)
	if _, suspect := o.suspects[ino]; suspect {
		o.wake()
	}
}

// openInodes lists what is open.
func (c *cache) openInodes() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]uint64, 0, len(c.opens.counts))
	for ino := range c.opens.counts {
		all = append(all, ino)
	}
	slices.Sort(all)
	return all
}

// openOf lists which of inos are open.
func (c *cache) openOf(inos []uint64) []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var open []uint64
	for _, ino := range inos {
		if c.opens.counts[ino] > 0 {
			open = append(open, ino)
		}
	}
	return open
}

// held takes what the server says that it holds for this session.
func (c *cache) held(inos []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ino := range inos {
		c.opens.suspects[ino] = c.opens.created
	}
	c.opens.wake()
}

// unhold forgets what was held: the session is gone.
func (c *cache) unhold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.opens.suspects)
}

// closedSuspects lists inodes that are not open and may be held, and tells whether there are others to look at later.
func (c *cache) closedSuspects() (ready []uint64, later bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	oldest := c.opens.created + 1
	for id := range c.opens.creating {
		oldest = min(oldest, id)
	}
	for ino, after := range c.opens.suspects {
		switch {
		case c.opens.counts[ino] > 0:
		case after >= oldest:
			later = true
		default:
			ready = append(ready, ino)
		}
	}
	return ready, later
}

// settle removes a suspect that was released or cannot be held, unless it was opened meanwhile.
func (c *cache) settle(inos []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ino := range inos {
		if c.opens.counts[ino] == 0 {
			delete(c.opens.suspects, ino)
		}
	}
}

// reaper gives up unlinked inodes that the server holds for this client and that it has not open any more.
type reaper struct {
	c    *Client
	wake chan struct{}
}

// reapRetry is how long an inode is left alone about which the server could not say yet.
const reapRetry = 100 * time.Millisecond

func newReaper(c *Client) *reaper {
	r := &reaper{c: c, wake: make(chan struct{}, 1)}
	c.cache.opens.wake = func() {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
	return r
}

func (r *reaper) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-timer.C:
		}
		if r.pass(ctx) {
			timer.Reset(reapRetry)
		}
	}
}

// pass releases what it can and tells whether it has to look again.
func (r *reaper) pass(ctx context.Context) (again bool) {
	ready, again := r.c.cache.closedSuspects()
	var release, clean []uint64
	for _, ino := range ready {
		// An answer without a lease may be older than an unlink that counts this client as a holder.
		switch a, until, err := r.c.GetAttr(ctx, ino); {
		case isErrno(err, syscall.ENOENT), isErrno(err, syscall.ESTALE):
			clean = append(clean, ino)
		case err != nil:
			again = true
		case a.Nlink == 0:
			release = append(release, ino)
		case !until.IsZero():
			clean = append(clean, ino)
		default:
			again = true
		}
		if ctx.Err() != nil {
			return false
		}
	}
	r.c.cache.settle(clean)
	for part := range slices.Chunk(release, 4096) {
		_, err := r.c.Mutate(ctx, posix.Cred{}, &pb.Op{Op: &pb.Op_ReleaseInodes{ReleaseInodes: &pb.ReleaseInodes{Inodes: part}}})
		if err != nil {
			r.c.log.Warn("cannot release unlinked inodes", "count", len(part), "err", err)
			again = true
			continue
		}
		r.c.cache.settle(part)
	}
	return again
}
