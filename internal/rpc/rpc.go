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
	"slices"
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

// Conn makes calls to one address.
type Conn = grpc.ClientConnInterface

// Pool keeps one connection to each address. The zero value is ready for use.
type Pool struct {
	mu     sync.Mutex
	conns  map[string]*conn
	closed bool
}

// ErrClosed is what a closed Pool answers.
var ErrClosed = errors.New("rpc: the connections are closed")

// Get returns the connection to an address, making it if there is none.
func (p *Pool) Get(address string) (Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	if c := p.conns[address]; c != nil {
		return c, nil
	}
	if p.conns == nil {
		p.conns = map[string]*conn{}
	}
	c := &conn{address: address}
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

// Server accepts the calls of one port, from the network and from this process.
type Server struct {
	*grpc.Server
	listener net.Listener
	log      *slog.Logger
	unary    grpc.UnaryServerInterceptor
	stream   grpc.StreamServerInterceptor
	methods  map[string]method // by full name; not changed once it serves
	direct   map[string]bool   // see Direct

	mu     sync.Mutex // orders the start of local calls against Close
	ctx    context.Context
	cancel context.CancelFunc
	calls  sync.WaitGroup // local ones
}

// Interceptors see every call of a server, wherever it comes from. Either may be nil.
type Interceptors struct {
	Unary  grpc.UnaryServerInterceptor
	Stream grpc.StreamServerInterceptor
}

// NewServer listens on host:port (port 0: any free one). Services are registered on it, then Serve answers. log gets a
// line for each handler that panicked.
func NewServer(address string, log *slog.Logger, interceptors ...Interceptors) (*Server, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	s := &Server{listener: l, log: log, methods: map[string]method{}, direct: map[string]bool{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.unary, s.stream = chain(log, interceptors)
	s.Server = grpc.NewServer(
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
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)
	return s, nil
}

// chain puts the interceptors around a handler, the first outermost, and the guard against panics around all.
func chain(log *slog.Logger, list []Interceptors) (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (_ any, err error) {
		defer caught(log, info.FullMethod, &err)
		for _, i := range slices.Backward(list) {
			if inner := h; i.Unary != nil {
				h = func(ctx context.Context, req any) (any, error) { return i.Unary(ctx, req, info, inner) }
			}
		}
		return h(ctx, req)
	}
	stream := func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) (err error) {
		defer caught(log, info.FullMethod, &err)
		for _, i := range slices.Backward(list) {
			if inner := h; i.Stream != nil {
				h = func(srv any, s grpc.ServerStream) error { return i.Stream(srv, s, info, inner) }
			}
		}
		return h(srv, s)
	}
	return unary, stream
}

// Address is where the server listens, with the port that it got.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Serve answers calls until Close; it returns nil then.
func (s *Server) Serve() error {
	s.mu.Lock()
	if s.ctx.Err() == nil {
		locals.Lock()
		locals.byAddress[s.Address()] = s
		locals.Unlock()
	}
	s.mu.Unlock()
	if err := s.Server.Serve(s.listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", s.Address(), err)
	}
	return nil
}

// Close stops listening, ends every call at once and waits for the handlers. It also releases the port of a server that
// never served.
func (s *Server) Close() {
	s.closeLocal(10 * time.Second)
	s.Stop()
	_ = s.listener.Close() // closed already if it served
}

// caught turns a panic of a handler into an error of that one call.
func caught(log *slog.Logger, method string, err *error) {
	if r := recover(); r != nil {
		log.Error("a request handler panicked; this is a bug, please report it", "method", method, "panic", r, "stack", string(debug.Stack()))
		*err = status.Errorf(codes.Internal, "%s: internal error", method)
	}
}
