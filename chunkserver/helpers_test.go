package chunkserver

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testCluster = []byte("0123456789abcdef")

var discard = slog.New(slog.DiscardHandler)

// fakeMeta is a metaserver as chunk servers see it.
type fakeMeta struct {
	pb.UnimplementedRegistryServer
	srv  *rpc.Server
	done chan error

	mu         sync.Mutex
	changed    chan struct{} // closed and made anew at every change
	leader     string        // whom it sends others to; empty and not leading: nobody
	leads      bool
	removed    bool // the chunk server is
	refused    int  // registrations
	cluster    []byte
	nextID     uint32
	registered []*pb.RegisterRequest
	beats      int
	last       *pb.HeartbeatRequest // the last one with disks
	deleted    map[uint64]int
	corrupt    map[uint64]bool
	inventory  map[uint64]*pb.ChunkReport
	page       map[uint64]*pb.ChunkReport
	complete   int // inventories received
	copied     map[uint64][]*pb.CopyResult
	streams    map[chan *pb.HeartbeatReply]*fakeStream
}

type fakeStream struct {
	cancel context.CancelFunc
	server uint32 // 0 before its first message
}

func newMeta(t testing.TB) *fakeMeta {
	t.Helper()
	srv, err := rpc.NewServer("127.0.0.1:0", discard)
	if err != nil {
		t.Fatal(err)
	}
	m := &fakeMeta{
		srv: srv, done: make(chan error, 1), changed: make(chan struct{}), leads: true, cluster: testCluster, nextID: 5,
		deleted: map[uint64]int{}, corrupt: map[uint64]bool{}, copied: map[uint64][]*pb.CopyResult{},
		streams: map[chan *pb.HeartbeatReply]*fakeStream{},
	}
	pb.RegisterRegistryServer(srv, m)
	go func() { m.done <- srv.Serve() }()
	t.Cleanup(func() {
		srv.Close()
		<-m.done
	})
	return m
}

func (m *fakeMeta) update(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	close(m.changed)
	m.changed = make(chan struct{})
}

// until waits for a condition, which is checked with the lock held after every change.
func (m *fakeMeta) until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		m.mu.Lock()
		ok, changed := cond(), m.changed
		m.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("waited too long: %s", what)
		}
	}
}

func (m *fakeMeta) refusal() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.leads && m.removed:
		return rpc.Error(rpc.Removed, "it was removed")
	case m.leads:
		return nil
	}
	return rpc.ErrNotLeader(m.leader)
}

func (m *fakeMeta) Register(_ context.Context, r *pb.RegisterRequest) (*pb.RegisterReply, error) {
	if err := m.refusal(); err != nil {
		m.update(func() { m.refused++ })
		return nil, err
	}
	var reply *pb.RegisterReply
	var err error
	m.update(func() {
		if len(r.Cluster) > 0 && string(r.Cluster) != string(m.cluster) {
			err = rpc.Error(rpc.WrongCluster, "this is another cluster")
			return
		}
		m.registered = append(m.registered, r)
		id := r.Server
		if id == 0 {
			id = m.nextID
			m.nextID++
		}
		reply = &pb.RegisterReply{Cluster: m.cluster, Server: id}
	})
	return reply, err
}

