package meta

import (
	"context"
	"sync"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	maxRevoked  = 64 << 10 // inodes whose revocation is remembered one by one
	maxDropped  = 64 << 10 // leases given up in one ping
	cacheBlocks = 64       // blocks of extents kept of one inode
)

// entry is what is cached of one inode under its lease. It exists only while attr is known.
type entry struct {
	ino      uint64
	attr     *pb.Attr // never changed, only replaced
	names    map[string]name
	complete uint64                      // every name not in names was absent at this log index; 0: nothing known
	blocks   map[uint64]*pb.ExtentsReply // by number of the block of posix.ExtentBlock bytes
	extents  int                         // weight of blocks
	weight   int
	prev     *entry // in the cache's list, least recently used first
	next     *entry
}

// name is what a name meant at a log index.
type name struct {
	ino   uint64 // 0: there was none
	index uint64
}

type dirName struct {
	dir  uint64
	name string
}

// cache holds entries while the lease runs, and knows which inodes are open. All of its state is under mu.
type cache struct {
	limit   int
	metrics *metrics
	spawn   func(func()) bool

	mu        sync.Mutex
	until     time.Time     // the lease
	wall      int64         // likewise by the wall clock, ns
	granted   chan struct{} // closed at the first lease
	entries   map[uint64]*entry
	head      entry // of the list
	weight    int
	epoch     uint64            // counts what made replies on their way uncacheable
	floor     uint64            // replies to requests of an earlier epoch are not cached
	revoked   map[uint64]uint64 // likewise for one inode
	dropped   []uint64          // leases given up, to be told
	wake      func()            // there is something to tell; nil while no stream is connected
	observers []func(uint64, func())

	pending      map[uint64]pendings // inodes that mutations in flight change
	pendingNames map[dirName]int
	opens        opens
}

// pendings count mutations in flight.
type pendings struct {
	all  int
	perm int // those that may change owner or mode
}

func newCache(limit int, m *metrics, spawn func(func()) bool) *cache {
	c := &cache{limit: limit, metrics: m, spawn: spawn, granted: make(chan struct{}), epoch: 1}
	c.entries, c.revoked = map[uint64]*entry{}, map[uint64]uint64{}
	c.pending, c.pendingNames = map[uint64]pendings{}, map[dirName]int{}
	c.opens.init()
	c.head.prev, c.head.next = &c.head, &c.head
	return c
}

func (c *cache) observe(f func(uint64, func())) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.observers = append(c.observers, f)
}

