package lease

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// world is a metaserver's state, a table, and clients that cache as the protocol says, over a network that delays
// everything, now and then for longer than a lease.
type world struct {
	t     *testing.T
	seed  uint64
	mu    sync.Mutex
	rng   *rand.Rand
	tab   *Table
	state map[uint64]uint64 // inode -> version
	done  map[uint64]uint64 // inode -> version of the last mutation that returned
	dead  map[uint64][]uint64
	stats struct{ cached, fetched, mutations, opens, unlinks, connections int }
}

const firstVictim = 1000 // inodes from here on are files that are opened and unlinked

func (w *world) n(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

// delay lets a message travel.
func (w *world) delay() {
	switch d := w.n(1000); {
	case d < 5:
		time.Sleep(time.Duration(w.n(8000)) * time.Millisecond)
	case d < 100:
		time.Sleep(time.Duration(w.n(200)) * time.Millisecond)
	default:
		time.Sleep(time.Duration(w.n(3000)) * time.Microsecond)
	}
}

// simClient follows the client's half of the protocol.
type simClient struct {
	w  *world
	id uint64

	mu         sync.Mutex
	generation int // of streams
	ready      bool
	leaseUntil time.Time
	cache      map[uint64]uint64
	epoch      uint64
	revokedAt  map[uint64]uint64
	floor      map[uint64]uint64 // versions that its own mutations made: an older view is never cached
	open       map[uint64]int    // open, or being opened
	pings      uint64            // sent on all streams
}

// run connects, pings and answers until ctx ends.
func (c *simClient) run(ctx context.Context) {
	for ctx.Err() == nil {
		c.connection(ctx)
		c.w.mu.Lock()
		c.w.stats.connections++
		c.w.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *simClient) connection(ctx context.Context) {
	c.mu.Lock()
	c.cache, c.ready = map[uint64]uint64{}, false
	c.generation++
	c.pings++
	first, sent := c.pings, time.Now()
	var opened []uint64
	for inode, n := range c.open {
		if n > 0 {
			opened = append(opened, inode)
		}
	}
	c.mu.Unlock()
	c.w.delay()
	st, err := c.w.tab.Connect(c.id, first, opened)
	if err != nil {
		return
	}
	defer st.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.w.n(40))*time.Second)
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	sentAt := map[uint64]time.Time{first: sent}
	down := make(chan Push, 100)
	up := make(chan func() bool, 1000)
	group.Go(func() { // the server's sender
		defer close(down)
		for {
			select {
			case <-st.C():
			case <-ctx.Done():
				return
			}
			p, err := st.Take()
			if err != nil {
				cancel()
				return
			}
			c.w.delay()
			down <- p
		}
	})
	group.Go(func() { // the server's receiver
		for f := range up {
			c.w.delay()
			if !f() {
				cancel()
			}
		}
	})
	dropping := time.NewTicker(70 * time.Millisecond)
	defer dropping.Stop()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	defer close(up)
	for {
		select {
		case <-ticker.C:
			c.pings++
			n := c.pings
			sentAt[n] = time.Now()
			up <- func() bool { return st.Renew(n) == nil }
		case <-dropping.C:
			if inode := uint64(c.w.n(6)); c.drop(inode) {
				up <- func() bool { st.Dropped([]uint64{inode}); return true }
			}
		case p, ok := <-down:
			if !ok {
				return
			}
			if p.Pong > 0 {
				c.mu.Lock()
				c.leaseUntil, c.ready = sentAt[p.Pong].Add(DefaultLease), true
				c.mu.Unlock()
			}
			for _, r := range p.Revokes {
				opened := c.revoked(r.Inodes)
				up <- func() bool { st.Ack(r.ID, opened); return true }
			}
		}
	}
}

// drop makes room in the cache.
func (c *simClient) drop(inode uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.cache[inode]
	delete(c.cache, inode)
	return ok
}

func (c *simClient) revoked(inodes []uint64) (opened []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	for _, inode := range inodes {
		delete(c.cache, inode)
		c.revokedAt[inode] = c.epoch
		if c.open[inode] > 0 {
			opened = append(opened, inode)
		}
	}
	return opened
}

// ticket is what a client notes when it sends a request.
type ticket struct {
	epoch      uint64
	generation int
	ready      bool
}

func (c *simClient) send() ticket {
	c.mu.Lock()
	defer c.mu.Unlock()
	return ticket{c.epoch, c.generation, c.ready}
}

// keep caches a reply, unless the inode was revoked or the stream changed since the request was sent.
func (c *simClient) keep(tk ticket, inode, version uint64, leased bool) {
	if leased && tk.ready && tk.generation == c.generation && c.revokedAt[inode] <= tk.epoch && version >= c.floor[inode] {
		c.cache[inode] = max(c.cache[inode], version)
	}
}

func (c *simClient) cached(inode uint64) (uint64, bool) {
	if !c.ready || !time.Now().Before(c.leaseUntil) {
		return 0, false
	}
	v, ok := c.cache[inode]
	return v, ok
}

func (c *simClient) read(inode uint64) {
	c.mu.Lock()
	v, ok := c.cached(inode)
	if ok {
		c.w.mu.Lock()
		if want := c.w.done[inode]; v < want {
			c.w.t.Errorf("seed %d: client %d uses version %d of inode %d after the mutation to %d returned", c.w.seed, c.id, v, inode, want)
		}
		c.w.stats.cached++
		c.w.mu.Unlock()
	}
	c.mu.Unlock()
	if ok {
		return
	}
	tk := c.send()
	c.w.delay()
	leased := c.w.tab.Grant(c.id, inode)
	c.w.delay()
	c.w.mu.Lock()
	v = c.w.state[inode]
	c.w.stats.fetched++
	c.w.mu.Unlock()
	c.w.delay()
	c.mu.Lock()
	c.keep(tk, inode, v, leased)
	c.mu.Unlock()
}

