package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo keeps what is appended and serves it back; it can be told to damage what it serves.
type echo struct {
	data    []byte
	damage  bool
	explode bool
}

func (e *echo) Append(s AppendStream) error {
	for {
		head, payload, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if i := Mismatch(payload, head.Checksums); i >= 0 {
			payload.Free()
			return Error(ChunkCorrupt, "damaged on the way")
		}
		e.data = append(e.data, payload.Materialize()...)
		payload.Free()
		if err := s.Send(&pb.AppendReply{Length: uint64(len(e.data))}); err != nil {
			return err
		}
	}
}

func (e *echo) Read(_ context.Context, r *pb.ReadRequest) (*pb.ReadHeader, mem.BufferSlice, error) {
	if e.explode {
		panic("on purpose")
	}
	b := bytes.Clone(e.data[r.Offset : r.Offset+uint64(r.Length)])
	head := &pb.ReadHeader{Checksums: chunk.Checksums(nil, b)}
	if e.damage {
		b[len(b)/2] ^= 4
	}
	return head, mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// serve starts a server and returns the ways to it: over the network and within the process.
func serve(t testing.TB, h ChunkHandler, direct ...string) map[string]Conn {
	t.Helper()
	s, err := NewServer("127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	RegisterChunk(s, h)
	s.Direct(direct...)
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	remote, err := Dial(s.Address())
	if err != nil {
		t.Fatal(err)
	}
	p := &Pool{}
	t.Cleanup(func() {
		if err := errors.Join(p.Close(), remote.Close()); err != nil {
			t.Error(err)
		}
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	local, err := p.Get(s.Address())
	if err != nil {
		t.Fatal(err)
	}
	return map[string]Conn{"network": remote, "local": local}
}

// bothWays runs a test over the network and within the process: callers must not see a difference.
func bothWays(t *testing.T, h func() ChunkHandler, test func(*testing.T, Conn)) {
	t.Helper()
	for _, way := range []string{"network", "local"} {
		t.Run(way, func(t *testing.T) { test(t, serve(t, h())[way]) })
	}
}

// allWays is bothWays, and in the caller's goroutine.
func allWays(t *testing.T, h func() ChunkHandler, test func(*testing.T, Conn)) {
	t.Helper()
	bothWays(t, h, test)
	t.Run("direct", func(t *testing.T) { test(t, serve(t, h(), readMethod)["local"]) })
}

func TestChunkPayloadsArriveWhole(t *testing.T) {
	allWays(t, func() ChunkHandler { return &echo{} }, testPayloads)
}

func testPayloads(t *testing.T, conn Conn) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a, err := OpenAppend(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.NewChaCha8([32]byte{1})
	var want []byte
	for _, size := range []int{1, 0, chunk.ChecksumBlock, chunk.ChecksumBlock + 1, chunk.MaxFrame} {
		b := make([]byte, size)
		_, _ = rnd.Read(b) // never fails
		want = append(want, b...)
		if err := a.Send(&pb.AppendHeader{Chunk: 7, Checksums: chunk.Checksums(nil, b)}, mem.BufferSlice{mem.SliceBuffer(b)}); err != nil {
			t.Fatal(err)
		}
		r, err := a.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if r.Length != uint64(len(want)) {
			t.Fatalf("acknowledged %d bytes of %d", r.Length, len(want))
		}
	}
	if err := a.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Recv(); err != io.EOF {
		t.Fatalf("after the last frame: %v, want EOF", err)
	}
	req := &pb.ReadRequest{Chunk: 7, Offset: 3, Length: uint32(len(want) - 5)}
	sums, got, err := ReadChunk(ctx, conn, req)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Free()
	if !slices.Equal(sums, chunk.Checksums(nil, want[3:len(want)-2])) {
		t.Fatal("the checksums are not those of the bytes")
	}
	if !bytes.Equal(got.Materialize(), want[3:len(want)-2]) {
		t.Fatal("read other bytes than were written")
	}
}

// TestKindOfAnyMessage: a kind arrives whatever bytes the message has.
func TestKindOfAnyMessage(t *testing.T) {
	if _, err := proto.Marshal(status.Convert(Error(ChunkCorrupt, "/data/\xff: gone")).Proto()); err != nil {
		t.Error(err)
	}
}

func TestDamageOnTheWayIsNoticed(t *testing.T) {
	allWays(t, func() ChunkHandler { return &echo{data: make([]byte, 1<<20), damage: true} }, testDamage)
}

func testDamage(t *testing.T, conn Conn) {
	if _, _, err := ReadChunk(t.Context(), conn, &pb.ReadRequest{Chunk: 1, Length: 1 << 20}); Kind(err) != ChunkCorrupt {
		t.Fatalf("a damaged reply: %v, want %v", err, ChunkCorrupt)
	}
	a, err := OpenAppend(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Send(&pb.AppendHeader{Checksums: []uint32{1}}, mem.BufferSlice{mem.SliceBuffer("damaged")}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Recv(); Kind(err) != ChunkCorrupt {
		t.Fatalf("a damaged frame: %v, want %v", err, ChunkCorrupt)
	}
}

func TestPanickingHandlerFailsItsCallOnly(t *testing.T) {
	e := &echo{data: []byte("still here"), explode: true}
	for way, conn := range serve(t, e) {
		e.explode = true
		req := &pb.ReadRequest{Length: 5}
		if _, _, err := ReadChunk(t.Context(), conn, req); err == nil {
			t.Fatalf("%s: a panic became an answer", way)
		}
		e.explode = false
		_, got, err := ReadChunk(t.Context(), conn, req)
		if err != nil {
			t.Fatalf("%s: %v", way, err)
		}
		got.Free()
	}
}

// stuck answers nothing until its context ends.
type stuck struct{ entered, left chan struct{} }

func (s *stuck) Append(a AppendStream) error {
	s.entered <- struct{}{}
	<-a.Context().Done()
	s.left <- struct{}{}
	return a.Context().Err()
}

func (s *stuck) Read(ctx context.Context, _ *pb.ReadRequest) (*pb.ReadHeader, mem.BufferSlice, error) {
	s.entered <- struct{}{}
	<-ctx.Done()
	s.left <- struct{}{}
	return nil, nil, ctx.Err()
}

func TestCancelledCallsEndAtBothEnds(t *testing.T) {
	s := &stuck{entered: make(chan struct{}, 1), left: make(chan struct{}, 1)}
	allWays(t, func() ChunkHandler { return s }, func(t *testing.T, conn Conn) {
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { _, _, err := ReadChunk(ctx, conn, &pb.ReadRequest{Length: 1}); result <- err }()
		<-s.entered
		cancel()
		if err := <-result; status.Code(err) != codes.Canceled {
			t.Errorf("a cancelled read: %v", err)
		}
		<-s.left

		ctx, cancel = context.WithCancel(t.Context())
		a, err := OpenAppend(ctx, conn)
		if err != nil {
			t.Fatal(err)
		}
		<-s.entered
		go func() { _, err := a.Recv(); result <- err }()
		cancel()
		if err := <-result; status.Code(err) != codes.Canceled {
			t.Errorf("a cancelled append: %v", err)
		}
		<-s.left
	})
}

func TestCallsToAClosedServerFailAsUnavailable(t *testing.T) {
	for _, way := range []string{"network", "local", "direct"} {
		t.Run(way, func(t *testing.T) {
			st := &stuck{entered: make(chan struct{}, 1), left: make(chan struct{}, 1)}
			s, err := NewServer("127.0.0.1:0", slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			RegisterChunk(s, st)
			if way == "direct" {
				s.Direct(readMethod)
			}
			served := make(chan error, 1)
			go func() { served <- s.Serve() }()
			var pool Pool
			conn, err := pool.Get(s.Address())
			if err != nil {
				t.Fatal(err)
			}
			if way == "network" {
				if conn, err = Dial(s.Address()); err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.(io.Closer).Close() }() // only fails when closed twice
			}
			defer func() { _ = pool.Close() }() // only fails when closed twice
			result := make(chan error, 1)
			go func() { _, _, err := ReadChunk(t.Context(), conn, &pb.ReadRequest{Length: 1}); result <- err }()
			<-st.entered
			s.Close()
			<-st.left
			if err := <-result; status.Code(err) != codes.Unavailable {
				t.Errorf("a call that the server's end cut off: %v", err)
			}
			if _, _, err := ReadChunk(t.Context(), conn, &pb.ReadRequest{Length: 1}); status.Code(err) != codes.Unavailable {
				t.Errorf("a call to a server that is gone: %v", err)
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestErrnoCrossesTheWire(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOENT, syscall.EACCES, syscall.ENOTEMPTY} {
		if got := FromStatus(ToStatus(errno)); !errors.Is(got, errno) {
			t.Errorf("%v came back as %v", errno, got)
		}
	}
	if d := Detail(ErrNotLeader("a:1")); d.GetKind() != NotLeader || d.GetLeader() != "a:1" {
		t.Errorf("the leader's address came back as %v", d)
	}
	if Kind(io.EOF) != pb.ErrorDetail_KIND_UNKNOWN || Kind(nil) != pb.ErrorDetail_KIND_UNKNOWN {
		t.Error("an error without detail has a kind")
	}
}

func FuzzFrame(f *testing.F) {
	whole, err := newCodec().Marshal(&Frame{Header: &pb.AppendHeader{Chunk: 1, Checksums: []uint32{2}}, Payload: mem.BufferSlice{mem.SliceBuffer("payload")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole.Materialize(), 3)
	f.Add([]byte{255, 255, 255, 255, 0}, 1)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		if cut < 0 || cut > len(b) {
			return
		}
		head := new(pb.AppendHeader)
		fr := Frame{Header: head}
		if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(b[:cut]), mem.SliceBuffer(b[cut:])}, &fr); err != nil {
			return
		}
		if fr.Payload.Len() > len(b)-4 {
			t.Fatalf("%d bytes of payload out of a frame of %d", fr.Payload.Len(), len(b))
		}
		fr.Free()
	})
}

func BenchmarkAppend1M(b *testing.B) {
	for way, conn := range serve(b, &discard{}) {
		b.Run(way, func(b *testing.B) { benchmarkAppend(b, conn) })
	}
}

func benchmarkAppend(b *testing.B, conn Conn) {
	a, err := OpenAppend(b.Context(), conn)
	if err != nil {
		b.Fatal(err)
	}
	payload := make([]byte, chunk.MaxFrame)
	sums := chunk.Checksums(nil, payload)
	b.SetBytes(chunk.MaxFrame)
	var before, after syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before) // only fails for a bad pointer
	b.ResetTimer()
	go func() {
		for range b.N {
			if a.Send(&pb.AppendHeader{Checksums: sums}, mem.BufferSlice{mem.SliceBuffer(payload)}) != nil {
				return // Recv says why
			}
		}
	}()
	for range b.N {
		if _, err := a.Recv(); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after) // only fails for a bad pointer
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/1e9/(float64(b.N)/1024), "cpu-s/GiB")
}

// discard acknowledges frames without looking at them.
type discard struct{ echo }

func (*discard) Append(s AppendStream) error {
	var n uint64
	for {
		_, payload, err := s.Recv()
		if err != nil {
			return nil
		}
		n += uint64(payload.Len())
		payload.Free()
		if err := s.Send(&pb.AppendReply{Length: n}); err != nil {
			return err
		}
	}
}

func BenchmarkRead4K(b *testing.B) {
	e := &echo{data: make([]byte, 1<<20)}
	for way, conn := range serve(b, e) {
		b.Run(way, func(b *testing.B) {
			for b.Loop() {
				_, p, err := ReadChunk(b.Context(), conn, &pb.ReadRequest{Length: 4096})
				if err != nil {
					b.Fatal(err)
				}
				p.Free()
			}
		})
	}
}

// deaf answers when it is released, whatever its context says.
type deaf struct {
	stuck
	release chan struct{}
}

func (d *deaf) Read(context.Context, *pb.ReadRequest) (*pb.ReadHeader, mem.BufferSlice, error) {
	d.entered <- struct{}{}
	<-d.release
	return nil, nil, errors.New("released")
}

// TestDirectContextEndsWithItsHandler: whoever kept the context and asks for its end only then need not wait.
func TestDirectContextEndsWithItsHandler(t *testing.T) {
	for _, early := range []bool{false, true} {
		s := &Server{}
		s.ctx, s.cancel = context.WithCancel(context.Background())
		d := &directContext{s: s, caller: t.Context()}
		if early {
			_ = d.Done()
		}
		if d.Err() != nil {
			t.Error("ended before its handler")
		}
		d.end()
		<-d.Done()
		if d.Err() == nil {
			t.Error("ended without an error")
		}
		s.cancel()
	}
}

func TestCallersGetAwayFromDeafHandlers(t *testing.T) {
	d := &deaf{stuck: stuck{entered: make(chan struct{}, 1)}, release: make(chan struct{})}
	bothWays(t, func() ChunkHandler { return d }, func(t *testing.T, conn Conn) {
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { _, _, err := ReadChunk(ctx, conn, &pb.ReadRequest{Length: 1}); result <- err }()
		<-d.entered
		cancel()
		if err := <-result; status.Code(err) != codes.Canceled {
			t.Errorf("a cancelled read: %v", err)
		}
		d.release <- struct{}{} // the server waits for its handlers when it is closed
	})
}