func (m *fakeMeta) Heartbeat(stream grpc.BidiStreamingServer[pb.HeartbeatRequest, pb.HeartbeatReply]) error {
	if err := m.refusal(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	replies := make(chan *pb.HeartbeatReply, 16)
	this := &fakeStream{cancel: cancel}
	m.update(func() { m.streams[replies] = this })
	defer m.update(func() { delete(m.streams, replies) })
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for {
			select {
			case r := <-replies:
				if stream.Send(r) != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	got := make(chan error, 1)
	go func() {
		for {
			h, err := stream.Recv()
			if err != nil {
				got <- err
				return
			}
			m.take(this, h)
		}
	}()
	select {
	case err := <-got:
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	case <-ctx.Done():
		if err := m.refusal(); err != nil {
			return err
		}
		return ctx.Err()
	}
}

func (m *fakeMeta) take(from *fakeStream, h *pb.HeartbeatRequest) {
	m.update(func() {
		m.beats++
		if h.Server != 0 {
			from.server = h.Server
		}
		for _, r := range h.Copied {
			m.copied[r.Stored] = append(m.copied[r.Stored], r)
		}
		for _, id := range h.Deleted {
			m.deleted[id]++
		}
		for _, id := range h.Corrupt {
			m.corrupt[id] = true
		}
		if len(h.Disks) > 0 {
			m.last = h
		}
		for _, r := range h.Inventory {
			if m.page == nil {
				m.page = map[uint64]*pb.ChunkReport{}
			}
			m.page[r.Id] = r
		}
		if h.InventoryEnd {
			m.inventory, m.page = m.page, nil
			m.complete++
		}
	})
}

// push sends a reply to every chunk server.
func (m *fakeMeta) push(r *pb.HeartbeatReply) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.streams {
		c <- r
	}
}

// order sends a reply to one chunk server, once that has said who it is.
func (m *fakeMeta) order(t *testing.T, s *running, r *pb.HeartbeatReply) {
	t.Helper()
	r = proto.Clone(r).(*pb.HeartbeatReply) // the caller may change his
	m.until(t, "its stream", func() bool {
		for c, to := range m.streams {
			if to.server == uint32(s.store.identity().Server) {
				c <- r
				return true
			}
		}
		return false
	})
}

// remove removes the chunk server and ends its stream.
func (m *fakeMeta) remove() {
	m.update(func() {
		m.removed = true
		for _, s := range m.streams {
			s.cancel()
		}
	})
}

// depose makes it a follower of another and ends its streams.
func (m *fakeMeta) depose(leader string) {
	m.update(func() {
		m.leads, m.leader = false, leader
		for _, s := range m.streams {
			s.cancel()
		}
	})
}

// running is a chunk server under test.
type running struct {
	*Server
	stop context.CancelFunc
	done chan error
}

func start(t testing.TB, cfg Config) *running {
	t.Helper()
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = 10 * time.Millisecond
	}
	cfg.Reserve = 1
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &running{s, stop, make(chan error, 1)}
	go func() { r.done <- s.Run(ctx) }()
	t.Cleanup(func() { r.halt(t) })
	return r
}

func (r *running) halt(t testing.TB) {
	t.Helper()
	r.stop()
	if err := r.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func (r *running) awaitReady(t testing.TB) {
	t.Helper()
	select {
	case <-r.Ready():
	case err := <-r.done:
		t.Fatalf("run: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("it does not register")
	}
}

// one is a metaserver with one chunk server.
func one(t *testing.T) (*fakeMeta, *running) {
	t.Helper()
	m := newMeta(t)
	s := start(t, Config{Dirs: []string{t.TempDir()}, Meta: []string{m.srv.Address()}})
	s.awaitReady(t)
	return m, s
}

// client talks to a chunk server over the network.
type client struct {
	t    *testing.T
	s    *running
	conn *grpc.ClientConn
}

func dial(t *testing.T, s *running) client {
	t.Helper()
	conn, err := rpc.Dial(s.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return client{t, s, conn}
}

// writer is an append stream.
type writer struct {
	rpc.AppendClient
	c      client
	id     chunk.ID
	length uint64
	first  bool
}

func (c client) append(id chunk.ID) *writer {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c.t.Cleanup(cancel)
	a, err := rpc.OpenAppend(ctx, c.conn)
	if err != nil {
		c.t.Fatal(err)
	}
	return &writer{a, c, id, 0, true}
}

// send sends a frame; change may spoil its header first.
func (w *writer) send(b []byte, change func(*pb.AppendHeader)) {
	w.c.t.Helper()
	h := &pb.AppendHeader{Chunk: uint64(w.id), Offset: w.length, Checksums: chunk.Checksums(nil, b)}
	if w.first {
		h.Cluster, h.Server, h.Session, w.first = testCluster, uint32(w.c.s.store.identity().Server), 1, false
	}
	if change != nil {
		change(h)
	}
	var p mem.BufferSlice
	if len(b) > 0 {
		p = mem.BufferSlice{mem.SliceBuffer(b)}
	}
	if err := w.Send(h, p); err != nil && !errors.Is(err, io.EOF) {
		w.c.t.Fatalf("send: %v", err)
	}
	w.length += uint64(len(b))
}

// acked waits until the chunk has that length, or that much of it is durable.
func (w *writer) acked(length, durable uint64) {
	w.c.t.Helper()
	for {
		r, err := w.Recv()
		if err != nil {
			w.c.t.Fatalf("recv: %v", err)
		}
		if r.Durable > r.Length || r.Length > w.length {
			w.c.t.Fatalf("acknowledged length %d, durable %d, of %d", r.Length, r.Durable, w.length)
		}
		if r.Length >= length && r.Durable >= durable {
			return
		}
	}
}

// failure waits for the stream to end.
func (w *writer) failure() error {
	for {
		if _, err := w.Recv(); err != nil {
			return err
		}
	}
}

func (c client) read(id chunk.ID, off uint64, n int) ([]byte, error) {
	_, p, err := rpc.ReadChunk(context.Background(), c.conn, &pb.ReadRequest{
		Chunk: uint64(id), Offset: off, Length: uint32(n), Cluster: testCluster, Server: uint32(c.s.store.identity().Server), Session: 1,
	})
	if err != nil {
		return nil, err
	}
	defer p.Free()
	return p.Materialize(), nil
}

func (c client) mustRead(id chunk.ID, off uint64, want []byte) {
	c.t.Helper()
	got, err := c.read(id, off, len(want))
	if err != nil {
		c.t.Fatalf("read %d bytes at %d: %v", len(want), off, err)
	}
	if string(got) != string(want) {
		c.t.Fatalf("read %d bytes at %d: wrong bytes", len(want), off)
	}
}

// value is what a counter counts.
func value(t *testing.T, c prometheus.Metric) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func random(n int) []byte {
	b := make([]byte, n)
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
	return b
}
