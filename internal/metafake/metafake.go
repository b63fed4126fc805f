// Package metafake is a metaserver that says what a test wants it to say, for tests of those who ask. It lets clients in and
// has an empty root directory; nothing is kept.
package metafake

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Server is a metaserver, the only one of its cluster. What is left nil answers codes.Unimplemented, as one does that is older
// than the call. The functions are set before the first call that needs them, and may be called from several goroutines.
type Server struct {
	pb.UnimplementedMetaServer
	address string

	OnStatus func() *pb.StatusReply // Servers answers with its servers
	OnManage func(*pb.ManageServerRequest) (*pb.ManageServerReply, error)
	OnScrub  func(*pb.ScrubRequest) (*pb.ScrubReply, error)
	OnFsck   func(*pb.FsckRequest, grpc.ServerStreamingServer[pb.FsckReply]) error
	OnMutate func(*pb.MutateRequest) *pb.Result // nil: everything is done

	mu   sync.Mutex
	root *pb.Attr
}

// Start runs one until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{root: &pb.Attr{Inode: posix.RootInode, Mode: syscall.S_IFDIR | 0o777, Nlink: 2, Parent: posix.RootInode, Version: 1}}
	srv, err := rpc.NewServer("127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.address = srv.Address()
	pb.RegisterMetaServer(srv, s)
	done := make(chan error, 1)
	go func() { done <- srv.Serve() }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// Address is where it listens.
func (s *Server) Address() string { return s.address }

// SetRootLayout gives the root directory a policy.
func (s *Server) SetRootLayout(l *pb.Layout) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.root.Layout = l
}

// Mutate implements pb.MetaServer.
func (s *Server) Mutate(_ context.Context, req *pb.MutateRequest) (*pb.Result, error) {
	if req.Op.GetOpenSession() != nil {
		return &pb.Result{Session: 1, Cluster: make([]byte, 16)}, nil
	}
	if s.OnMutate != nil {
		return s.OnMutate(req), nil
	}
	return &pb.Result{}, nil
}

// Session implements pb.MetaServer: it grants whatever lease is asked for.
func (s *Server) Session(stream pb.Meta_SessionServer) error {
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&pb.SessionPush{Pong: m.Ping, LeaseMs: uint32(time.Minute.Milliseconds()), SessionMs: uint32(time.Minute.Milliseconds())}); err != nil {
			return err
		}
	}
}

// GetAttr implements pb.MetaServer.
func (s *Server) GetAttr(_ context.Context, req *pb.GetAttrRequest) (*pb.GetAttrReply, error) {
	if req.Inode != posix.RootInode {
		return nil, rpc.ToStatus(syscall.ENOENT)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &pb.GetAttrReply{Attr: s.root}, nil
}

// Lookup implements pb.MetaServer: there is nothing.
func (s *Server) Lookup(context.Context, *pb.LookupRequest) (*pb.LookupReply, error) {
	return &pb.LookupReply{}, nil
}

// Status implements pb.MetaServer.
func (s *Server) Status(context.Context, *pb.StatusRequest) (*pb.StatusReply, error) {
	if s.OnStatus == nil {
		return &pb.StatusReply{Space: &pb.StatFSReply{}}, nil
	}
	return s.OnStatus(), nil
}

// Servers implements pb.MetaServer.
func (s *Server) Servers(ctx context.Context, _ *pb.ServersRequest) (*pb.ServersReply, error) {
	st, err := s.Status(ctx, nil)
	return &pb.ServersReply{Servers: st.GetServers()}, err
}

// ManageServer implements pb.MetaServer.
func (s *Server) ManageServer(ctx context.Context, req *pb.ManageServerRequest) (*pb.ManageServerReply, error) {
	if s.OnManage == nil {
		return s.UnimplementedMetaServer.ManageServer(ctx, req)
	}
	return s.OnManage(req)
}

// Scrub implements pb.MetaServer.
func (s *Server) Scrub(ctx context.Context, req *pb.ScrubRequest) (*pb.ScrubReply, error) {
	if s.OnScrub == nil {
		return s.UnimplementedMetaServer.Scrub(ctx, req)
	}
	return s.OnScrub(req)
}

// Fsck implements pb.MetaServer.
func (s *Server) Fsck(req *pb.FsckRequest, stream grpc.ServerStreamingServer[pb.FsckReply]) error {
	if s.OnFsck == nil {
		return s.UnimplementedMetaServer.Fsck(req, stream)
	}
	return s.OnFsck(req, stream)
}
