// Package rpc is how shoalfs' parts reach each other: every connection is made by Dial and accepted by Server, so that
// message sizes, keepalives, the zero-copy codec, panics and (in time) TLS and tokens are settled in one place.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

const (
	// MaxMessage bounds every message, in bytes: the largest payload with its header and room to spare.
	MaxMessage = 8 << 20
	window     = 8 << 20 // HTTP/2 flow control of a stream and of a connection, bytes
	readBuffer = 128 << 10
	sendBuffer = 1 << 20

	keepaliveIdle    = 5 * time.Second
	keepaliveTimeout = 5 * time.Second
)

// Dial makes a connection to host:port. It returns at once; the connection is made, and made again after it broke, in the
// background, at most a second apart.
func Dial(address string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	base := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec()), grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		experimental.WithBufferPool(buffers),
		grpc.WithReadBufferSize(readBuffer),
		grpc.WithWriteBufferSize(sendBuffer),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 2 * keepaliveIdle, Timeout: keepaliveTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
	}
	// passthrough: no resolver between us and an address that is host:port already.
	conn, err := grpc.NewClient("passthrough:///"+address, append(base, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	return conn, nil
}

// Pool keeps one connection to each address.
type Pool struct {
	mu     sync.Mutex
	conns  map[string]*grpc.ClientConn
	closed bool
}

// ErrClosed is what a closed Pool answers.
var ErrClosed = errors.New("rpc: the connections are closed")

// Get returns the connection to an address, making it if there is none.
func (p *Pool) Get(address string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	if c := p.conns[address]; c != nil {
		return c, nil
	}
	c, err := Dial(address)
	if err != nil {
		return nil, err
	}
	if p.conns == nil {
		p.conns = map[string]*grpc.ClientConn{}
	}
	p.conns[address] = c
	return c, nil
}

// Close closes every connection; calls in flight fail.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var err error
	for _, c := range p.conns {
		err = errors.Join(err, c.Close())
	}
	p.conns = nil
	return err
}

// Server accepts the gRPC calls of one port.
type Server struct {
	*grpc.Server
	listener net.Listener
}

// NewServer listens on host:port (port 0: any free one). Handlers are registered on the embedded grpc.Server, then Serve
// answers. log gets a line for each handler that panicked.
func NewServer(address string, log *slog.Logger, opts ...grpc.ServerOption) (*Server, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	base := []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		experimental.BufferPool(buffers),
		grpc.ReadBufferSize(readBuffer),
		grpc.WriteBufferSize(sendBuffer),
		grpc.MaxConcurrentStreams(4096),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * keepaliveIdle, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveIdle, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (_ any, err error) {
			defer caught(log, info.FullMethod, &err)
			return h(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) (err error) {
			defer caught(log, info.FullMethod, &err)
			return h(srv, s)
		}),
	}
	return &Server{Server: grpc.NewServer(append(base, opts...)...), listener: l}, nil
}

// Address is where the server listens, with the port that it got.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Serve answers calls until Stop; it returns nil then.
func (s *Server) Serve() error {
	if err := s.Server.Serve(s.listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", s.Address(), err)
	}
	return nil
}

// Close stops listening and ends every call at once. It also releases the port of a server that never served.
func (s *Server) Close() {
	s.Server.Stop()
	_ = s.listener.Close() // closed already if it served
}

// caught turns a panic of a handler into an error of that one call.
func caught(log *slog.Logger, method string, err *error) {
	if r := recover(); r != nil {
		log.Error("a request handler panicked; this is a bug, please report it", "method", method, "panic", r, "stack", string(debug.Stack()))
		*err = status.Errorf(codes.Internal, "%s: internal error", method)
	}
}
