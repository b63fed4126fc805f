package lease

import (
	"slices"
	"time"
)

// Revoke asks a client to drop what it cached of the inodes, and to say which of them it has open.
type Revoke struct {
	ID     uint64
	Inodes []uint64
}

// Push is what is to be sent to a client now.
type Push struct {
	Pong    uint64 // the ping to answer, 0 for none
	Revokes []Revoke
	Held    []uint64 // inodes that lost their last name and stay for the session
}

// maxHeld bounds what a session without a stream is to be told. It reads the rest from the state when it connects.
const maxHeld = 16 << 10

// Stream is the table's end of a session's stream.
type Stream struct {
	t    *Table
	s    *session
	c    chan struct{} // capacity 1: there is something to Take
	pong uint64
	err  error // why it ended; set once
}

// Opened says that the session was opened under this leadership: it has nothing yet. Opening it again changes nothing.
// Before Start that cannot be told from a session of an earlier leader that was opened again.
func (t *Table) Opened(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed || t.sessions[id] != nil:
	case !t.started:
		t.early[id] = struct{}{}
		delete(t.ended, id)
	default:
		t.newSession(id, time.Now())
	}
}

func (t *Table) newSession(id uint64, now time.Time) *session {
	s := &session{id: id, lifeUntil: now.Add(t.cfg.Session), sent: map[uint64]*revocation{}}
	t.sessions[id] = s
	return s
}

// Ended says that the session has ended in the state: nothing that it held counts any more.
func (t *Table) Ended(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.started {
		t.ended[id] = struct{}{}
		delete(t.early, id)
	}
	s := t.sessions[id]
	if s == nil {
		return
	}
	s.detach(ErrNoSession)
	s.leaseUntil = time.Time{}
	t.settleAll(s, func(*hold) bool { return false })
	for h := s.first; h != nil; {
		next := h.next
		h.leased, h.open = false, false
		t.tidy(h)
		h = next
	}
	delete(t.sessions, id)
	t.nowKnown(s)
	delete(t.blind, id)
}

