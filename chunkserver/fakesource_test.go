package chunkserver

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// fakeSource answers reads as any number of chunk servers that hold shards would, and misbehaves as told.
type fakeSource struct {
	t   *testing.T
	srv *rpc.Server

	mu     sync.Mutex
	shards map[uint32]map[chunk.ID][]byte // by server
	reads  []*pb.ReadRequest
	// spoil is called before each answer: it may change the payload, whose checksums are computed already, wait, or fail.
	spoil func(r *pb.ReadRequest, payload []byte) error
}

func newSource(t *testing.T) *fakeSource {
	t.Helper()
	srv, err := rpc.NewServer("127.0.0.1:0", discard)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeSource{t: t, srv: srv, shards: map[uint32]map[chunk.ID][]byte{}}
	rpc.RegisterChunk(srv, f)
	done := make(chan error, 1)
	go func() { done <- srv.Serve() }()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return f
}

func (f *fakeSource) Append(rpc.AppendStream) error { return fmt.Errorf("not here") }

func (f *fakeSource) Read(_ context.Context, r *pb.ReadRequest) (*pb.ReadHeader, mem.BufferSlice, error) {
	f.mu.Lock()
	all, ok := f.shards[r.Server][chunk.ID(r.Chunk)]
	f.reads = append(f.reads, r)
	spoil := f.spoil
	f.mu.Unlock()
	end := r.Offset + uint64(r.Length)
	switch {
	case string(r.Cluster) != string(testCluster):
		return nil, nil, rpc.Error(rpc.WrongCluster, "another cluster")
	case !ok:
		return nil, nil, rpc.Error(rpc.ChunkNotFound, "no such shard")
	case end > uint64(len(all)) || r.Length == 0 || r.Length > chunk.MaxRead:
		return nil, nil, rpc.Error(rpc.ChunkCorrupt, fmt.Sprintf("%d bytes at %d of %d", r.Length, r.Offset, len(all)))
	}
	b := append([]byte(nil), all[r.Offset:end]...)
	sums := chunk.Checksums(nil, b)
	if spoil != nil {
		if err := spoil(r, b); err != nil {
			return nil, nil, err
		}
	}
	return &pb.ReadHeader{Checksums: sums}, mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// hold gives a server a shard.
func (f *fakeSource) hold(server uint32, id chunk.ID, b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shards[server] == nil {
		f.shards[server] = map[chunk.ID][]byte{}
	}
	f.shards[server][id] = b
}

func (f *fakeSource) set(spoil func(*pb.ReadRequest, []byte) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spoil = spoil
}

// asked returns what a server was asked for, 0: any, and forgets it.
func (f *fakeSource) asked(server uint32) []*pb.ReadRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	var got, rest []*pb.ReadRequest
	for _, r := range f.reads {
		if server == 0 || r.Server == server {
			got = append(got, r)
		} else {
			rest = append(rest, r)
		}
	}
	f.reads = rest
	return got
}

// infos names the source as servers 1 to n.
func (f *fakeSource) infos(n int) []*pb.ServerInfo {
	var all []*pb.ServerInfo
	for i := range n {
		all = append(all, &pb.ServerInfo{Id: uint32(i + 1), Address: f.srv.Address()})
	}
	return all
}

// encode cuts a chunk into the shards of a layout; the last row is filled up with zeros.
func encode(t *testing.T, l chunk.Layout, data []byte) [][]byte {
	t.Helper()
	shards := make([][]byte, l.Width())
	if !l.Coded() {
		for i := range shards {
			shards[i] = data
		}
		return shards
	}
	padded := make([]byte, l.Padded(len(data)))
	copy(padded, data)
	for i := range shards {
		shards[i] = make([]byte, l.ShardLength(uint64(len(padded))))
	}
	l.Scatter(shards[:l.Data], padded)
	if err := l.Encode(shards); err != nil {
		t.Fatal(err)
	}
	return shards
}

// holdAll gives shard i of a chunk to server i+1.
func (f *fakeSource) holdAll(id chunk.ID, l chunk.Layout, data []byte) [][]byte {
	f.t.Helper()
	shards := encode(f.t, l, data)
	for i, b := range shards {
		f.hold(uint32(i+1), id.Stored(l, i), b)
	}
	return shards
}

// order makes an order for a shard of layout to, of a chunk of layout l with those shards on servers 1 to n, but for those
// that are missing.
func (f *fakeSource) order(id chunk.ID, l chunk.Layout, length int, to chunk.Layout, shard int, missing ...int) *pb.CopyOrder {
	servers := make([]uint32, l.Width())
	for i := range servers {
		servers[i] = uint32(i + 1)
	}
	for _, i := range missing {
		servers[i] = 0
	}
	bytes := uint64(length)
	if to.Coded() {
		bytes = to.ShardLength(uint64(to.Padded(length)))
	}
	return &pb.CopyOrder{
		Stored: uint64(id.Stored(to, shard)), Servers: f.infos(l.Width()), Layout: to.Proto(), Shard: uint32(shard), Length: bytes,
		Source: &pb.ChunkInfo{Id: uint64(id), Length: uint64(l.Padded(length)), Servers: servers, Layout: l.Proto()},
	}
}

// result waits for the answer to an order.
func (m *fakeMeta) result(t *testing.T, stored uint64) *pb.CopyResult {
	t.Helper()
	var r *pb.CopyResult
	m.until(t, "the result of a copy", func() bool {
		if all := m.copied[stored]; len(all) > 0 {
			r, m.copied[stored] = all[0], all[1:]
		}
		return r != nil
	})
	return r
}

// mustCopy gives an order and waits until it is done; it returns how many bytes that took.
func mustCopy(t *testing.T, m *fakeMeta, s *running, o *pb.CopyOrder) uint64 {
	t.Helper()
	m.order(t, s, &pb.HeartbeatReply{Copies: []*pb.CopyOrder{o}})
	r := m.result(t, o.Stored)
	if r.Error != "" {
		t.Fatalf("copy of %x: %s", o.Stored, r.Error)
	}
	return r.Bytes
}

// newGate makes a channel that open closes; at the latest that happens at the end of the test.
func newGate(t *testing.T) (gate chan struct{}, open func()) {
	gate = make(chan struct{})
	open = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	return gate, open
}

// relay passes connections on to an address, so that what is in this process is reached over the network.
func relay(t *testing.T, to string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.DialTimeout("tcp", to, 5*time.Second)
			if err != nil {
				_ = a.Close()
				continue
			}
			mu.Lock()
			open = append(open, a, b)
			mu.Unlock()
			for _, c := range [][2]net.Conn{{a, b}, {b, a}} {
				wg.Go(func() {
					_, _ = io.Copy(c[0], c[1])
					_ = c[0].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}
