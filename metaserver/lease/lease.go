// Package lease is the leading metaserver's table of what clients have cached. A lease covers an inode: its attributes,
// its extents and, of a directory, all its names, positive and negative. It lives in memory only and dies with the
// leadership; the next leader waits for every client to show up, or for every lease to have run out.
//
// The rule that it keeps: a mutation returns only when no other session can use a value that it made old. So a mutation
// is enclosed by Begin and End. Between the two its inodes are "changing" and no lease on them is granted; Begin returns
// when every other session that had one has given it up, or when that session's leases have run out. A read asks for its
// lease before it reads.
//
// All leases of a session run out together, Lease plus Margin after its last answered ping here, Lease after it sent
// that ping there; only monotonic clocks are compared with themselves.
//
// The table also knows which sessions have an inode open, because a file that loses its last name lives on for them.
// A session opens without telling under a valid lease, so before the last name goes it is asked, by a revocation.
package lease

import (
	"errors"
	"slices"
	"sync"
	"time"
)

// Defaults of Config.
const (
	DefaultLease         = 5 * time.Second
	DefaultMargin        = 500 * time.Millisecond
	DefaultSession       = 60 * time.Second
	DefaultMaxPerSession = 256 << 10
)

// MaxRevoke bounds the inodes of one Revoke.
const MaxRevoke = 16 << 10

var (
	// ErrNoSession says that the session has ended or never was.
	ErrNoSession = errors.New("the session has ended")
	// ErrClosed says that this metaserver does not lead any more.
	ErrClosed = errors.New("the lease table is closed")
	// ErrReplaced is what the stream of a session gets whose client opened another.
	ErrReplaced = errors.New("the session has a newer stream")
	// ErrLapsed is what a stream gets whose leases ran out: the client must drop what it cached and connect again.
	ErrLapsed = errors.New("the leases of the session ran out; drop all cached metadata and connect again")
	// ErrTooMany says that the session has too many inodes open.
	ErrTooMany = errors.New("the session has too many files open")
)

// Config is what New needs; zero values stand for the defaults.
type Config struct {
	Lease         time.Duration // how long cached metadata may be used after a ping was sent
	Margin        time.Duration // how much longer the table waits: covers clocks that run at different rates
	Session       time.Duration // how long a session lives without a ping
	MaxPerSession int           // leases a session may have; open inodes may be twice as many
}

func (c Config) withDefaults() Config {
	if c.Lease <= 0 {
		c.Lease = DefaultLease
	}
	if c.Margin <= 0 {
		c.Margin = max(c.Lease/10, 10*time.Millisecond)
	}
	if c.Session <= 0 {
		c.Session = DefaultSession
	}
	if c.MaxPerSession <= 0 {
		c.MaxPerSession = DefaultMaxPerSession
	}
	return c
}

// Table is safe for concurrent use.
type Table struct {
	cfg  Config
	stop chan struct{} // closed by Close

	mu           sync.Mutex
	closed       bool
	started      bool
	ended        map[uint64]struct{} // sessions that ended before Start
	early        map[uint64]struct{} // sessions that were opened, or opened again, before Start
	sessions     map[uint64]*session
	own          *session            // of the leader itself, which caches nothing
	blind        map[uint64]*session // those that may have opened inodes under an earlier leader and did not tell yet
	inodes       map[uint64]*node
	unknown      int           // sessions that may hold leases of an earlier leader
	unknownUntil time.Time     // when these leases have run out
	known        chan struct{} // closed, and made anew, whenever unknown shrinks
	holds        int
	stats        Stats
}

// Stats are for people and for metrics.
type Stats struct {
	Sessions    int
	Connected   int    // sessions with a stream
	Unknown     int    // sessions that did not show up yet since this leadership began
	Leases      int    // leases and open inodes that the table knows
	Revocations uint64 // inodes revoked, in all
	Waits       uint64 // mutations that had to wait for other sessions, in all
	Lapses      uint64 // sessions whose leases ran out while they were connected or needed, in all
}

