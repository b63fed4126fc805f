package chunkserver

import (
	"context"
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func durable(h *pb.AppendHeader) { h.Durable = true }
func seal(h *pb.AppendHeader)    { h.Seal = true }

func TestAppendAndRead(t *testing.T) {
	m, s := one(t)
	c := dial(t, s)
	w := c.append(1)
	data := random(5<<20 + 777)
	for at := 0; at < len(data); at += chunk.MaxFrame {
		w.send(data[at:min(at+chunk.MaxFrame, len(data))], nil)
	}
	w.acked(uint64(len(data)), 0)
	c.mustRead(1, 0, data[:chunk.MaxRead])
	c.mustRead(1, 1<<20-5, data[1<<20-5:1<<20+5])
	w.send(nil, durable) // without payload: only make what is there durable
	w.acked(uint64(len(data)), uint64(len(data)))
	w.send([]byte("end"), func(h *pb.AppendHeader) { h.Durable, h.Seal = true, true })
	w.acked(w.length, w.length)
	if err := w.failure(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last frame: %v", err)
	}
	c.mustRead(1, uint64(len(data)), []byte("end"))
	if got := s.Status(); got.BytesWritten != w.length || got.BytesRead == 0 || got.ID != 5 || got.Leader != m.srv.Address() {
		t.Errorf("%+v", got)
	}
}

// TestManyFrames sends small frames as fast as it can: they are acknowledged in groups, and all of them are.
func TestManyFrames(t *testing.T) {
	_, s := one(t)
	c := dial(t, s)
	w := c.append(1)
	data := random(300_000)
	go func() {
		for at := 0; at < len(data); at += 100 {
			n := uint64(at)
			h := &pb.AppendHeader{Chunk: 1, Offset: n, Checksums: chunk.Checksums(nil, data[at:at+100]), Durable: at%10_000 == 0}
			if at == 0 {
				h.Cluster, h.Server = testCluster, 5
			}
			if w.Send(h, mem.BufferSlice{mem.SliceBuffer(data[at : at+100])}) != nil {
				return
			}
		}
	}()
	var last uint64
	for last < uint64(len(data)) {
		r, err := w.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if r.Length < last {
			t.Fatalf("acknowledged %d after %d", r.Length, last)
		}
		last = r.Length
	}
	c.mustRead(1, 0, data)
}

func TestStreamIsRefused(t *testing.T) {
	_, s := one(t)
	c := dial(t, s)
	w := c.append(1)
	w.send([]byte("abc"), nil)
	w.acked(3, 0)
	for name, f := range map[string]struct {
		id     chunk.ID
		data   []byte
		change func(*pb.AppendHeader)
		kind   pb.ErrorDetail_Kind
		code   codes.Code
	}{
		"another cluster":  {2, []byte("a"), func(h *pb.AppendHeader) { h.Cluster = []byte("x") }, rpc.WrongCluster, codes.FailedPrecondition},
		"no cluster":       {2, []byte("a"), func(h *pb.AppendHeader) { h.Cluster = nil }, rpc.WrongCluster, codes.FailedPrecondition},
		"another server":   {2, []byte("a"), func(h *pb.AppendHeader) { h.Server++ }, rpc.WrongCluster, codes.FailedPrecondition},
		"no chunk":         {0, []byte("a"), nil, 0, codes.InvalidArgument},
		"not at the start": {2, []byte("a"), func(h *pb.AppendHeader) { h.Offset = 7 }, 0, codes.InvalidArgument},
		"a second stream":  {1, []byte("a"), nil, 0, codes.AlreadyExists},
		"continuing":       {1, []byte("a"), func(h *pb.AppendHeader) { h.Offset = 3 }, 0, codes.InvalidArgument},
		"damaged":          {2, []byte("a"), func(h *pb.AppendHeader) { h.Checksums[0]++ }, 0, codes.Aborted},
		"without sums":     {2, []byte("a"), func(h *pb.AppendHeader) { h.Checksums = nil }, 0, codes.Aborted},
		"too large":        {2, make([]byte, chunk.MaxFrame+1), nil, rpc.TooLarge, codes.InvalidArgument},
	} {
		w := c.append(f.id)
		w.send(f.data, f.change)
		if err := w.failure(); status.Code(err) != f.code || rpc.Kind(err) != f.kind {
			t.Errorf("%s: %v", name, err)
		}
		if s.store.find(2) != nil {
			t.Fatalf("%s: the chunk was made", name)
		}
	}
	w.send([]byte("def"), func(h *pb.AppendHeader) { h.Chunk = 9 })
	if err := w.failure(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a frame of another chunk: %v", err)
	}
	c.mustRead(1, 0, []byte("abc"))
}

func TestReadIsRefused(t *testing.T) {
	_, s := one(t)
	c := dial(t, s)
	w := c.append(1)
	w.send([]byte("abc"), seal)
	w.acked(3, 0)
	for name, f := range map[string]struct {
		req  *pb.ReadRequest
		kind pb.ErrorDetail_Kind
		code codes.Code
	}{
		"another cluster": {&pb.ReadRequest{Chunk: 1, Length: 3, Server: 5}, rpc.WrongCluster, codes.FailedPrecondition},
		"another server":  {&pb.ReadRequest{Chunk: 1, Length: 3, Cluster: testCluster, Server: 6}, rpc.WrongCluster, codes.FailedPrecondition},
		"no such chunk":   {&pb.ReadRequest{Chunk: 2, Length: 3, Cluster: testCluster, Server: 5}, rpc.ChunkNotFound, codes.NotFound},
		"beyond":          {&pb.ReadRequest{Chunk: 1, Length: 4, Cluster: testCluster, Server: 5}, rpc.ChunkCorrupt, codes.DataLoss},
		"nothing":         {&pb.ReadRequest{Chunk: 1, Cluster: testCluster, Server: 5}, 0, codes.InvalidArgument},
		"absurd":          {&pb.ReadRequest{Chunk: 1, Length: 1<<32 - 1, Cluster: testCluster, Server: 5}, 0, codes.InvalidArgument},
		"far away":        {&pb.ReadRequest{Chunk: 1, Offset: 1<<64 - 1, Length: 3, Cluster: testCluster, Server: 5}, rpc.ChunkCorrupt, codes.DataLoss},
	} {
		_, _, err := rpc.ReadChunk(context.Background(), c.conn, f.req)
		if status.Code(err) != f.code || rpc.Kind(err) != f.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestClientGoesAway ends a stream without warning: what was appended is sealed and can be read.
func TestClientGoesAway(t *testing.T) {
	m, s := one(t)
	c := dial(t, s)
	ctx, cancel := context.WithCancel(context.Background())
	a, err := rpc.OpenAppend(ctx, c.conn)
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{a, c, 1, 0, true}
	w.send([]byte("abc"), nil)
	w.acked(3, 0)
	cancel()
	m.until(t, "the stream has ended", func() bool { return s.streams.Load() == 0 })
	c.mustRead(1, 0, []byte("abc"))
}

// TestLocalCalls does the same within the process, where replies are handed over and may be kept.
func TestLocalCalls(t *testing.T) {
	_, s := one(t)
	conn, err := s.pool.Get(s.Address())
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, s)
	a, err := rpc.OpenAppend(context.Background(), conn)
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{a, c, 1, 0, true}
	data := random(3 << 20)
	for at := 0; at < len(data); at += chunk.MaxFrame {
		w.send(data[at:at+chunk.MaxFrame], durable)
	}
	w.acked(uint64(len(data)), uint64(len(data)))
	if err := w.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := w.failure(); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	var kept []mem.BufferSlice
	for range 200 { // far more than the network's bound
		_, p, err := rpc.ReadChunk(context.Background(), conn, &pb.ReadRequest{Chunk: 1, Length: 3 << 20, Cluster: testCluster, Server: 5})
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, p)
		if len(kept) == 100 {
			c.mustRead(1, 0, data)
		}
	}
	for _, p := range kept {
		p.Free()
	}
}