// waitLease returns when there is a lease.
func (c *cache) waitLease(ctx context.Context) error {
	select {
	case <-c.granted:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// renew extends the lease. When it had run out, all that was cached is dropped first, because the server may have let
// others change it since.
func (c *cache) renew(until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.runs() {
		c.notify(c.clear(), func() {})
	}
	if until.After(c.until) {
		c.until, c.wall = until, until.UnixNano()
	}
	select {
	case <-c.granted:
	default:
		close(c.granted)
	}
}

// runs tells whether the lease has not run out. Both clocks have to say so: the monotonic one stands still while the machine
// sleeps. Where the wall clock is set forward, that only costs what is cached. mu is held.
func (c *cache) runs() bool {
	now := time.Now()
	return now.Before(c.until) && now.UnixNano() < c.wall
}

// drop drops everything at once. That is enough when the lease ran out long ago.
func (c *cache) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notify(c.clear(), func() {})
	c.until = time.Time{}
}

// reset drops everything, as must be done before the session connects to a leader, and returns when the observers have
// dropped theirs or the lease, to whose end they may use it, has run out.
func (c *cache) reset(ctx context.Context) {
	c.mu.Lock()
	gone, until := c.clear(), c.until
	done := make(chan struct{})
	c.until = time.Time{}
	told := c.notify(gone, func() { close(done) })
	c.mu.Unlock()
	if told {
		waitUntil(ctx, done, until)
	}
}

// waitUntil returns when done is closed, at the given time, or when ctx ends.
func waitUntil(ctx context.Context, done <-chan struct{}, until time.Time) {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// clear drops all entries and returns their inodes. mu is held.
func (c *cache) clear() []uint64 {
	gone := make([]uint64, 0, len(c.entries))
	for ino := range c.entries {
		gone = append(gone, ino)
	}
	clear(c.entries)
	clear(c.revoked)
	c.head.prev, c.head.next = &c.head, &c.head
	c.weight, c.dropped = 0, nil
	c.epoch++
	c.floor = c.epoch
	return gone
}

// revoke drops inodes that another client is about to change, and calls done when the observers have dropped them too, or
// when the lease that their copies rest on has run out.
func (c *cache) revoke(inos []uint64, done func()) {
	c.mu.Lock()
	c.metrics.revoked.Add(float64(len(inos)))
	c.epoch++
	for _, ino := range inos {
		c.distrust(ino)
		c.opens.revoked(ino)
	}
	done = sync.OnceFunc(done)
	told := c.notify(inos, done)
	until := c.until
	c.mu.Unlock()
	if told {
		time.AfterFunc(time.Until(until), done)
	} else {
		done()
	}
}

// distrust drops an inode, and with it all replies on their way that tell of it. mu is held and the epoch raised.
func (c *cache) distrust(ino uint64) {
	if len(c.revoked) >= maxRevoked {
		clear(c.revoked)
		c.floor = c.epoch
	}
	c.revoked[ino] = c.epoch
	if e := c.entries[ino]; e != nil {
		c.remove(e)
	}
}

// forget is distrust for an inode whose fate this client's own mutation left uncertain. mu is held.
func (c *cache) forget(ino uint64) {
	if ino == 0 {
		return
	}
	c.epoch++
	c.distrust(ino)
}

// notify tells the observers in the background, and then calls done. Where there is nobody to tell it returns false: the
// caller goes on by itself. mu is held.
func (c *cache) notify(inos []uint64, done func()) bool {
	observers := c.observers
	if len(observers) == 0 || len(inos) == 0 {
		return false
	}
	return c.spawn(func() {
		var left sync.WaitGroup
		left.Add(len(inos) * len(observers))
		for _, ino := range inos {
			for _, o := range observers {
				o(ino, sync.OnceFunc(left.Done))
			}
		}
		left.Wait()
		done()
	})
}

// remove takes an entry out. mu is held.
func (c *cache) remove(e *entry) {
	delete(c.entries, e.ino)
	e.prev.next, e.next.prev = e.next, e.prev
	c.weight -= e.weight
}

// get returns an entry that may be used now, or nil. mu is held.
func (c *cache) get(ino uint64) *entry {
	e := c.entries[ino]
	if e == nil || !c.runs() {
		return nil
	}
	if c.head.prev != e { // to the end of the list
		e.prev.next, e.next.prev = e.next, e.prev
		c.append(e)
	}
	return e
}

func (c *cache) append(e *entry) {
	e.prev, e.next = c.head.prev, &c.head
	e.prev.next, e.next.prev = e, e
}

// sent returns the epoch that a request is sent in.
func (c *cache) sent() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.epoch
}

// trusted tells whether a leased reply about ino to a request of that epoch may be cached. mu is held.
func (c *cache) trusted(ino, sent uint64) bool {
	return sent >= c.floor && c.revoked[ino] <= sent && c.runs()
}

// learn caches attributes and returns the entry, or nil if a reply of that epoch must not be cached. mu is held.
func (c *cache) learn(a *pb.Attr, sent uint64) *entry {
	if a == nil || !c.trusted(a.Inode, sent) {
		return nil
	}
	e := c.entries[a.Inode]
	switch {
	case e == nil:
		e = &entry{ino: a.Inode, attr: a}
		c.entries[a.Inode] = e
		c.append(e)
		c.grow(e, 1)
	case a.Version >= e.attr.Version:
		if a.DataVersion != e.attr.DataVersion {
			c.dropBlocks(e)
		}
		e.attr = a
	}
	return e
}

// learnName caches what a name in e's directory meant at a log index. mu is held.
func (c *cache) learnName(e *entry, n string, ino, index uint64) {
	old, known := e.names[n]
	if known && old.index > index || !known && e.complete > index {
		return
	}
	if !known {
		if len(e.names) >= c.limit/2 { // one directory must not have it all
			c.epoch++
			c.distrust(e.ino)
			return
		}
		if e.names == nil {
			e.names = map[string]name{}
		}
		c.grow(e, 1)
	}
	e.names[n] = name{ino, index}
}

// learnExtents caches a reply that describes one block. mu is held.
func (c *cache) learnExtents(r *pb.ExtentsReply, sent uint64) {
	e := c.learn(r.Attr, sent)
	if e == nil || r.Offset%posix.ExtentBlock != 0 || r.Attr.DataVersion != e.attr.DataVersion {
		return
	}
	if r.End < r.Offset+posix.ExtentBlock && r.End < r.Attr.Size {
		return
	}
	block := r.Offset / posix.ExtentBlock
	if len(e.blocks) >= cacheBlocks || e.blocks[block] != nil {
		c.dropBlocks(e)
	}
	c.keepBlock(e, block, r)
}

// How many extents, and how many bytes of inline data, count as much as an inode or a name, which take half a KiB each.
const (
	extentsPerWeight = 8
	inlinePerWeight  = 512
)

func (c *cache) keepBlock(e *entry, block uint64, r *pb.ExtentsReply) {
	inline := 0
	for _, x := range r.Extents {
		inline += len(x.Data)
	}
	w := 1 + len(r.Extents)/extentsPerWeight + inline/inlinePerWeight
	if w > c.limit/2 {
		return
	}
	if e.blocks == nil {
		e.blocks = map[uint64]*pb.ExtentsReply{}
	}
	e.blocks[block] = r
	e.extents += w
	c.grow(e, w)
}

func (c *cache) dropBlocks(e *entry) {
	c.grow(e, -e.extents)
	e.blocks, e.extents = nil, 0
}

// grow changes the weight of an entry and makes room. mu is held.
func (c *cache) grow(e *entry, by int) {
	if c.entries[e.ino] != e {
		return // evicted to make room for something else of the same reply
	}
	e.weight += by
	c.weight += by
	for c.weight > c.limit {
		v := c.head.next
		if v == e {
			return
		}
		c.evict(v)
	}
}

// evict gives an entry up: first the observers drop what they have, then the server is told. It answers with a
// revocation like any other, so that a reply on its way does no harm.
func (c *cache) evict(e *entry) {
	c.metrics.evicted.Inc()
	c.epoch++
	c.distrust(e.ino)
	told := c.notify([]uint64{e.ino}, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.tellDropped(e.ino)
	})
	if !told {
		c.tellDropped(e.ino)
	}
}