// session is a client as the table sees it. Its holds form a list, least recently granted first.
type session struct {
	id         uint64
	stream     *Stream
	pinged     uint64 // the newest ping answered
	unknown    bool   // may hold leases that an earlier leader granted
	leaseUntil time.Time
	lifeUntil  time.Time
	unanswered uint64
	first      *hold
	last       *hold
	count      int
	queue      []*hold   // to be revoked, not sent yet
	queued     time.Time // since when there are any
	sent       map[uint64]*revocation
	held       []uint64 // to be told
	lastRevoke uint64
}

// revocation is a Revoke that was handed to the stream.
type revocation struct {
	at    time.Time
	holds []*hold
}

// hold is what one session has of one inode. It exists while leased, open or revoking is set, or an opening is under way.
type hold struct {
	s        *session
	n        *node
	leased   bool
	open     bool   // may be open there
	revoking bool   // a revocation is under way: no new lease before it is answered
	late     bool   // opened since the revocation under way began: its answer says nothing about that
	opening  int    // Open calls under way
	sequence uint64 // of the mutation whose answer opened the inode; the client may not have it yet
	waiters  []*Change
	prev     *hold // in the session's list
	next     *hold
}

// node is an inode that is held or changing.
type node struct {
	inode    uint64
	changing int           // changes under way
	changer  uint64        // the session that changes it, when it is only one
	mixed    bool          // several sessions change it
	victims  int           // changes under way that may take its last name
	opening  int           // Open calls under way
	holds    []*hold       // by session, unordered
	wake     chan struct{} // closed when victims or opening gets to 0; nil while nobody waits
}

// New makes an empty table. Sessions may be added and ended at once; leases are granted after Start.
func New(cfg Config) *Table {
	return &Table{
		cfg:      cfg.withDefaults(),
		stop:     make(chan struct{}),
		ended:    map[uint64]struct{}{},
		early:    map[uint64]struct{}{},
		sessions: map[uint64]*session{},
		own:      &session{},
		blind:    map[uint64]*session{},
		inodes:   map[uint64]*node{},
		known:    make(chan struct{}),
	}
}

// Start tells the table which sessions the state has at the beginning of the leadership, and from when on it counts. Each
// gets its whole life again; each may hold leases that the table knows nothing of until it connects.
func (t *Table) Start(live []uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.unknownUntil = now.Add(t.cfg.Lease + t.cfg.Margin)
	for id := range t.early {
		live = append(live, id)
	}
	for _, id := range live {
		if _, gone := t.ended[id]; gone || t.sessions[id] != nil {
			continue
		}
		s := t.newSession(id, now)
		s.unknown = true
		t.unknown++
		t.blind[id] = s
	}
	t.started, t.ended, t.early = true, nil, nil
}

// Close ends every wait and every stream with ErrClosed.
func (t *Table) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.closed = true
	close(t.stop)
	for _, s := range t.sessions {
		s.detach(ErrClosed)
	}
}

// Stats counts.
func (t *Table) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := t.stats
	st.Sessions, st.Unknown, st.Leases = len(t.sessions), t.unknown, t.holds
	for _, s := range t.sessions {
		if s.stream != nil {
			st.Connected++
		}
	}
	return st
}

// Grant gives the session a lease on the inode, if it may have one: the reply to a read that begins after Grant returned
// true may be cached. False says that the reply is good but must not be cached.
func (t *Table) Grant(session, inode uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[session]
	if s == nil || t.closed || !t.started || s.stream == nil || !t.alive(s, time.Now()) {
		return false
	}
	n := t.inodes[inode]
	if n != nil && n.changing > 0 {
		return false
	}
	return t.lease(s, inode, n) != nil
}

// lease sets the lease of a connected session on an inode; the caller made sure that nobody else changes it. Nil when
// the session may not have one now.
func (t *Table) lease(s *session, inode uint64, n *node) *hold {
	if n != nil {
		if h := n.of(s); h != nil {
			if h.revoking {
				return nil
			}
			h.leased = true
			s.touch(h)
			return h
		}
	}
	if s.count >= t.cfg.MaxPerSession {
		t.trim(s)
		return nil
	}
	h := t.hold(s, inode)
	h.leased = true
	return h
}

