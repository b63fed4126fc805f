package consensus

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// layer carries raft's connections in Peer.Connect calls, so that one port and one way of making connections serve
// everything. It is raft's StreamLayer, and the Peer service.
type layer struct {
	pb.UnimplementedPeerServer
	node    *Node
	self    address
	pool    *rpc.Pool
	cluster func() []byte

	accepts chan net.Conn
	ctx     context.Context // ends every call
	cancel  context.CancelFunc

	mu    sync.Mutex
	conns map[*conn]struct{}
	wg    sync.WaitGroup // pumps, and accepted conns until raft closed them
}

func newLayer(n *Node, self string, pool *rpc.Pool, cluster func() []byte) *layer {
	l := &layer{node: n, self: address(self), pool: pool, cluster: cluster, accepts: make(chan net.Conn), conns: map[*conn]struct{}{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// start makes a conn of a call; nil when the layer is closed.
func (l *layer) start(call context.Context, end context.CancelFunc, s byteStream, remote address, accepted bool) *conn {
	c := newConn(call, end, s, l.self, remote, l.forget)
	c.accepted = accepted
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return nil
	}
	l.conns[c] = struct{}{}
	if accepted {
		l.wg.Add(1)
	}
	l.wg.Go(c.pump)
	return c
}

func (l *layer) forget(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	if c.accepted {
		l.wg.Done()
	}
}

// Dial implements raft.StreamLayer.
func (l *layer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	cc, err := l.pool.Get(string(to))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(l.ctx)
	timer := time.AfterFunc(timeout, cancel)
	s, err := l.greet(ctx, cc)
	if !timer.Stop() {
		err = fmt.Errorf("no answer within %v", timeout)
	}
	if err == nil {
		if c := l.start(ctx, cancel, s, address(to), false); c != nil {
			return c, nil
		}
		err = net.ErrClosed
	}
	cancel()
	return nil, fmt.Errorf("connect to metaserver %s: %w", to, err)
}

func (l *layer) greet(ctx context.Context, cc grpc.ClientConnInterface) (byteStream, error) {
	s, err := pb.NewPeerClient(cc).Connect(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.Send(&pb.PeerBytes{Cluster: l.cluster()}); err != nil {
		return nil, err
	}
	m, err := s.Recv()
	if err != nil {
		return nil, err
	}
	return s, l.check(m.Cluster)
}

// check refuses a member of another cluster. One that does not know yet is let in: raft knows whom it belongs to.
func (l *layer) check(theirs []byte) error {
	if ours := l.cluster(); len(ours) > 0 && len(theirs) > 0 && !bytes.Equal(ours, theirs) {
		return rpc.Error(rpc.WrongCluster, fmt.Sprintf("a metaserver of cluster %x talks to one of cluster %x: their addresses are mixed up", theirs, ours))
	}
	return nil
}

// Connect answers a Dial.
func (l *layer) Connect(s pb.Peer_ConnectServer) error {
	m, err := s.Recv()
	if err != nil {
		return err
	}
	if err := l.check(m.Cluster); err != nil {
		return err
	}
	if err := s.Send(&pb.PeerBytes{Cluster: l.cluster()}); err != nil {
		return err
	}
	remote := address("unknown")
	if p, ok := peer.FromContext(s.Context()); ok {
		remote = address(p.Addr.String())
	}
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	c := l.start(ctx, cancel, s, remote, true)
	if c == nil {
		return status.Error(codes.Unavailable, "this metaserver is stopping")
	}
	select {
	case l.accepts <- c:
	case <-ctx.Done():
		return c.Close()
	case <-l.ctx.Done():
		return c.Close()
	}
	select {
	case <-ctx.Done(): // closed here, or gone there
	case <-l.ctx.Done():
	}
	return nil
}

// Accept implements net.Listener.
func (l *layer) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepts:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener: no conn lives on.
func (l *layer) Close() error {
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		c.end()
	}
	return nil
}

// wait returns when all goroutines of a closed layer have ended, and raft's that served its conns have let go of them.
func (l *layer) wait() { l.wg.Wait() }

// Addr implements net.Listener.
func (l *layer) Addr() net.Addr { return l.self }

// addresses prefers the configured addresses of members to those in the log: an address may change, an id does not.
type addresses map[raft.ServerID]raft.ServerAddress

func (a addresses) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if to, ok := a[id]; ok {
		return to, nil
	}
	return "", fmt.Errorf("metaserver %s is not among the configured peers", id)
}

// transport is raft's, and notes which followers still take this node for their leader.
type transport struct {
	*raft.NetworkTransport
	acks *acks
}

func newTransport(l *layer, a addresses, timeout time.Duration, log hclog.Logger) *transport {
	return &transport{acks: newAcks(), NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider: a, Logger: log.Named("net"), Stream: l, MaxPool: 3, Timeout: timeout,
	})}
}

// AppendEntries implements raft.Transport. Heartbeats come this way.
func (t *transport) AppendEntries(id raft.ServerID, to raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	round := t.acks.current()
	if err := t.NetworkTransport.AppendEntries(id, to, req, resp); err != nil {
		return err
	}
	if resp.Term == req.Term {
		t.acks.confirmed(id, req.Term, round)
	}
	return nil
}
