package meta

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	firstPing = time.Second // between pings, before the server said how long a lease is
	minPing   = 20 * time.Millisecond
	maxPings  = 64 // unanswered pings whose time is remembered
	// A lease is used for a little less than the server grants: clocks need not run at the same rate.
	leaseMargin = 20 // one part in
)

// session is one session with the cluster.
type session struct {
	id     uint64
	seqs   *sequences
	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	pings  pings // counted over all its streams, so that the leader can tell which one is the newest
}

// run keeps a session open and its stream connected until ctx ends.
func (c *Client) run(ctx context.Context) {
	for ctx.Err() == nil {
		c.mu.Lock()
		s, closing := c.session, c.closing
		c.mu.Unlock()
		if s == nil && closing {
			return
		}
		if s == nil {
			if err := c.openSession(ctx); err != nil && ctx.Err() == nil {
				c.log.Debug("cannot open a session", "err", err) // the warning that we wait says why
				c.conn.skip(err)
				pauseFor(ctx, maxBackoff)
			}
			continue
		}
		t, err := c.conn.current(ctx)
		if err != nil {
			return
		}
		err = c.stream(ctx, s, t)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errSession):
			c.lost(s)
		default:
			c.log.Debug("the session stream ended", "metaserver", t.address, "err", err)
			c.conn.streamEnded(ctx, t, err)
		}
	}
}

func pauseFor(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// streamEnded decides whether the stream's end says that the target does not lead any more.
func (c *conn) streamEnded(ctx context.Context, t *target, err error) {
	if rpc.Kind(err) == rpc.NotLeader || status.Code(err) == codes.Unavailable || t.ctx.Err() != nil {
		c.leave(t, err)
		return
	}
	pauseFor(ctx, minBackoff) // it lives: the leases ran out, or it has not this session's newest stream
}

func (c *Client) openSession(ctx context.Context) error {
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce) // never fails
	op := &pb.Op{Op: &pb.Op_OpenSession{OpenSession: &pb.OpenSession{Client: c.name, Nonce: nonce}}}
	var r *pb.Result
	err := c.conn.call(ctx, "Mutate", nil, func(ctx context.Context, api pb.MetaClient) error {
		var err error
		r, err = api.Mutate(ctx, &pb.MutateRequest{Op: op})
		return err
	})
	if err != nil {
		return err
	}
	if r.Errno != 0 {
		return &fserr.Error{Errno: syscall.Errno(r.Errno), Detail: r.Message}
	}
	if r.Session == 0 {
		return errors.New("the metaserver gave no session number")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cluster != nil && !bytes.Equal(c.cluster, r.Cluster) {
		return fmt.Errorf("cluster %x answers in place of %x", r.Cluster, c.cluster)
	}
	s := &session{id: r.Session, seqs: newSequences()}
	s.ctx, s.cancel = context.WithCancel(c.ctx)
	c.cluster, c.session = r.Cluster, s
	c.metrics.sessions.Inc()
	close(c.opened)
	return nil
}

// lost notes that the session has ended in the cluster. Another one is opened by run.
func (c *Client) lost(s *session) {
	c.mu.Lock()
	if c.session != s {
		c.mu.Unlock()
		return
	}
	c.session = nil
	c.opened = make(chan struct{})
	closing := c.closing
	c.gen.Add(1)
	c.mu.Unlock()
	s.cancel()
	if !closing {
		c.log.Warn("the session ended: the cluster did not hear from this client for too long; uncommitted writes are lost", "session", s.id)
	}
	c.cache.unhold()
	c.cache.drop()
}

func (c *Client) closeSession(ctx context.Context, s *session) error {
	_, err := c.Mutate(ctx, credNone, &pb.Op{Op: &pb.Op_CloseSession{CloseSession: &pb.CloseSession{}}})
	if errors.Is(err, errSession) || errors.Is(err, errUnknown) {
		return nil
	}
	s.cancel()
	return err
}

// stream is one connection of the session to a leader.
type stream struct {
	c        *Client
	s        *session
	t        *target
	rpc      pb.Meta_SessionClient
	wake     chan struct{} // there are acknowledgements or dropped leases to send
	interval chan time.Duration

	acks acks
}

// stream connects the session to the target and returns why it ended.
func (c *Client) stream(ctx context.Context, s *session, t *target) error {
	c.cache.reset(ctx) // before the leader hears of this client
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	defer context.AfterFunc(s.ctx, cancel)()
	t.calls.Add(1)
	defer t.calls.Add(-1)
	t.sign()
	c.metrics.rpcs.WithLabelValues("Session").Inc()
	api, err := t.api.Session(ctx)
	if err != nil {
		return streamError(err)
	}
	st := &stream{c: c, s: s, t: t, rpc: api, wake: make(chan struct{}, 1), interval: make(chan time.Duration, 1)}
	c.cache.setWake(st.notify)
	defer c.cache.setWake(nil)
	if err := api.Send(&pb.SessionPing{Session: s.id, Ping: st.s.pings.next(), Opened: c.cache.openInodes()}); err != nil && err != io.EOF {
		return streamError(err)
	}
	sender := make(chan struct{})
	go func() {
		defer close(sender)
		st.send(ctx)
	}()
	err = st.receive()
	cancel()
	<-sender
	return err
}

func streamError(err error) error {
	if rpc.Kind(err) == rpc.SessionEnded {
		return errSession
	}
	return err
}

func (st *stream) notify() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// send sends pings at regular times, acknowledgements and dropped leases as they come.
func (st *stream) send(ctx context.Context) {
	tick := time.NewTicker(firstPing)
	defer tick.Stop()
	for {
		m := &pb.SessionPing{}
		select {
		case <-ctx.Done():
			return
		case d := <-st.interval:
			tick.Reset(d)
			continue
		case <-tick.C:
			m.Ping = st.s.pings.next()
		case <-st.wake:
		}
		m.Acks = st.acks.take(st.c.cache)
		m.Dropped = st.c.cache.takeDropped()
		if m.Ping == 0 && len(m.Acks) == 0 && len(m.Dropped) == 0 {
			continue
		}
		if err := st.rpc.Send(m); err != nil {
			return // receive says why
		}
	}
}

// receive handles what the leader pushes until the stream ends.
func (st *stream) receive() error {
	c := st.c
	var lease time.Duration
	for first := true; ; first = false {
		m, err := st.rpc.Recv()
		if err != nil {
			return streamError(err)
		}
		st.t.sign()
		if m.LeaseMs > 0 && time.Duration(m.LeaseMs)*time.Millisecond != lease {
			lease = time.Duration(m.LeaseMs) * time.Millisecond
			select {
			case st.interval <- max(min(lease/5, firstPing), minPing):
			default:
			}
		}
		for _, r := range m.Revokes {
			c.cache.revoke(r.Inodes, func() {
				st.acks.add(r)
				st.notify()
			})
		}
		if sentAt, ok := st.s.pings.answered(m.Pong); ok && lease > 0 {
			c.cache.renew(sentAt.Add(lease - lease/leaseMargin))
		}
		if len(m.Servers) > 0 {
			c.learnServers(m.Servers)
		}
		if first {
			c.conn.works(st.t)
			c.background(c.learnMembers)
		}
		if len(m.Held) > 0 {
			c.cache.held(m.Held)
		}
	}
}
