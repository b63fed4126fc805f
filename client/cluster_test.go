package client

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/shoalfs/shoalfs/chunkserver"
	"github.com/shoalfs/shoalfs/metaserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is a whole one in this process.
type cluster struct {
	addrs   string
	chunks  []*chunkserver.Server
	metas   []*metaserver.Server
	proxies []*proxy
}

type clusterOptions struct {
	metas   int
	chunks  int  // servers; 0: 3
	proxied bool // clients reach the metaservers over connections that a test can break
	tune    func(*metaserver.Config)
}

func startCluster(t *testing.T, o clusterOptions) *cluster {
	t.Helper()
	dir := t.TempDir()
	c := &cluster{}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	peers := map[uint64]string{}
	listen := map[uint64]string{}
	for id := uint64(1); id <= uint64(max(o.metas, 1)); id++ {
		listen[id] = freeAddress(t)
		peers[id] = listen[id]
		if o.proxied {
			p := newProxy(t, listen[id])
			c.proxies = append(c.proxies, p)
			peers[id] = p.address
		}
	}
	var addrs []string
	for id := uint64(1); id <= uint64(len(peers)); id++ {
		cfg := metaserver.Config{ID: id, Listen: listen[id], Advertise: peers[id], Dir: filepath.Join(dir, fmt.Sprint("meta-", id)), Peers: peers}
		if o.tune != nil {
			o.tune(&cfg)
		}
		m, err := metaserver.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.metas = append(c.metas, m)
		addrs = append(addrs, peers[id])
		t.Cleanup(func() { _ = m.Close() }) // it may be closed already
		wg.Go(func() { _ = m.Run(ctx) })
	}
	for i := range cmp.Or(o.chunks, 3) {
		s, err := chunkserver.New(chunkserver.Config{Listen: "127.0.0.1:0", Dirs: []string{filepath.Join(dir, fmt.Sprint("chunk-", i))}, Meta: addrs, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		c.chunks = append(c.chunks, s)
		t.Cleanup(func() { _ = s.Close() })
		wg.Go(func() { _ = s.Run(ctx) })
		within(t, s.Ready())
	}
	for i, a := range addrs {
		if i > 0 {
			c.addrs += ","
		}
		c.addrs += a
	}
	return c
}

func within(t *testing.T, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(time.Minute):
		t.Fatal("not ready")
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// peer is a client with its metrics.
type peer struct {
	*FS
	registry *prometheus.Registry
}

func (c *cluster) dial(t *testing.T, opts ...Option) *peer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p := &peer{registry: prometheus.NewRegistry()}
	opts = append([]Option{WithCred(Cred{}), WithLogger(slog.New(slog.DiscardHandler)), WithRegisterer(p.registry)}, opts...)
	var err error
	if p.FS, err = Dial(ctx, c.addrs, opts...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() }) // the cluster may be gone
	return p
}

// messages is how many calls of metadata operations the client sent.
func (p *peer) messages(t *testing.T) (n float64) {
	t.Helper()
	families, err := p.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "shoal_client_meta_calls_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			switch m.GetLabel()[0].GetValue() {
			case "Session", "Status", "Servers", "ReportServer":
			default:
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

func (p *peer) silent(t *testing.T, what string, fn func()) {
	t.Helper()
	was := p.messages(t)
	fn()
	if n := p.messages(t) - was; n != 0 {
		t.Errorf("%s: %v messages", what, n)
	}
}

// proxy passes connections on, until a test breaks or blocks them.
type proxy struct {
	address string
	to      string

	mu      sync.Mutex
	conns   map[net.Conn]struct{}
	blocked bool
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: l.Addr().String(), to: to, conns: map[net.Conn]struct{}{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.pass(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.block(true)
		wg.Wait()
	})
	return p
}

func (p *proxy) pass(c net.Conn) {
	defer func() { _ = c.Close() }()
	s, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer func() { _ = s.Close() }()
	p.mu.Lock()
	if p.blocked {
		p.mu.Unlock()
		return
	}
	p.conns[c], p.conns[s] = struct{}{}, struct{}{}
	p.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(s, c) // ends when either side does
		_ = s.Close()
	}()
	_, _ = io.Copy(c, s)
	_ = c.Close()
	<-done
	p.mu.Lock()
	delete(p.conns, c)
	delete(p.conns, s)
	p.mu.Unlock()
}

// cut breaks every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// block refuses all connections, or lets them through again.
func (p *proxy) block(b bool) {
	p.mu.Lock()
	p.blocked = b
	p.mu.Unlock()
	if b {
		p.cut()
	}
}
