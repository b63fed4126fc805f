package lease

import (
	"context"
	"slices"
	"time"
)

// Intent is a mutation about to be proposed.
type Intent struct {
	Session    uint64   // 0: it is the leader itself that changes something
	Unanswered uint64   // the lowest sequence whose answer the session still waits for, 0 if that is not known
	Inodes     []uint64 // what it changes
	Victim     uint64   // an inode that may lose its last name by it, 0 if none
	// Known says that the session itself told whether it has the victim open; else it is asked like any other.
	Known  bool
	Opened bool
}

// Change is a mutation under way.
type Change struct {
	t       *Table
	s       *session
	nodes   []*node
	nodeBuf [4]*node
	victim  *node
	holders []uint64
	pending int
	waits   []*hold
	done    chan struct{} // closed when pending gets to 0
}

// Begin marks the inodes as changing, takes the leases of every other session on them away, and returns when these
// sessions have answered or their leases have run out. It does not exclude other changes of the same inodes. When ctx
// ends first, nothing is marked.
func (t *Table) Begin(ctx context.Context, in Intent) (*Change, error) {
	t.mu.Lock()
	s, err := t.admit(ctx, in)
	if err != nil {
		t.mu.Unlock()
		return nil, err
	}
	c := &Change{t: t, s: s}
	c.mark(in)
	if c.victim != nil {
		if err := t.awaitOpens(ctx, c.victim); err != nil {
			c.unmark()
			t.mu.Unlock()
			return nil, err
		}
	}
	c.collect(in)
	if c.pending == 0 {
		c.settleHolders()
		t.mu.Unlock()
		return c, nil
	}
	c.done = make(chan struct{})
	t.stats.Waits++
	t.mu.Unlock()
	if err := c.wait(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Holders are the sessions that have the victim open, or may have and cannot be asked; sorted.
func (c *Change) Holders() []uint64 { return c.holders }

// End says that the mutation was applied or will not be.
func (c *Change) End() {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	c.unmark()
}

// Admit waits until no other session can hold leases of an earlier leader: what that leader's mutations changed may be
// spoken of then.
func (t *Table) Admit(ctx context.Context, session uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := t.admit(ctx, Intent{Session: session})
	return err
}

// admit waits until no other session can hold leases of an earlier leader. Called, and returns, with the lock held.
func (t *Table) admit(ctx context.Context, in Intent) (*session, error) {
	for {
		if t.closed || !t.started {
			return nil, ErrClosed
		}
		s := t.sessions[in.Session]
		if in.Session == 0 {
			s = t.own
		}
		if s == nil {
			return nil, ErrNoSession
		}
		s.unanswered = max(s.unanswered, in.Unanswered)
		if t.unknown == 0 || t.unknown == 1 && s.unknown {
			return s, nil
		}
		if !time.Now().Before(t.unknownUntil) {
			t.forgetUnknown()
			continue
		}
		if err := t.pause(ctx, t.known, t.unknownUntil); err != nil {
			return nil, err
		}
	}
}

// pause gives the lock up until ch is closed, a moment has come (zero: it never does), or there is a reason to give up. The
// moment may have passed already: a caller that looks at the clock before cannot know.
func (t *Table) pause(ctx context.Context, ch <-chan struct{}, until time.Time) error {
	t.mu.Unlock()
	defer t.mu.Lock()
	var timeout <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-ch:
	case <-timeout:
	case <-ctx.Done():
		return ctx.Err()
	case <-t.stop:
		return ErrClosed
	}
	return nil
}

// awaitOpens waits for Open calls of n under way; new ones wait for the change.
func (t *Table) awaitOpens(ctx context.Context, n *node) error {
	for n.opening > 0 {
		if err := t.pause(ctx, n.waker(), time.Time{}); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) waker() chan struct{} {
	if n.wake == nil {
		n.wake = make(chan struct{})
	}
	return n.wake
}

func (n *node) wakeAll() {
	if n.wake != nil {
		close(n.wake)
		n.wake = nil
	}
}

func (c *Change) mark(in Intent) {
	c.nodes = c.nodeBuf[:0]
	for _, inode := range in.Inodes {
		c.markOne(inode)
	}
	if in.Victim == 0 {
		return
	}
	if !slices.Contains(in.Inodes, in.Victim) {
		c.markOne(in.Victim)
	}
	c.victim = c.t.node(in.Victim)
	c.victim.victims++
}

func (c *Change) markOne(inode uint64) {
	n := c.t.node(inode)
	switch {
	case n.changing == 0:
		n.changer, n.mixed = c.s.id, false
	case n.changer != c.s.id:
		n.mixed = true
	}
	n.changing++
	c.nodes = append(c.nodes, n)
}

func (c *Change) unmark() {
	if c.victim != nil {
		if c.victim.victims--; c.victim.victims == 0 {
			c.victim.wakeAll()
		}
		c.victim = nil
	}
	for _, n := range c.nodes {
		n.changing--
		c.t.prune(n)
	}
	c.nodes = nil
}

// collect takes away what other sessions have, and counts those to be waited for.
func (c *Change) collect(in Intent) {
	now := time.Now()
	for _, n := range c.nodes {
		victim := n == c.victim
		for _, h := range n.holds {
			if h.s == c.s && (!victim || in.Known) || !victim && !h.leased {
				continue
			}
			if !c.t.alive(h.s, now) {
				if victim {
					c.holders = append(c.holders, h.s.id)
				}
				continue
			}
			c.t.revoke(h)
			h.waiters = append(h.waiters, c)
			c.waits = append(c.waits, h)
			c.pending++
		}
	}
	if c.victim != nil {
		c.collectVictim(in)
	}
	c.leaseOwn(now)
}

// collectVictim adds the holders that the table need not or cannot ask.
func (c *Change) collectVictim(in Intent) {
	if in.Known && in.Opened {
		c.holders = append(c.holders, c.s.id)
	}
	for id, s := range c.t.blind {
		if s == c.s && in.Known {
			continue
		}
		c.holders = append(c.holders, id)
	}
}

// leaseOwn gives the session leases on what it changes itself, so that it may cache the answer, where nobody else is
// interested. Where others are, a lease would only have to be taken away again.
func (c *Change) leaseOwn(now time.Time) {
	if c.pending > 0 || c.s.stream == nil || !c.t.alive(c.s, now) {
		return
	}
	for _, n := range c.nodes {
		if !n.mixed && c.alone(n) {
			c.t.lease(c.s, n.inode, n)
		}
	}
}

// alone tells whether no other session has anything of n.
func (c *Change) alone(n *node) bool {
	return len(n.holds) == 0 || len(n.holds) == 1 && n.holds[0].s == c.s
}

// answered is called with the lock held when a hold that the change waits for is settled.
func (c *Change) answered(h *hold, open bool) {
	if open && h.n == c.victim {
		c.holders = append(c.holders, h.s.id)
	}
	if c.pending--; c.pending == 0 {
		close(c.done)
	}
}

// wait returns when all have answered; on failure the change is undone.
func (c *Change) wait(ctx context.Context) error {
	t := c.t
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		next := c.lapse(time.Now())
		if c.pending == 0 {
			c.settleHolders()
			return nil
		}
		if err := t.pause(ctx, c.done, next); err != nil {
			c.abandon()
			return err
		}
	}
}

// lapse settles the holds of sessions whose leases ran out, and returns when the next of them do.
func (c *Change) lapse(now time.Time) (next time.Time) {
	waits := c.waits[:0]
	for _, h := range c.waits {
		if !slices.Contains(h.waiters, c) {
			continue // answered
		}
		if !c.t.alive(h.s, now) {
			c.t.lapse(h.s)
			continue
		}
		waits = append(waits, h)
		if next.IsZero() || h.s.leaseUntil.Before(next) {
			next = h.s.leaseUntil
		}
	}
	c.waits = waits
	return next
}

// abandon undoes a change that did not get what it waits for. The revocations stay under way.
func (c *Change) abandon() {
	for _, h := range c.waits {
		if i := slices.Index(h.waiters, c); i >= 0 {
			h.waiters = slices.Delete(h.waiters, i, i+1)
		}
	}
	c.waits = nil
	c.unmark()
}

func (c *Change) settleHolders() {
	slices.Sort(c.holders)
	c.holders = slices.Compact(c.holders)
}

// Opening is an Open of an inode under way.
type Opening struct {
	Leased bool // the reply may be cached
	h      *hold
	had    bool
	t      *Table
}

// Open is to be called before an inode is opened on behalf of a session, and Done after: a change that may take its last
// name goes on before or after the whole of it. sequence is that of the mutation that opens it, 0 for a read.
func (t *Table) Open(ctx context.Context, session, sequence, inode uint64) (*Opening, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		if t.closed || !t.started {
			return nil, ErrClosed
		}
		if n := t.inodes[inode]; n != nil && n.victims > 0 {
			if err := t.pause(ctx, n.waker(), time.Time{}); err != nil {
				return nil, err
			}
			continue
		}
		s := t.sessions[session]
		if s == nil {
			return nil, ErrNoSession
		}
		if s.count >= 2*t.cfg.MaxPerSession {
			t.trim(s)
			return nil, ErrTooMany
		}
		return t.opening(s, sequence, inode), nil
	}
}

func (t *Table) opening(s *session, sequence, inode uint64) *Opening {
	o := &Opening{t: t}
	if n := t.inodes[inode]; s.stream != nil && t.alive(s, time.Now()) && (n == nil || n.changing == 0) {
		o.Leased = t.lease(s, inode, n) != nil
	}
	h := t.hold(s, inode)
	o.h, o.had = h, h.open
	h.open, h.late = true, h.revoking
	h.sequence = max(h.sequence, sequence)
	h.opening++
	h.n.opening++
	return o
}

// Done ends it. opened says whether it came to an open file.
func (o *Opening) Done(opened bool) {
	o.t.mu.Lock()
	defer o.t.mu.Unlock()
	h, n := o.h, o.h.n
	h.opening--
	if !opened && !o.had && h.opening == 0 {
		h.open = false
	}
	if n.opening--; n.opening == 0 {
		n.wakeAll()
	}
	o.t.tidy(h)
	o.t.prune(n)
}