// Expired returns the sessions that did not ping for a whole session's life.
func (t *Table) Expired() []uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.started || t.closed {
		return nil
	}
	now := time.Now()
	var ids []uint64
	for id, s := range t.sessions {
		if now.After(s.lifeUntil) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Connect attaches a session's stream, in place of the one it had. The client has dropped all that it cached before it
// sent the ping, and has the given inodes open. A session counts its pings over all its streams, so that one that comes
// late cannot take the place of a newer one, whose leases the client uses. The caller has made sure after receiving that ping that this metaserver
// still leads, and sends what Take returns.
func (t *Table) Connect(id, ping uint64, opened []uint64) (*Stream, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || !t.started {
		return nil, ErrClosed
	}
	s := t.sessions[id]
	switch {
	case s == nil:
		return nil, ErrNoSession
	case ping <= s.pinged: // its handler was overtaken by that of a later stream
		return nil, ErrReplaced
	}
	s.detach(ErrReplaced)
	isOpen := make(map[uint64]struct{}, len(opened))
	for _, inode := range opened {
		isOpen[inode] = struct{}{}
	}
	t.settleAll(s, func(h *hold) bool { _, ok := isOpen[h.n.inode]; return ok })
	for h := s.first; h != nil; {
		next := h.next
		h.leased = false
		t.tidy(h)
		h = next
	}
	for _, inode := range opened {
		if s.count >= 2*t.cfg.MaxPerSession {
			return nil, ErrTooMany
		}
		t.hold(s, inode).open = true
	}
	t.nowKnown(s)
	delete(t.blind, id)
	s.stream = &Stream{t: t, s: s, c: make(chan struct{}, 1)}
	s.renew(t, ping)
	return s.stream, nil
}

// C is ready when there may be something to Take.
func (st *Stream) C() <-chan struct{} { return st.c }

// Take returns what is to be sent now, or why the stream has ended.
func (st *Stream) Take() (Push, error) {
	t, s := st.t, st.s
	t.mu.Lock()
	defer t.mu.Unlock()
	if st.err != nil {
		return Push{}, st.err
	}
	p := Push{Pong: st.pong, Held: s.held}
	st.pong, s.held = 0, nil
	for len(s.queue) > 0 {
		n := min(len(s.queue), MaxRevoke)
		s.lastRevoke++
		r := &revocation{at: time.Now(), holds: slices.Clone(s.queue[:n])}
		s.sent[s.lastRevoke] = r
		inodes := make([]uint64, n)
		for i, h := range r.holds {
			inodes[i] = h.n.inode
		}
		p.Revokes = append(p.Revokes, Revoke{ID: s.lastRevoke, Inodes: inodes})
		s.queue = s.queue[n:]
	}
	s.queue = nil
	return p, nil
}

// Renew answers a later ping: the caller has made sure after receiving it that this metaserver still leads. It fails
// when the leases ran out before, or when the client answers its pings but not a revocation.
func (st *Stream) Renew(ping uint64) error {
	t, s := st.t, st.s
	t.mu.Lock()
	defer t.mu.Unlock()
	if st.err != nil {
		return st.err
	}
	now := time.Now()
	if !t.alive(s, now) {
		return st.err
	}
	if s.unansweredSince(t.cfg.Lease, now) {
		t.stats.Lapses++
		s.detach(ErrLapsed) // its leases now run out; the mutations that wait for it go on then
		return ErrLapsed
	}
	s.renew(t, ping)
	return nil
}

// unansweredSince tells whether a revocation is unanswered for longer than d, be it that it could not even be sent.
func (s *session) unansweredSince(d time.Duration, now time.Time) bool {
	if len(s.queue) > 0 && now.Sub(s.queued) > d {
		return true
	}
	for _, r := range s.sent {
		if now.Sub(r.at) > d {
			return true
		}
	}
	return false
}

func (s *session) renew(t *Table, ping uint64) {
	now := time.Now()
	s.leaseUntil = now.Add(t.cfg.Lease + t.cfg.Margin)
	s.lifeUntil = now.Add(t.cfg.Session)
	s.pinged = max(s.pinged, ping)
	s.stream.pong = ping
	s.stream.notify()
}

// Ack takes the answer to a Revoke: the client has dropped what it cached, and has `opened` of the inodes open.
func (st *Stream) Ack(id uint64, opened []uint64) {
	t, s := st.t, st.s
	t.mu.Lock()
	defer t.mu.Unlock()
	r := s.sent[id]
	if st.err != nil || r == nil {
		return
	}
	delete(s.sent, id)
	var isOpen map[uint64]struct{}
	if len(opened) > 8 {
		isOpen = make(map[uint64]struct{}, len(opened))
		for _, inode := range opened {
			isOpen[inode] = struct{}{}
		}
	}
	for _, h := range r.holds {
		var open bool
		if isOpen != nil {
			_, open = isOpen[h.n.inode]
		} else {
			open = slices.Contains(opened, h.n.inode)
		}
		t.settle(h, open)
	}
}

// Held says that an inode lost its last name and stays for the session, to be told so: what the table takes for open need
// not be, and only the client can release it.
func (t *Table) Held(session, inode uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[session]
	if s == nil || t.closed {
		return
	}
	if len(s.held) == maxHeld {
		s.held = s.held[1:]
	}
	s.held = append(s.held, inode)
	if s.stream != nil {
		s.stream.notify()
	}
}

// Dropped takes leases back that the client gave up by itself. Its message may have passed a read that it sent later, so
// that it is asked to confirm: by a revocation, like any other.
func (st *Stream) Dropped(inodes []uint64) {
	t, s := st.t, st.s
	t.mu.Lock()
	defer t.mu.Unlock()
	if st.err != nil {
		return
	}
	for _, inode := range inodes {
		if n := t.inodes[inode]; n != nil {
			if h := n.of(s); h != nil {
				t.revoke(h)
			}
		}
	}
}

// Close detaches the stream; the session's leases stand until they run out. Closing it again does nothing.
func (st *Stream) Close() {
	st.t.mu.Lock()
	defer st.t.mu.Unlock()
	if st.s.stream == st {
		st.s.detach(ErrReplaced)
	}
}

func (st *Stream) notify() {
	select {
	case st.c <- struct{}{}:
	default:
	}
}

// detach ends the session's stream, if it has one. What was sent on it may never have arrived.
func (s *session) detach(err error) {
	if s.stream == nil {
		return
	}
	s.stream.err = err
	s.stream.notify()
	s.stream = nil
}

// alive tells whether the session's leases still stand. The stream of one whose leases do not ends here, so that they
// can only come back by a new stream, before which the client drops all that it cached.
func (t *Table) alive(s *session, now time.Time) bool {
	if now.Before(s.leaseUntil) {
		return true
	}
	if s.stream != nil {
		t.lapse(s)
	}
	return false
}

// lapse gives up on a session whose leases ran out: it cannot use what it cached, and may have open what it held.
func (t *Table) lapse(s *session) {
	if s.stream != nil {
		t.stats.Lapses++
		s.detach(ErrLapsed)
	}
	settled := s.outstanding()
	s.queue, s.sent = nil, map[uint64]*revocation{}
	for _, h := range settled {
		h.revoking, h.late = false, false
		h.answer(true)
	}
}

// revoke asks for the hold, unless that is under way already.
func (t *Table) revoke(h *hold) {
	if h.revoking {
		return
	}
	h.revoking = true
	t.stats.Revocations++
	if len(h.s.queue) == 0 {
		h.s.queued = time.Now()
	}
	h.s.queue = append(h.s.queue, h)
	if h.s.stream != nil {
		h.s.stream.notify()
	}
}

// trim takes back the least recently granted leases of a session that has too many, for new ones to have room.
func (t *Table) trim(s *session) {
	if len(s.queue) > 0 || len(s.sent) > 0 || s.stream == nil {
		return
	}
	n := max(t.cfg.MaxPerSession/16, 1)
	for h := s.first; h != nil && n > 0; h = h.next {
		if h.opening == 0 {
			t.revoke(h)
			n--
		}
	}
}

// outstanding lists the holds that are being revoked.
func (s *session) outstanding() []*hold {
	all := slices.Clone(s.queue)
	for _, r := range s.sent {
		all = append(all, r.holds...)
	}
	return all
}

// settleAll settles every revocation of the session under way.
func (t *Table) settleAll(s *session, isOpen func(*hold) bool) {
	all := s.outstanding()
	s.queue, s.sent = nil, map[uint64]*revocation{}
	for _, h := range all {
		t.settle(h, isOpen(h))
	}
}

// settle is the answer to a revocation. A client cannot count an inode as open whose opening answer is still on its way:
// the session is then taken to have it open.
func (t *Table) settle(h *hold, open bool) {
	open = open || h.late || h.opening > 0 || h.sequence != 0 && h.sequence >= h.s.unanswered
	h.revoking, h.late, h.leased, h.open = false, false, false, open
	h.answer(open)
	if open {
		h.s.touch(h) // not again among the first to be taken back
	}
	t.tidy(h)
}

// answer tells those who wait for the hold.
func (h *hold) answer(open bool) {
	waiters := h.waiters
	h.waiters = nil
	for _, c := range waiters {
		c.answered(h, open)
	}
}

// nowKnown says that the session holds no lease of an earlier leader.
func (t *Table) nowKnown(s *session) {
	if s.unknown {
		s.unknown = false
		t.unknown--
		t.announce()
	}
}

// forgetUnknown is called when the leases of earlier leaders have run out.
func (t *Table) forgetUnknown() {
	for _, s := range t.sessions {
		s.unknown = false
	}
	t.unknown = 0
	t.announce()
}

func (t *Table) announce() {
	close(t.known)
	t.known = make(chan struct{})
}
