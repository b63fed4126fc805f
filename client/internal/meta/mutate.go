package meta

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	maxInFlight = 1024 // mutations of a session whose answer is waited for
	maxWindow   = 2048 // from the oldest unanswered sequence to the next; the server takes 4096
)

// sequences numbers the mutations of one session.
type sequences struct {
	mu       sync.Mutex
	next     uint64
	low      uint64              // every sequence below was answered
	answered map[uint64]struct{} // those from low on
	inFlight int
	freed    chan struct{} // closed, and made anew, when one was answered and somebody waits
	waiting  bool
}

func newSequences() *sequences {
	return &sequences{next: 1, low: 1, answered: map[uint64]struct{}{}, freed: make(chan struct{})}
}

// take returns the next sequence, waiting while too many are unanswered.
func (s *sequences) take(ctx context.Context) (uint64, error) {
	for {
		s.mu.Lock()
		if s.inFlight < maxInFlight && s.next-s.low < maxWindow {
			n := s.next
			s.next++
			s.inFlight++
			s.mu.Unlock()
			return n, nil
		}
		freed := s.freed
		s.waiting = true
		s.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// done notes that a sequence was answered, or will not be asked again.
func (s *sequences) done(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight--
	s.answered[n] = struct{}{}
	for {
		if _, ok := s.answered[s.low]; !ok {
			break
		}
		delete(s.answered, s.low)
		s.low++
	}
	if s.waiting {
		s.waiting = false
		close(s.freed)
		s.freed = make(chan struct{})
	}
}

func (s *sequences) unanswered() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.low
}

// mutation is an operation on its way.
type mutation struct {
	op     *pb.Op
	cred   *pb.Cred
	s      *session
	seq    uint64
	tried  int // attempts whose answer was lost
	ticket *ticket
}

// Mutate performs an operation exactly once, asking again with the same number until there is an answer, and returns the
// result, or its errno as an error. When ctx ends before, it returns, and whether the operation was or will be done is not
// known; it is carried on in the background. The same holds, with EIO, when the session ended meanwhile.
func (c *Client) Mutate(ctx context.Context, cred posix.Cred, op *pb.Op) (*pb.Result, error) {
	return c.mutate(ctx, cred, op, false)
}

func (c *Client) mutate(ctx context.Context, cred posix.Cred, op *pb.Op, open bool) (*pb.Result, error) {
	for {
		s, err := c.await(ctx)
		if err != nil {
			return nil, err
		}
		m := &mutation{op: op, cred: credOf(cred), s: s}
		if m.seq, err = s.seqs.take(ctx); err != nil {
			return nil, err
		}
		m.ticket = c.cache.begin(op, open)
		r, err := c.ask(ctx, m)
		switch {
		case err == nil || !errors.Is(err, errSession):
			return r, err
		case m.tried == 0 && portable(op):
			continue // refused at once, so that nothing was done
		}
		return nil, fmt.Errorf("%w: %w", errUnknown, syscall.EIO)
	}
}

// portable tells whether an operation means the same in another session.
func portable(op *pb.Op) bool {
	switch op.Op.(type) {
	case *pb.Op_Commit, *pb.Op_Relocate, *pb.Op_SealChunks, *pb.Op_ReleaseInodes, *pb.Op_CloseSession:
		return false
	}
	return true
}

// ask sends the mutation until it is answered. If ctx ends before, that goes on in the background, so that the sequence
// is answered some time and the cache learns what happened.
func (c *Client) ask(ctx context.Context, m *mutation) (*pb.Result, error) {
	r, err := c.send(ctx, m)
	if err == nil || ctx.Err() == nil || errors.Is(err, errSession) || m.tried == 0 {
		return c.answered(m, r, err)
	}
	m.ticket.abandoned = true
	if !c.background(func() {
		r, err := c.send(m.s.ctx, m)
		_, _ = c.answered(m, r, err)
	}) {
		_, _ = c.answered(m, nil, errClosed)
	}
	return nil, err
}

func (c *Client) send(ctx context.Context, m *mutation) (r *pb.Result, err error) {
	err = c.conn.call(ctx, "Mutate", &m.tried, func(ctx context.Context, api pb.MetaClient) error {
		var err error
		r, err = api.Mutate(ctx, &pb.MutateRequest{Session: m.s.id, Sequence: m.seq, Unanswered: m.s.seqs.unanswered(), Cred: m.cred, Op: m.op})
		return err
	})
	if errors.Is(err, errSession) {
		c.lost(m.s)
	}
	return r, err
}

// answered brings the cache up to date, and only then gives the sequence up: until then the server takes the inode that
// it made for open.
func (c *Client) answered(m *mutation, r *pb.Result, err error) (*pb.Result, error) {
	c.cache.finish(m.ticket, m.op, r)
	m.s.seqs.done(m.seq)
	if err != nil {
		return nil, err
	}
	if r.Errno != 0 {
		return nil, &fserr.Error{Errno: syscall.Errno(r.Errno), Detail: r.Message}
	}
	return r, nil
}

// Create makes a regular file and records that it is open. existed says that there was one already: that is not opened.
func (c *Client) Create(ctx context.Context, cred posix.Cred, op *pb.MakeNode) (attr *pb.Attr, existed bool, err error) {
	for {
		r, err := c.mutate(ctx, cred, &pb.Op{Op: &pb.Op_MakeNode{MakeNode: op}}, true)
		switch {
		case err != nil:
			return nil, false, err
		case r.Attr == nil:
			return nil, false, fserr.New(syscall.EIO, "the metaserver's answer has no attributes")
		case r.Existed || r.Leased:
			return r.Attr, r.Existed, nil
		}
		// Others could have removed it again without asking: only an open under a lease is one that counts.
		a, err := c.askOpen(ctx, posix.Cred{}, r.Attr.Inode, 0)
		if err == nil {
			return a, false, nil
		}
		c.CloseInode(r.Attr.Inode)
		if !isErrno(err, syscall.ENOENT) && !isErrno(err, syscall.ESTALE) {
			return nil, false, err
		}
	}
}

func credOf(c posix.Cred) *pb.Cred {
	return &pb.Cred{Uid: c.UID, Gid: c.GID, Groups: c.Groups}
}

func isErrno(err error, errno syscall.Errno) bool {
	var e syscall.Errno
	return errors.As(err, &e) && e == errno
}
