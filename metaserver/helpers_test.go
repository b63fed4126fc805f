package metaserver

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running is a Server that Run serves.
type running struct {
	*Server
	t    *testing.T
	done chan error
}

func testLogger() *slog.Logger {
	if os.Getenv("SHOAL_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func start(t *testing.T, cfg Config) *running {
	t.Helper()
	if cfg.ID == 0 {
		cfg.ID = 1
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(t.TempDir(), "meta")
	}
	cfg.Logger = testLogger()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{Server: s, t: t, done: make(chan error, 1)}
	go func() { r.done <- s.Run(context.Background()) }()
	t.Cleanup(r.stop)
	return r
}

func (r *running) stop() {
	if err := r.Close(); err != nil {
		r.t.Errorf("close: %v", err)
	}
	select {
	case err := <-r.done:
		if err != nil {
			r.t.Errorf("run: %v", err)
		}
		r.done <- nil
	case <-time.After(30 * time.Second):
		r.t.Error("Run did not return after Close")
	}
}

func (r *running) ready() *running {
	r.t.Helper()
	select {
	case <-r.Ready():
	case <-time.After(30 * time.Second):
		r.t.Fatal("not ready")
	}
	return r
}

// addresses reserves n ports.
func addresses(t *testing.T, n int) map[uint64]string {
	t.Helper()
	out := map[uint64]string{}
	var all []net.Listener
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
		out[uint64(i+1)] = l.Addr().String()
	}
	for _, l := range all {
		_ = l.Close()
	}
	return out
}

// group starts n metaservers, with which tests play.
func group(t *testing.T, n int, base Config) map[uint64]*running {
	t.Helper()
	peers := addresses(t, n)
	out := map[uint64]*running{}
	for id, a := range peers {
		cfg := base
		cfg.ID, cfg.Listen, cfg.Peers = id, a, peers
		cfg.Dir = filepath.Join(t.TempDir(), "meta-"+strconv.FormatUint(id, 10))
		out[id] = start(t, cfg)
	}
	for _, r := range out {
		r.ready()
	}
	return out
}

// caller is a raw client.
type caller struct {
	t     *testing.T
	mu    sync.Mutex
	conns map[string]*grpc.ClientConn
	all   []string
	at    string // the leader, as far as known

	session uint64
	seq     uint64
	pings   atomic.Uint64 // of the session, over all its streams
}

func call(t *testing.T, addresses ...string) *caller {
	c := &caller{t: t, conns: map[string]*grpc.ClientConn{}, all: addresses, at: addresses[0]}
	t.Cleanup(func() {
		for _, conn := range c.conns {
			_ = conn.Close()
		}
	})
	return c
}

func (c *caller) meta(address string) pb.MetaClient { return pb.NewMetaClient(c.conn(address)) }

func (c *caller) registry() pb.RegistryClient { return pb.NewRegistryClient(c.conn(c.at)) }

func (c *caller) conn(address string) *grpc.ClientConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns[address] == nil {
		conn, err := rpc.Dial(address)
		if err != nil {
			c.t.Fatal(err)
		}
		c.conns[address] = conn
	}
	return c.conns[address]
}

// try calls f at the leader until it answers, following hints.
func (c *caller) try(f func(context.Context, pb.MetaClient) error) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), 40*time.Second)
	defer cancel()
	for i := 0; ; i++ {
		err := f(ctx, c.meta(c.at))
		if err == nil || ctx.Err() != nil || rpc.Kind(err) != rpc.NotLeader && status.Code(err) != codes.Unavailable {
			return err
		}
		if hint := rpc.Detail(err).GetLeader(); hint != "" && hint != c.at {
			c.at = hint
			continue
		}
		c.at = c.all[i%len(c.all)]
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// open opens a session.
func (c *caller) open() *caller {
	c.t.Helper()
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce)
	res := c.must(c.send(&pb.MutateRequest{Op: &pb.Op{Op: &pb.Op_OpenSession{OpenSession: &pb.OpenSession{Client: "test", Nonce: nonce}}}}))
	if res.Session == 0 || len(res.Cluster) != 16 {
		c.t.Fatalf("opened %v", res)
	}
	c.session, c.seq = res.Session, 0
	c.pings.Store(0)
	return c
}

func (c *caller) send(req *pb.MutateRequest) (res *pb.Result, err error) {
	err = c.try(func(ctx context.Context, m pb.MetaClient) (err error) {
		res, err = m.Mutate(ctx, req)
		return err
	})
	return res, err
}

// next makes the request of the session's next mutation.
func (c *caller) next(op *pb.Op) *pb.MutateRequest {
	c.seq++
	return &pb.MutateRequest{Session: c.session, Sequence: c.seq, Unanswered: c.seq, Cred: &pb.Cred{}, Op: op}
}

