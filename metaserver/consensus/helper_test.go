package consensus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		fmt.Fprintln(os.Stderr, proposeForEver(dir))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// The toy state machine counts: all commands, and how often each name was seen. A command carries its name as the client of
// an OpenSession.
const (
	totals kv.Bucket = iota
	names
)

var toyBuckets = []string{"totals", "names"}

func toyApply(t kv.Txn, index uint64, cmd *pb.Command) *pb.Result {
	if cmd.Op.GetMarkState() != nil {
		return &pb.Result{Index: index}
	}
	name := []byte(cmd.Op.GetOpenSession().GetClient())
	bump := func(b kv.Bucket, key []byte) uint64 {
		n := number(t.Get(b, key)) + 1
		t.Put(b, key, binary.BigEndian.AppendUint64(nil, n))
		return n
	}
	bump(names, name)
	return &pb.Result{Index: index, Session: bump(totals, []byte("all"))}
}

func number(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func command(name string) *pb.Command {
	return &pb.Command{Version: 1, Op: &pb.Op{Op: &pb.Op_OpenSession{OpenSession: &pb.OpenSession{Client: name}}}}
}

// flushEvery is short, so that the file is never far behind; benchmarks take the default.
var flushEvery = 5 * time.Millisecond

// member is a metaserver reduced to its consensus.
type member struct {
	*Node
	id      uint64
	dir     string
	listen  string // where it serves
	address string // where others reach it
	db      *kv.DB
	pool    *rpc.Pool
	server  *rpc.Server
	served  chan error
	proxy   *proxy // nil: others reach it directly
}

func (m *member) count(t testing.TB, b kv.Bucket, key string) (n uint64) {
	t.Helper()
	if err := m.db.View(func(r kv.Reader) error { n = number(r.Get(b, []byte(key))); return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// group is a set of members in one process.
type group struct {
	t       testing.TB
	members map[uint64]*member
	tune    func(*Config)
	peers   map[uint64]string
}

// newGroup starts n members. With proxied, they reach each other over the network, through proxies that can be cut.
func newGroup(t testing.TB, n int, proxied bool, tune func(*Config)) *group {
	t.Helper()
	g := &group{t: t, members: map[uint64]*member{}, tune: tune, peers: map[uint64]string{}}
	dir := t.TempDir() // before Cleanup: what is registered first runs last
	t.Cleanup(g.close)
	for id := uint64(1); id <= uint64(n); id++ {
		m := &member{id: id, dir: filepath.Join(dir, fmt.Sprint(id)), listen: freePort(t)}
		if err := os.Mkdir(m.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		m.address = m.listen
		if proxied {
			m.proxy = newProxy(t, m.listen)
			m.address = m.proxy.listener.Addr().String()
		}
		g.members[id], g.peers[id] = m, m.address
	}
	for id := range g.members {
		g.start(id)
	}
	return g
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func logger() *slog.Logger {
	if os.Getenv("SHOAL_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (m *member) config() Config {
	return Config{
		ID: m.id, Address: m.address, Dir: m.dir, DB: m.db, Apply: toyApply, Pool: m.pool, Logger: logger().With("node", m.id),
		HeartbeatTimeout: time.Second, SegmentSize: 1 << 20,
	}
}

func (m *member) openDB() error {
	db, err := kv.Open(filepath.Join(m.dir, "state.db"), kv.Options{Buckets: toyBuckets, FlushInterval: flushEvery, Logger: logger()})
	m.db = db
	return err
}

func (g *group) tryStart(id uint64) error {
	m := g.members[id]
	m.pool = &rpc.Pool{}
	if err := m.openDB(); err != nil {
		return err
	}
	cfg := m.config()
	cfg.Peers = g.peers
	if g.tune != nil {
		g.tune(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		return errors.Join(err, m.db.Close(), m.pool.Close())
	}
	m.Node = n
	if m.server, err = rpc.NewServer(m.listen, logger()); err != nil {
		return errors.Join(err, n.Close(), m.db.Close(), m.pool.Close())
	}
	n.RegisterPeer(m.server)
	m.served = make(chan error, 1)
	go func() { m.served <- m.server.Serve() }()
	return nil
}

func (g *group) start(id uint64) {
	g.t.Helper()
	if err := g.tryStart(id); err != nil {
		g.t.Fatal(err)
	}
}

func (g *group) stop(id uint64) {
	g.t.Helper()
	m := g.members[id]
	if m.Node == nil {
		return
	}
	err := m.Node.Close()
	m.Node = nil
	m.server.Close()
	err = errors.Join(err, <-m.served, m.pool.Close(), m.db.Close())
	if err != nil {
		g.t.Errorf("stop %d: %v", id, err)
	}
}

func (g *group) close() {
	for id, m := range g.members {
		g.stop(id)
		if m.proxy != nil {
			m.proxy.close()
		}
	}
}

// leader waits until one of the running members leads.
func (g *group) leader(except ...uint64) (found *member) {
	g.t.Helper()
	waitFor(g.t, "a leader", func() bool {
	next:
		for id, m := range g.members {
			for _, e := range except {
				if e == id {
					continue next
				}
			}
			if m.Node != nil && m.IsLeader() {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

// propose tries until the command is done or the test fails. Asking again may apply it again: the toy knows no sessions.
func (g *group) propose(name string, except ...uint64) *pb.Result {
	g.t.Helper()
	for {
		m := g.leader(except...)
		ctx, cancel := context.WithTimeout(g.t.Context(), 10*time.Second)
		res, err := m.Propose(ctx, command(name))
		cancel()
		if err == nil {
			return res
		}
		if status.Code(err) != codes.Unavailable {
			g.t.Fatalf("propose: %v", err)
		}
	}
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

// proxy forwards connections to a member, until it is cut.
type proxy struct {
	listener net.Listener
	target   string
	wg       sync.WaitGroup

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]struct{}
}

func newProxy(t testing.TB, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: target, conns: map[net.Conn]struct{}{}}
	p.wg.Go(p.accept)
	return p
}

func (p *proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.forward(c) })
	}
}

func (p *proxy) forward(a net.Conn) {
	defer func() { _ = a.Close() }()
	b, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer func() { _ = b.Close() }()
	p.mu.Lock()
	if p.cut {
		p.mu.Unlock()
		return
	}
	p.conns[a], p.conns[b] = struct{}{}, struct{}{}
	p.mu.Unlock()
	p.wg.Go(func() { _, _ = io.Copy(a, b); _ = a.Close() })
	_, _ = io.Copy(b, a)
	_ = b.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, a)
	delete(p.conns, b)
}

func (p *proxy) setCut(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	if cut {
		for c := range p.conns {
			_ = c.Close()
		}
	}
}

func (p *proxy) close() {
	_ = p.listener.Close()
	p.setCut(true)
	p.wg.Wait()
}