func (c *cache) tellDropped(ino uint64) {
	if len(c.dropped) >= maxDropped || c.entries[ino] != nil {
		return // the server takes the oldest leases back by itself when there are too many
	}
	c.dropped = append(c.dropped, ino)
	if len(c.dropped) == maxDropped/4 && c.wake != nil {
		c.wake()
	}
}

// takeDropped returns the leases given up since it was last called.
func (c *cache) takeDropped() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.dropped
	c.dropped = nil
	return d
}

func (c *cache) setWake(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wake = f
}

// leased returns how long the cached attributes of ino may be used; zero if they are not cached.
func (c *cache) leased(ino uint64) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.usable(ino)
}

func (c *cache) usable(ino uint64) time.Time {
	if c.get(ino) == nil || c.pending[ino].all > 0 {
		return time.Time{}
	}
	return c.until
}

// Found is the answer to a lookup.
type Found struct {
	Attr      *pb.Attr  // nil: no such name
	Until     time.Time // how long the attributes may be used without asking; zero: not at all
	NameUntil time.Time // likewise the name, or that there is none
}

// lookup answers from the cache. ok is false where it cannot; child is then the inode if at least that is known.
func (c *cache) lookup(cred posix.Cred, parent uint64, n string) (f Found, child uint64, ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.get(parent)
	if e == nil || c.pending[parent].perm > 0 || c.pendingNames[dirName{parent, n}] > 0 {
		return Found{}, 0, false, nil
	}
	if err := mayRead(cred, e.attr, posix.Execute); err != nil {
		return Found{}, 0, true, err
	}
	was, known := e.names[n]
	switch {
	case !known && e.complete == 0:
		return Found{}, 0, false, nil
	case was.ino == 0:
		return Found{NameUntil: c.until}, 0, true, nil
	}
	ce := c.get(was.ino)
	if ce == nil || c.pending[was.ino].all > 0 {
		return Found{NameUntil: c.until}, was.ino, false, nil
	}
	return Found{Attr: ce.attr, Until: c.until, NameUntil: c.until}, was.ino, true, nil
}

// mayRead checks what is wanted of a directory.
func mayRead(cred posix.Cred, a *pb.Attr, want uint32) error {
	if a.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return syscall.ENOTDIR
	}
	return posix.Access(cred, a.Uid, a.Gid, a.Mode, want)
}

// attr returns cached attributes, or nil.
func (c *cache) attr(ino uint64) (*pb.Attr, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.get(ino)
	if e == nil || c.pending[ino].all > 0 {
		return nil, time.Time{}
	}
	return e.attr, c.until
}

// extents returns a cached block of extents, or nil.
func (c *cache) extents(ino, offset uint64) *pb.ExtentsReply {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.get(ino)
	if e == nil || c.pending[ino].all > 0 {
		return nil
	}
	return e.blocks[offset/posix.ExtentBlock]
}
