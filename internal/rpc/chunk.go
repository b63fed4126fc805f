package rpc

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// The Chunk service is declared by hand: its messages are Frames, which protoc's plugin does not know.
const (
	chunkService = "shoal.v1.Chunk"
	appendMethod = "/" + chunkService + "/Append"
	readMethod   = "/" + chunkService + "/Read"
)

// ChunkHandler is what a chunk server does.
type ChunkHandler interface {
	// Append takes frames until the stream ends. See AppendStream for who owns a payload.
	Append(AppendStream) error
	// Read returns header and payload; the payload is released once it is sent.
	Read(context.Context, *pb.ReadRequest) (*pb.ReadHeader, mem.BufferSlice, error)
}

// AppendStream is the server's end of an Append call. One goroutine may Recv while another Sends.
type AppendStream interface {
	Context() context.Context
	// Recv returns the next frame, whose payload the caller frees; io.EOF when the client closed its end.
	Recv() (*pb.AppendHeader, mem.BufferSlice, error)
	Send(*pb.AppendReply) error
}

// RegisterChunk makes the server answer the Chunk service with h.
func RegisterChunk(s grpc.ServiceRegistrar, h ChunkHandler) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: chunkService,
		HandlerType: (*ChunkHandler)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Read", Handler: handleRead}},
		Streams: []grpc.StreamDesc{{StreamName: "Append", ServerStreams: true, ClientStreams: true,
			Handler: func(srv any, s grpc.ServerStream) error { return srv.(ChunkHandler).Append(appendServer{s}) }}},
	}, h)
}

func handleRead(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	req := new(pb.ReadRequest)
	if err := dec(req); err != nil {
		return nil, err
	}
	handler := func(ctx context.Context, req any) (any, error) {
		head, payload, err := srv.(ChunkHandler).Read(ctx, req.(*pb.ReadRequest))
		if err != nil {
			return nil, err
		}
		return &sentFrame{Frame{Header: head, Payload: payload}}, nil
	}
	if interceptor == nil {
		return handler(ctx, req)
	}
	return interceptor(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: readMethod}, handler)
}

// sentFrame is a Frame that gives its own reference up when it is encoded: gRPC does not tell a handler when its reply
// went out.
type sentFrame struct{ Frame }

type appendServer struct{ grpc.ServerStream }

func (s appendServer) Recv() (*pb.AppendHeader, mem.BufferSlice, error) {
	head := new(pb.AppendHeader)
	f := Frame{Header: head}
	if err := s.RecvMsg(&f); err != nil {
		return nil, nil, err
	}
	return head, f.Payload, nil
}

func (s appendServer) Send(r *pb.AppendReply) error { return s.SendMsg(r) }

// AppendClient is the client's end of an Append call. One goroutine may Send while another Recvs.
type AppendClient struct{ s grpc.ClientStream }

// OpenAppend starts an Append call, which lives until ctx ends or the server closes it.
func OpenAppend(ctx context.Context, conn Conn) (AppendClient, error) {
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, appendMethod)
	return AppendClient{s}, err
}

// Send hands a frame to the stream. It takes a reference of its own on the payload. io.EOF means that the server ended the
// call: Recv says why.
func (a AppendClient) Send(head *pb.AppendHeader, payload mem.BufferSlice) error {
	return a.s.SendMsg(&Frame{Header: head, Payload: payload})
}

// CloseSend says that no frame will follow.
func (a AppendClient) CloseSend() error { return a.s.CloseSend() }

// Recv returns the next acknowledgement.
func (a AppendClient) Recv() (*pb.AppendReply, error) {
	r := new(pb.AppendReply)
	return r, a.s.RecvMsg(r)
}

// ReadChunk asks a chunk server for a range and checks what comes against its checksums, one for each 64 KiB from the range's
// start, which it returns too. The caller frees the payload.
func ReadChunk(ctx context.Context, conn Conn, req *pb.ReadRequest) ([]uint32, mem.BufferSlice, error) {
	head := new(pb.ReadHeader)
	f := Frame{Header: head}
	if err := conn.Invoke(ctx, readMethod, req, &f); err != nil {
		return nil, nil, err
	}
	if err := verify(req, head, f.Payload); err != nil {
		f.Free()
		return nil, nil, err
	}
	return head.Checksums, f.Payload, nil
}

func verify(req *pb.ReadRequest, head *pb.ReadHeader, payload mem.BufferSlice) error {
	if n := payload.Len(); n != int(req.Length) || len(head.Checksums) != chunk.Blocks(n) {
		return Error(ChunkCorrupt, fmt.Sprintf("chunk %v: asked for %d bytes, got %d and %d checksums", chunk.ID(req.Chunk), req.Length, n, len(head.Checksums)))
	}
	if i := Mismatch(payload, head.Checksums); i >= 0 {
		return Error(ChunkCorrupt, fmt.Sprintf("chunk %v: wrong checksum at %d", chunk.ID(req.Chunk), req.Offset+uint64(i)*chunk.ChecksumBlock))
	}
	return nil
}

// Mismatch returns the number of the first checksum block of the payload that does not have the checksum claimed for it,
// or -1 when all match. A claim of the wrong length is a mismatch.
func Mismatch(payload mem.BufferSlice, claimed []uint32) int {
	var s chunk.Summer
	for _, b := range payload {
		_, _ = s.Write(b.ReadOnlyData()) // never fails
	}
	sums := s.Sums()
	for i := range max(len(sums), len(claimed)) {
		if i >= len(sums) || i >= len(claimed) || sums[i] != claimed[i] {
			return i
		}
	}
	return -1
}