func (c *simClient) mutate(ctx context.Context, inodes []uint64) {
	tk := c.send()
	c.w.delay()
	begin, cancel := ctx, func() {}
	if c.w.n(5) == 0 { // a caller that loses patience
		begin, cancel = context.WithTimeout(ctx, time.Duration(c.w.n(4000))*time.Microsecond)
	}
	ch, err := c.w.tab.Begin(begin, Intent{Session: c.id, Inodes: inodes})
	cancel()
	if err != nil {
		return
	}
	c.w.delay()
	versions := map[uint64]uint64{}
	c.w.mu.Lock()
	c.w.stats.mutations++
	for _, inode := range inodes {
		c.w.state[inode]++
		versions[inode] = c.w.state[inode]
	}
	c.w.mu.Unlock()
	leased := c.w.tab.Leased(c.id, inodes...)
	ch.End()
	c.w.delay()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	for inode, v := range versions {
		c.floor[inode] = max(c.floor[inode], v)
		if old, ok := c.cache[inode]; ok {
			c.cache[inode] = max(old, v) // under the lease that it has
		} else {
			c.keep(tk, inode, v, leased)
		}
		c.w.done[inode] = max(c.w.done[inode], v)
	}
}

// check asserts that an inode which the client just opened exists, or is held for it.
func (c *simClient) check(inode uint64) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.stats.opens++
	if holders, dead := c.w.dead[inode]; dead && !slices.Contains(holders, c.id) {
		c.w.t.Errorf("seed %d: client %d has inode %d open, which is gone; it is held for %v", c.w.seed, c.id, inode, holders)
	}
}

func (c *simClient) openFile(ctx context.Context, inode uint64) {
	c.mu.Lock()
	_, ok := c.cached(inode)
	c.open[inode]++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.open[inode]--
		c.mu.Unlock()
	}()
	if !ok {
		tk := c.send()
		c.w.delay()
		o, err := c.w.tab.Open(ctx, c.id, 0, inode)
		if err != nil {
			return
		}
		c.w.delay()
		c.w.mu.Lock()
		_, dead := c.w.dead[inode]
		c.w.mu.Unlock()
		o.Done(!dead)
		c.w.delay()
		if dead {
			return
		}
		c.mu.Lock()
		c.keep(tk, inode, 1, o.Leased)
		c.mu.Unlock()
	}
	c.check(inode)
	c.w.delay()
	time.Sleep(time.Duration(c.w.n(3000)) * time.Millisecond)
	c.check(inode)
}

func (c *simClient) unlink(ctx context.Context, inode uint64) {
	in := Intent{Session: c.id, Victim: inode, Known: c.w.n(2) == 0}
	c.mu.Lock()
	in.Opened = c.open[inode] > 0
	// Between this answer and the unlink nothing opens it here: the client's own business.
	locked := in.Known && !in.Opened
	if locked {
		delete(c.cache, inode)
	}
	c.mu.Unlock()
	if locked {
		return // covered by the others' unlinks
	}
	c.w.delay()
	ch, err := c.w.tab.Begin(ctx, in)
	if err != nil {
		return
	}
	defer ch.End()
	c.w.delay()
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if _, dead := c.w.dead[inode]; !dead {
		c.w.dead[inode] = ch.Holders()
		c.w.stats.unlinks++
	}
}

func (c *simClient) step(ctx context.Context) {
	shared := uint64(c.w.n(6))
	victim := uint64(firstVictim + c.w.n(60))
	switch c.w.n(20) {
	case 0, 1:
		c.mutate(ctx, []uint64{shared, uint64(c.w.n(6))})
	case 2:
		c.openFile(ctx, victim)
	case 3:
		if c.w.n(4) == 0 {
			c.unlink(ctx, victim)
		}
	default:
		c.read(shared)
	}
}

// TestNoClientUsesWhatAnotherChanged runs random clients against the table.
func TestNoClientUsesWhatAnotherChanged(t *testing.T) {
	seeds := 12
	if testing.Short() {
		seeds = 3
	}
	base := uint64(time.Now().UnixNano())
	for i := range seeds {
		seed := base + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulate(t, seed) })
		})
	}
}

func simulate(t *testing.T, seed uint64) {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), tab: New(Config{}),
		state: map[uint64]uint64{}, done: map[uint64]uint64{}, dead: map[uint64][]uint64{}}
	defer func() { w.tab.Close() }()
	w.tab.Start(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	var group sync.WaitGroup
	for id := range uint64(4) {
		c := &simClient{w: w, id: id + 1, cache: map[uint64]uint64{}, revokedAt: map[uint64]uint64{}, floor: map[uint64]uint64{}, open: map[uint64]int{}}
		w.tab.Opened(c.id)
		group.Go(func() { c.run(ctx) })
		for range 3 {
			group.Go(func() {
				for ctx.Err() == nil {
					c.step(ctx)
					time.Sleep(time.Duration(w.n(20)) * time.Millisecond)
				}
			})
		}
	}
	group.Wait()
	if w.stats.cached == 0 || w.stats.mutations == 0 || w.stats.unlinks == 0 || w.stats.opens == 0 {
		t.Fatalf("nothing happened: %+v", w.stats)
	}
	t.Logf("%+v %+v", w.stats, w.tab.Stats())
}