func (c *caller) do(op *pb.Op) (*pb.Result, error) { return c.send(c.next(op)) }

// must wants success.
func (c *caller) must(res *pb.Result, err error) *pb.Result {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
	if res.Errno != 0 {
		c.t.Fatalf("%v: %s", syscall.Errno(res.Errno), res.Message)
	}
	return res
}

func (c *caller) read() *pb.ReadContext { return &pb.ReadContext{Session: c.session, Cred: &pb.Cred{}} }

func (c *caller) lookup(parent uint64, name string) *pb.LookupReply {
	c.t.Helper()
	var out *pb.LookupReply
	if err := c.try(func(ctx context.Context, m pb.MetaClient) (err error) {
		out, err = m.Lookup(ctx, &pb.LookupRequest{Ctx: c.read(), Parent: parent, Name: []byte(name)})
		return err
	}); err != nil {
		c.t.Fatal(err)
	}
	return out
}

func mkdir(name string) *pb.Op {
	return &pb.Op{Op: &pb.Op_MakeNode{MakeNode: &pb.MakeNode{Parent: 1, Name: []byte(name), Mode: syscall.S_IFDIR | 0o755, Exclusive: true}}}
}

func create(name string) *pb.Op {
	return &pb.Op{Op: &pb.Op_MakeNode{MakeNode: &pb.MakeNode{Parent: 1, Name: []byte(name), Mode: syscall.S_IFREG | 0o644}}}
}

func unlink(name string) *pb.Op {
	return &pb.Op{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{Parent: 1, Name: []byte(name)}}}
}

// link is a client's session stream that answers everything by itself.
type link struct {
	t       *testing.T
	stream  grpc.BidiStreamingClient[pb.SessionPing, pb.SessionPush]
	mu      sync.Mutex
	opened  []uint64
	held    []uint64
	servers []*pb.ServerInfo
	revoked []uint64
	mute    bool // answers no revocation
	first   chan struct{}
	done    chan error
	cancel  context.CancelFunc
}

// connect opens the session's stream, with a ping every interval; 0: only the first.
func (c *caller) connect(interval time.Duration, opened ...uint64) *link {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	k := &link{t: c.t, opened: opened, first: make(chan struct{}), done: make(chan error, 1), cancel: cancel}
	var err error
	if k.stream, err = c.meta(c.at).Session(ctx); err != nil {
		c.t.Fatal(err)
	}
	if err := k.stream.Send(&pb.SessionPing{Session: c.session, Ping: c.pings.Add(1), Opened: opened}); err != nil {
		c.t.Fatal(err)
	}
	sending := make(chan *pb.SessionPing, 16)
	var group sync.WaitGroup
	group.Go(func() {
		for {
			select {
			case p := <-sending:
				_ = k.stream.Send(p) // the receiver sees why it fails
			case <-ctx.Done():
				return
			}
		}
	})
	group.Go(func() { k.receive(ctx, cancel, sending) })
	if interval > 0 {
		group.Go(func() { k.pings(ctx, interval, &c.pings, sending) })
	}
	c.t.Cleanup(func() { cancel(); group.Wait() })
	select {
	case <-k.first:
	case err := <-k.done:
		c.t.Fatalf("connect: %v", err)
	}
	return k
}

func (k *link) pings(ctx context.Context, interval time.Duration, count *atomic.Uint64, sending chan<- *pb.SessionPing) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		select {
		case sending <- &pb.SessionPing{Ping: count.Add(1)}:
		case <-ctx.Done():
			return
		}
	}
}

func (k *link) receive(ctx context.Context, cancel context.CancelFunc, sending chan<- *pb.SessionPing) {
	defer cancel()
	for n := 0; ; n++ {
		push, err := k.stream.Recv()
		if err != nil {
			k.done <- err
			return
		}
		k.mu.Lock()
		if n == 0 {
			k.held = push.Held
			close(k.first)
		}
		if len(push.Servers) > 0 {
			k.servers = push.Servers
		}
		answer := &pb.SessionPing{}
		for _, r := range push.Revokes {
			k.revoked = append(k.revoked, r.Inodes...)
			ack := &pb.RevokeAck{Revoke: r.Id}
			for _, inode := range r.Inodes {
				if slices.Contains(k.opened, inode) {
					ack.Opened = append(ack.Opened, inode)
				}
			}
			answer.Acks = append(answer.Acks, ack)
		}
		mute := k.mute
		k.mu.Unlock()
		if len(answer.Acks) > 0 && !mute {
			select {
			case sending <- answer:
			case <-ctx.Done():
			}
		}
	}
}

func (k *link) wasRevoked(inode uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(k.revoked, inode)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(40 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("it never happened that %s", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func errnoOf(err error) syscall.Errno {
	var e syscall.Errno
	if errors.As(rpc.FromStatus(err), &e) {
		return e
	}
	return 0
}