// Leased tells whether the session has a lease on each of the inodes, none of them being revoked.
func (t *Table) Leased(session uint64, inodes ...uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[session]
	if s == nil || s.stream == nil || t.closed || !t.alive(s, time.Now()) {
		return false
	}
	for _, inode := range inodes {
		n := t.inodes[inode]
		if n == nil {
			return false
		}
		if h := n.of(s); h == nil || !h.leased || h.revoking {
			return false
		}
	}
	return true
}

// Made says that a mutation of the session, being applied, made the inode or found it there, and that the client, when
// it gets the answer, will have it open (a file) or not. It is to be called before anyone can see the inode.
func (t *Table) Made(session, sequence, inode uint64, open bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[session]
	if s == nil || t.closed {
		return
	}
	n := t.inodes[inode]
	canLease := t.started && s.stream != nil && t.alive(s, time.Now()) && (n == nil || n.changing == 0)
	if s.count >= t.cfg.MaxPerSession {
		t.trim(s)
		canLease = false
	}
	if !open && !canLease || s.count >= 2*t.cfg.MaxPerSession {
		return
	}
	h := t.hold(s, inode)
	if canLease && !h.revoking {
		h.leased = true
	}
	if open {
		h.open, h.late, h.sequence = true, h.revoking, sequence
	}
	t.tidy(h)
}

// Gone says that the inode does not exist any more: nobody has it open.
func (t *Table) Gone(inode uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.inodes[inode]
	if n == nil {
		return
	}
	for _, h := range slices.Clone(n.holds) {
		if !h.revoking {
			h.leased, h.open = false, false
			t.tidy(h)
		}
	}
}

// Released says that the session has the inodes, which have no name any more, not open any more.
func (t *Table) Released(session uint64, inodes []uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[session]
	if s == nil {
		return
	}
	for _, inode := range inodes {
		if n := t.inodes[inode]; n != nil {
			if h := n.of(s); h != nil {
				h.open = false
				t.tidy(h)
			}
		}
	}
}

// of finds the session's hold.
func (n *node) of(s *session) *hold {
	for _, h := range n.holds {
		if h.s == s {
			return h
		}
	}
	return nil
}

func (t *Table) node(inode uint64) *node {
	n := t.inodes[inode]
	if n == nil {
		n = &node{inode: inode}
		t.inodes[inode] = n
	}
	return n
}

// prune forgets a node that says nothing.
func (t *Table) prune(n *node) {
	if n.changing == 0 && n.opening == 0 && len(n.holds) == 0 {
		delete(t.inodes, n.inode)
	}
}

// hold finds or makes the session's hold of an inode.
func (t *Table) hold(s *session, inode uint64) *hold {
	n := t.node(inode)
	if h := n.of(s); h != nil {
		s.touch(h)
		return h
	}
	h := &hold{s: s, n: n}
	n.holds = append(n.holds, h)
	s.push(h)
	s.count++
	t.holds++
	return h
}

// tidy removes a hold that says nothing any more.
func (t *Table) tidy(h *hold) {
	if h.leased || h.open || h.revoking || h.opening > 0 {
		return
	}
	n := h.n
	if i := slices.Index(n.holds, h); i >= 0 {
		last := len(n.holds) - 1
		n.holds[i] = n.holds[last]
		n.holds[last] = nil
		n.holds = n.holds[:last]
		h.s.unlink(h)
		h.s.count--
		t.holds--
	}
	t.prune(n)
}

func (s *session) push(h *hold) {
	h.prev, h.next = s.last, nil
	if s.last != nil {
		s.last.next = h
	} else {
		s.first = h
	}
	s.last = h
}

func (s *session) unlink(h *hold) {
	if h.prev != nil {
		h.prev.next = h.next
	} else {
		s.first = h.next
	}
	if h.next != nil {
		h.next.prev = h.prev
	} else {
		s.last = h.prev
	}
	h.prev, h.next = nil, nil
}

// touch makes h the most recently granted.
func (s *session) touch(h *hold) {
	if s.last != h {
		s.unlink(h)
		s.push(h)
	}
}
