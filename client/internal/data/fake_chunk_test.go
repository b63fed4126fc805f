package data

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// fakeServer is a chunk server in memory behind real gRPC that fails on command.
type fakeServer struct {
	id  chunk.ServerID
	rpc *rpc.Server

	mu         sync.Mutex
	cond       *sync.Cond
	chunks     map[chunk.ID][]byte
	synced     map[chunk.ID]int // bytes of them that survive a loss of power
	streams    map[*chunk.ID]context.CancelFunc
	boots      int  // how often it lost power: streams of before are over
	failAfter  int  // frames, then every append fails; -1: never
	stall      bool // acknowledge nothing
	stallRead  bool
	stallSync  bool // acknowledge what is to be on disk as received only
	stallFirst bool // never answer the first frame of a chunk
	full       bool
	rotten     map[chunk.ID]bool // chunks that it finds damaged when more is appended
	down       bool              // every call fails
	corrupt    bool              // replies do not match their checksums
	amnesia    bool              // no chunk is found
	partial    bool              // acknowledge a part of a frame first
	frames     int
	syncs      int
	reads      int
	stalled    int // reads that had to wait
	readBytes  int
}

// fault is what can be wrong with a fakeServer.
func (s *fakeServer) set(fn func(*fakeServer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(s)
	s.cond.Broadcast()
}

func (s *fakeServer) heal() {
	s.set(func(s *fakeServer) {
		s.failAfter, s.stall, s.stallRead, s.full, s.down, s.corrupt, s.amnesia, s.partial = -1, false, false, false, false, false, false, false
		s.stallSync, s.stallFirst = false, false
	})
}

// losePower forgets what was not synced, and ends all streams. With keep, some of it is there by chance, but for the end.
func (s *fakeServer) losePower(keep func(n int) int) {
	s.set(func(s *fakeServer) {
		s.boots++
		for id, b := range s.chunks {
			n := s.synced[id]
			if keep != nil {
				n += keep(len(b) - n)
			}
			if s.chunks[id] = b[:n:n]; n == 0 {
				delete(s.chunks, id)
			}
		}
		for _, cancel := range s.streams {
			cancel()
		}
	})
}

func startFakeServer(t testing.TB, id chunk.ServerID) *fakeServer {
	t.Helper()
	s := &fakeServer{id: id, failAfter: -1, chunks: map[chunk.ID][]byte{}, synced: map[chunk.ID]int{}, streams: map[*chunk.ID]context.CancelFunc{}}
	s.cond = sync.NewCond(&s.mu)
	var err error
	if s.rpc, err = rpc.NewServer("127.0.0.1:0", slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	rpc.RegisterChunk(s.rpc, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.rpc.Serve(); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		s.heal()
		s.rpc.Close()
		<-done
	})
	return s
}

// address goes over the network: rpc would serve the listener's own address within the process.
func (s *fakeServer) address() string {
	return strings.Replace(s.rpc.Address(), "127.0.0.1", "localhost", 1)
}

var errDown = status.Error(codes.Unavailable, "the fake server is down")

func (s *fakeServer) Append(stream rpc.AppendStream) error {
	var id chunk.ID
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	var boots int
	s.set(func(s *fakeServer) {
		boots = s.boots
		s.streams[&id] = cancel
	})
	defer s.set(func(s *fakeServer) { delete(s.streams, &id) })
	stop := context.AfterFunc(ctx, func() { s.set(func(*fakeServer) {}) })
	defer stop()
	type received struct {
		head    *pb.AppendHeader
		payload mem.BufferSlice
		err     error
	}
	in := make(chan received)
	go func() { // the end of the call ends it
		for {
			head, payload, err := stream.Recv()
			select {
			case in <- received{head, payload, err}:
			case <-ctx.Done():
				payload.Free()
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for first := true; ; first = false {
		var r received
		select {
		case r = <-in:
		case <-ctx.Done():
			return errDown
		}
		head, payload := r.head, r.payload
		if errors.Is(r.err, io.EOF) {
			return nil
		}
		if r.err != nil {
			return r.err
		}
		replies, err := s.appendFrame(ctx, head, payload, first, &id, boots)
		payload.Free()
		if err != nil {
			return err
		}
		for _, r := range replies {
			if err := stream.Send(r); err != nil {
				return err
			}
		}
		if head.Durable {
			r, err := s.sync(ctx, id, boots)
			if err != nil {
				return err
			}
			if err := stream.Send(r); err != nil {
				return err
			}
		}
		if head.Seal {
			return nil
		}
	}
}

func (s *fakeServer) appendFrame(ctx context.Context, head *pb.AppendHeader, payload mem.BufferSlice, first bool, id *chunk.ID, boots int) ([]*pb.AppendReply, error) {
	if rpc.Mismatch(payload, head.Checksums) >= 0 {
		return nil, status.Error(codes.Aborted, "wrong checksum on arrival")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.boots != boots {
		return nil, errDown
	}
	if first {
		*id = chunk.ID(head.Chunk)
		if chunk.ServerID(head.Server) != s.id || len(head.Cluster) != 16 || head.Session == 0 {
			return nil, rpc.Error(rpc.WrongCluster, "not for this server")
		}
		if _, there := s.chunks[*id]; there {
			return nil, status.Error(codes.AlreadyExists, "the chunk exists")
		}
	}
	if s.down {
		return nil, errDown
	}
	if s.failAfter == 0 {
		return nil, status.Error(codes.Internal, "failed as told")
	}
	if s.failAfter > 0 && payload.Len() > 0 {
		s.failAfter--
	}
	if s.rotten[*id] {
		return nil, rpc.Error(rpc.ChunkCorrupt, "damaged")
	}
	if s.full {
		return nil, rpc.Error(rpc.DiskFull, "no space")
	}
	was := uint64(len(s.chunks[*id]))
	if head.Offset != was || chunk.ID(head.Chunk) != *id {
		return nil, status.Errorf(codes.InvalidArgument, "append at %d, length %d", head.Offset, was)
	}
	if payload.Len() > 0 {
		s.frames++
		b := s.chunks[*id]
		for _, p := range payload {
			b = append(b, p.ReadOnlyData()...)
		}
		s.chunks[*id] = b
	}
	for (s.stall || s.stallFirst && was == 0) && ctx.Err() == nil {
		s.cond.Wait()
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	n := uint64(len(s.chunks[*id]))
	var out []*pb.AppendReply
	if s.partial && n > was {
		out = append(out, &pb.AppendReply{Length: was + (n-was)/2})
	}
	if !head.Durable || s.stallSync {
		out = append(out, &pb.AppendReply{Length: n, Durable: uint64(s.synced[*id])})
	}
	return out, nil
}

// sync brings a chunk to the disk.
func (s *fakeServer) sync(ctx context.Context, id chunk.ID, boots int) (*pb.AppendReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.stallSync && ctx.Err() == nil {
		s.cond.Wait()
	}
	if s.boots != boots || ctx.Err() != nil {
		return nil, errDown
	}
	n := len(s.chunks[id])
	s.syncs++
	s.synced[id] = n
	return &pb.AppendReply{Length: uint64(n), Durable: uint64(n)}, nil
}

func (s *fakeServer) Read(ctx context.Context, req *pb.ReadRequest) (*pb.ReadHeader, mem.BufferSlice, error) {
	stop := context.AfterFunc(ctx, func() { s.set(func(*fakeServer) {}) })
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stallRead && ctx.Err() == nil { // or the client has left already
		s.stalled++
	}
	for s.stallRead && ctx.Err() == nil {
		s.cond.Wait()
	}
	s.reads++
	s.readBytes += int(req.Length)
	b, there := s.chunks[chunk.ID(req.Chunk)]
	switch {
	case ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case s.down:
		return nil, nil, errDown
	case chunk.ServerID(req.Server) != s.id || len(req.Cluster) != 16:
		return nil, nil, rpc.Error(rpc.WrongCluster, "not for this server")
	case s.amnesia || !there:
		return nil, nil, rpc.Error(rpc.ChunkNotFound, fmt.Sprintf("chunk %v", chunk.ID(req.Chunk)))
	case req.Length == 0 || req.Length > chunk.MaxRead || req.Offset+uint64(req.Length) > uint64(len(b)):
		return nil, nil, rpc.Error(rpc.ChunkCorrupt, fmt.Sprintf("chunk %v has %d bytes, asked for %d at %d", chunk.ID(req.Chunk), len(b), req.Length, req.Offset))
	}
	data := append([]byte(nil), b[req.Offset:req.Offset+uint64(req.Length)]...)
	head := &pb.ReadHeader{Checksums: chunk.Checksums(nil, data)}
	if s.corrupt {
		data[len(data)/2] ^= 0x10
	}
	return head, mem.BufferSlice{mem.SliceBuffer(data)}, nil
}
