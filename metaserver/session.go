package metaserver

import (
	"context"
	"io"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/lease"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

type sessionStream = grpc.BidiStreamingServer[pb.SessionPing, pb.SessionPush]

// Session implements pb.MetaServer.
func (m *metaService) Session(stream sessionStream) error {
	return rpc.ToStatus(m.s.session(stream))
}

// session is one client's stream. Three goroutines share it: this one sends, one receives, one renews the leases, which
// takes a round among the metaservers and must not hold up revocations.
func (s *Server) session(stream sessionStream) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	l, err := s.leading()
	if err != nil {
		return err
	}
	// No pong without knowing, after the ping came, that no other metaserver leads: it would not know of the lease.
	if err := s.node.ReadIndex(stream.Context()); err != nil {
		return err
	}
	st, err := l.table.Connect(first.Session, first.Ping, first.Opened)
	if err != nil {
		return l.fromTable(err)
	}
	defer st.Close()
	l.log.Debug("a client connected", "session", first.Session, "open", len(first.Opened))
	c := &clientStream{l: l, st: st, stream: stream, session: first.Session, pings: make(chan struct{}, 1), failed: make(chan error, 2)}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	renewed := make(chan struct{})
	go func() { // ends when this handler does
		defer close(renewed)
		c.renew(ctx)
	}()
	go c.receive() // ends when gRPC ends the stream, which it does when this handler has returned
	err = c.send(ctx)
	cancel()
	<-renewed
	return err
}

type clientStream struct {
	l       *leader
	st      *lease.Stream
	stream  sessionStream
	session uint64
	ping    atomic.Uint64 // the newest
	pings   chan struct{}
	failed  chan error
}

// receive takes acknowledgements at once and leaves pings to renew.
func (c *clientStream) receive() {
	for {
		msg, err := c.stream.Recv()
		if err != nil {
			c.failed <- err
			return
		}
		for _, a := range msg.Acks {
			c.st.Ack(a.GetRevoke(), a.GetOpened())
		}
		c.st.Dropped(msg.Dropped)
		if msg.Ping == 0 {
			continue
		}
		c.ping.Store(msg.Ping)
		select {
		case c.pings <- struct{}{}:
		default: // the one that waits will see the newer ping
		}
	}
}

func (c *clientStream) renew(ctx context.Context) {
	for {
		select {
		case <-c.pings:
		case <-ctx.Done():
			return
		}
		ping := c.ping.Load()
		err := c.l.s.node.ReadIndex(ctx)
		if err == nil {
			err = c.st.Renew(ping)
		}
		if err != nil {
			select {
			case c.failed <- err:
			case <-ctx.Done():
			}
			return
		}
	}
}

// send pushes pongs, revocations and changes among the chunk servers until the stream ends.
func (c *clientStream) send(ctx context.Context) error {
	l, cfg := c.l, c.l.s.cfg
	push := &pb.SessionPush{}
	if err := l.s.db.View(func(r kv.Reader) error {
		push.Held = namespace.Held(r, c.session)
		return nil
	}); err != nil {
		return err
	}
	changed := l.live.Changed()
	push.Servers = l.live.Servers()
	for {
		p, err := c.st.Take()
		if err != nil {
			return c.ended(err)
		}
		push.Pong = p.Pong
		push.Held = append(push.Held, p.Held...)
		push.LeaseMs, push.SessionMs = uint32(cfg.LeaseTTL.Milliseconds()), uint32(cfg.SessionTTL.Milliseconds())
		for _, r := range p.Revokes {
			push.Revokes = append(push.Revokes, &pb.Revoke{Id: r.ID, Inodes: r.Inodes})
		}
		if push.Pong != 0 || len(push.Revokes) > 0 || len(push.Servers) > 0 || len(push.Held) > 0 {
			if err := c.stream.Send(push); err != nil {
				return err
			}
		}
		push = &pb.SessionPush{}
		select {
		case <-c.st.C():
		case <-changed:
			changed = l.live.Changed()
			push.Servers = l.live.Servers()
		case err := <-c.failed:
			if err == io.EOF {
				return nil // the client went, without closing its session
			}
			return c.ended(err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ended says why a stream ends in terms that a client acts on.
func (c *clientStream) ended(err error) error {
	switch err {
	case lease.ErrLapsed, lease.ErrReplaced:
		c.l.log.Info("a client's stream ends", "session", c.session, "reason", err)
		return status.Error(codes.Aborted, err.Error())
	}
	return c.l.fromTable(err)
}
