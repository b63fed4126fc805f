package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// A whole cluster may run in one process. Calls between its parts then go from caller to handler directly: messages are
// copied unless both ends are known not to change them, payloads are handed over by reference. Errors, deadlines, cancellation and
// interceptors are those of the network. docs/decisions/001-local-calls.md says why.

// locals are the servers of this process by the address they listen on.
var locals = struct {
	sync.RWMutex
	byAddress map[string]*Server
}{byAddress: map[string]*Server{}}

func localServer(address string) *Server {
	locals.RLock()
	defer locals.RUnlock()
	return locals.byAddress[address]
}

// localDepth is how many messages a local stream holds in each direction before its sender waits.
const localDepth = 16

// conn reaches an address: directly while a server of this process listens there, over the network otherwise.
type conn struct {
	address string

	mu     sync.Mutex
	remote *grpc.ClientConn // made when first needed
	closed bool
}

func (c *conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if s := localServer(c.address); s != nil && s.has(method) {
		return s.invoke(ctx, method, args, reply)
	}
	r, err := c.network()
	if err != nil {
		return err
	}
	return r.Invoke(ctx, method, args, reply, opts...)
}

func (c *conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if s := localServer(c.address); s != nil && s.has(method) {
		return s.newStream(ctx, method)
	}
	r, err := c.network()
	if err != nil {
		return nil, err
	}
	return r.NewStream(ctx, desc, method, opts...)
}

func (c *conn) network() (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if c.remote == nil {
		r, err := Dial(c.address)
		if err != nil {
			return nil, err
		}
		c.remote = r
	}
	return c.remote, nil
}

func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.remote == nil {
		return nil
	}
	return c.remote.Close()
}

// ResetConnectBackoff makes a connection that waits before it tries again try at once.
func (c *conn) ResetConnectBackoff() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.remote != nil {
		c.remote.ResetConnectBackoff()
	}
}

// method is a registered handler: one of the two descriptions is set.
type method struct {
	impl   any
	unary  *grpc.MethodDesc
	stream *grpc.StreamDesc
}

// RegisterService makes the server answer the calls of a service, from this process and from others.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, impl any) {
	s.Server.RegisterService(desc, impl)
	for i := range desc.Methods {
		m := &desc.Methods[i]
		s.methods["/"+desc.ServiceName+"/"+m.MethodName] = method{impl: impl, unary: m}
	}
	for i := range desc.Streams {
		m := &desc.Streams[i]
		s.methods["/"+desc.ServiceName+"/"+m.StreamName] = method{impl: impl, stream: m}
	}
}

func (s *Server) has(name string) bool {
	_, ok := s.methods[name]
	return ok
}

// enter counts a local call in, unless the server is closed; leave counts it out.
func (s *Server) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return status.Error(codes.Unavailable, "the server is closed")
	}
	s.calls.Add(1)
	return nil
}

// callContext is the context of a local handler: it ends with the caller's and with the server, and shows nothing of the
// caller's values, as the network would not.
func (s *Server) callContext(caller context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(s.ctx)
	stop := context.AfterFunc(caller, cancel)
	return ctx, func() { stop(); cancel() }
}

// Direct names unary methods whose handlers return as soon as their context ends, and neither change their request nor keep it
// after they returned. Local calls of them run in the caller's goroutine, with the caller's request. To be called before
// Serve.
func (s *Server) Direct(fullMethods ...string) {
	for _, name := range fullMethods {
		s.direct[name] = true
	}
}

func (s *Server) invoke(ctx context.Context, name string, args, reply any) error {
	if err := ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	if err := s.enter(); err != nil {
		return err
	}
	if s.direct[name] {
		return s.invokeDirect(ctx, name, args, reply)
	}
	return s.invokeAside(ctx, name, args, reply)
}

func (s *Server) invokeDirect(ctx context.Context, name string, args, reply any) error {
	defer s.calls.Done()
	hctx := &directContext{s: s, caller: ctx}
	defer hctx.end()
	m := s.methods[name]
	out, err := m.unary.Handler(m.impl, hctx, func(v any) error { return shareMessage(v, args) }, s.unary)
	return s.answer(ctx, reply, out, err)
}

// invokeAside runs the handler in a goroutine of its own: a caller that gives up must get away even from a handler that does
// not look at its context.
func (s *Server) invokeAside(ctx context.Context, name string, args, reply any) error {
	type answer struct {
		reply any
		err   error
	}
	done := make(chan answer, 1)
	hctx, cancel := s.callContext(ctx)
	go func() {
		defer s.calls.Done()
		defer cancel()
		m := s.methods[name]
		out, err := m.unary.Handler(m.impl, hctx, func(v any) error { return copyMessage(v, args) }, s.unary)
		done <- answer{out, err}
	}()
	select {
	case a := <-done:
		return s.answer(ctx, reply, a.reply, a.err)
	case <-ctx.Done():
		go func() { free((<-done).reply) }()
		return status.FromContextError(ctx.Err()).Err()
	}
}

// answer is what the caller gets of what the handler returned.
func (s *Server) answer(ctx context.Context, to, from any, err error) error {
	switch cause := ctx.Err(); {
	case err == nil:
		return takeMessage(to, from)
	case cause != nil:
		return status.FromContextError(cause).Err()
	}
	return s.toStatus(err)
}

// directContext is the context of a handler that runs in its caller's goroutine: like that of callContext, but it costs
// nothing until somebody waits for its end.
type directContext struct {
	s      *Server
	caller context.Context

	mu     sync.Mutex
	ctx    context.Context // nil until needed
	cancel context.CancelFunc
}

// over is the context of a handler that has returned.
var over = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func (d *directContext) Deadline() (time.Time, bool) { return d.caller.Deadline() }
func (d *directContext) Value(any) any               { return nil }

func (d *directContext) Err() error {
	d.mu.Lock()
	ctx := d.ctx
	d.mu.Unlock()
	switch {
	case ctx != nil:
		return ctx.Err()
	case d.s.ctx.Err() != nil:
		return context.Canceled
	}
	return d.caller.Err()
}

func (d *directContext) Done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx == nil {
		d.ctx, d.cancel = d.s.callContext(d.caller)
	}
	return d.ctx.Done()
}

// end is called when the handler has returned: whoever still waits stops waiting.
func (d *directContext) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cancel != nil {
		d.cancel()
	} else {
		d.ctx = over
	}
}

// toStatus is what gRPC makes of a handler's error.
func (s *Server) toStatus(err error) error {
	if st, ok := status.FromError(err); ok {
		if s.ctx.Err() != nil && (st.Code() == codes.Canceled || st.Code() == codes.Unknown) {
			return status.Error(codes.Unavailable, "the server was closed")
		}
		return st.Err()
	}
	if s.ctx.Err() != nil {
		return status.Error(codes.Unavailable, "the server was closed")
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Unknown, err.Error())
}

// takeMessage gives a handler's answer to the caller. Those that are asked for all the time are not copied: their handlers
// make them for this one caller, and keep nothing of them.
func takeMessage(to, from any) error {
	switch from.(type) {
	case *pb.Result, *pb.LookupReply, *pb.GetAttrReply, *pb.ExtentsReply, *pb.ReadDirReply:
		if reflect.TypeOf(to) == reflect.TypeOf(from) {
			reflect.ValueOf(to).Elem().Set(reflect.ValueOf(from).Elem())
			return nil
		}
	}
	return copyMessage(to, from)
}

// shareMessage gives a handler the caller's request.
func shareMessage(to, from any) error {
	if reflect.TypeOf(to) != reflect.TypeOf(from) {
		return copyMessage(to, from)
	}
	reflect.ValueOf(to).Elem().Set(reflect.ValueOf(from).Elem())
	return nil
}

// copyMessage moves a message from one part to the other: protobuf is copied, a payload changes hands.
func copyMessage(to, from any) error {
	switch from := from.(type) {
	case *sentFrame:
		f, ok := to.(*Frame)
		if !ok {
			from.Free()
			return fmt.Errorf("rpc: a frame arrived where %T was expected", to)
		}
		f.Payload = from.Payload // the handler's reference becomes the caller's
		return copyMessage(f.Header, from.Header)
	case *Frame:
		f, ok := to.(*Frame)
		if !ok {
			from.Free()
			return fmt.Errorf("rpc: a frame arrived where %T was expected", to)
		}
		f.Payload = from.Payload
		return copyMessage(f.Header, from.Header)
	case proto.Message:
		m, ok := to.(proto.Message)
		if !ok || m.ProtoReflect().Descriptor() != from.ProtoReflect().Descriptor() {
			return fmt.Errorf("rpc: %T arrived where %T was expected", from, to)
		}
		proto.Reset(m)
		proto.Merge(m, from)
		return nil
	}
	return fmt.Errorf("rpc: %T is no message", from)
}

// outgoing is a message on its way through a local stream: a copy that the receiver alone owns.
func outgoing(m any) (any, error) {
	switch m := m.(type) {
	case *Frame:
		m.Payload.Ref()
		return &Frame{Header: proto.Clone(m.Header), Payload: slices.Clone(m.Payload)}, nil
	case proto.Message:
		return proto.Clone(m), nil
	}
	return nil, fmt.Errorf("rpc: %T is no message", m)
}

// incoming gives a message that outgoing made to its receiver.
func incoming(to, from any) error {
	if f, ok := from.(*Frame); ok {
		if t, ok := to.(*Frame); ok && reflect.TypeOf(t.Header) == reflect.TypeOf(f.Header) {
			t.Payload = f.Payload
			proto.Reset(t.Header)
			proto.Merge(t.Header, f.Header)
			return nil
		}
	}
	return copyMessage(to, from)
}

func free(m any) {
	switch m := m.(type) {
	case *Frame:
		m.Free()
	case *sentFrame:
		m.Free()
	}
}

// localStream is both ends of a streaming call.
type localStream struct {
	ctx      context.Context // the handler's
	requests chan any
	replies  chan any

	sendMu sync.Mutex // guards closing `requests` against sends
	sent   bool       // the client closed its end

	done chan struct{} // closed when the handler returned
	err  error         // of the handler, a status; valid when done is closed
}

func (s *Server) newStream(ctx context.Context, name string) (grpc.ClientStream, error) {
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	hctx, cancel := s.callContext(ctx)
	l := &localStream{ctx: hctx, requests: make(chan any, localDepth), replies: make(chan any, localDepth), done: make(chan struct{})}
	m := s.methods[name]
	go func() {
		defer s.calls.Done()
		info := &grpc.StreamServerInfo{FullMethod: name, IsClientStream: m.stream.ClientStreams, IsServerStream: m.stream.ServerStreams}
		err := s.stream(m.impl, localServerStream{l}, info, m.stream.Handler)
		if err != nil {
			l.err = s.toStatus(err)
		}
		cancel()
		close(l.done)
		l.drain()
	}()
	return localClientStream{l, ctx}, nil
}

// drain frees what the handler did not take.
func (l *localStream) drain() {
	for {
		select {
		case m, ok := <-l.requests:
			if !ok {
				return
			}
			free(m)
		default:
			return
		}
	}
}

type localServerStream struct{ *localStream }

func (l localServerStream) Context() context.Context     { return l.ctx }
func (l localServerStream) SetHeader(metadata.MD) error  { return nil }
func (l localServerStream) SendHeader(metadata.MD) error { return nil }
func (l localServerStream) SetTrailer(metadata.MD)       {}

func (l localServerStream) SendMsg(m any) error {
	out, err := outgoing(m)
	if err != nil {
		return err
	}
	select {
	case l.replies <- out:
		return nil
	case <-l.ctx.Done():
		free(out)
		return status.FromContextError(l.ctx.Err()).Err()
	}
}

func (l localServerStream) RecvMsg(m any) error {
	select {
	case in, ok := <-l.requests:
		if !ok {
			return io.EOF
		}
		return incoming(m, in)
	case <-l.ctx.Done():
		return status.FromContextError(l.ctx.Err()).Err()
	}
}

type localClientStream struct {
	*localStream
	caller context.Context
}

func (l localClientStream) Context() context.Context     { return l.caller }
func (l localClientStream) Header() (metadata.MD, error) { return nil, nil }
func (l localClientStream) Trailer() metadata.MD         { return nil }

func (l localClientStream) CloseSend() error {
	l.sendMu.Lock()
	defer l.sendMu.Unlock()
	if !l.sent {
		l.sent = true
		close(l.requests)
	}
	return nil
}

func (l localClientStream) SendMsg(m any) error {
	out, err := outgoing(m)
	if err != nil {
		return err
	}
	l.sendMu.Lock()
	defer l.sendMu.Unlock()
	if l.sent {
		free(out)
		return status.Error(codes.Internal, "SendMsg called after CloseSend")
	}
	select {
	case <-l.done: // first: both may be possible
		free(out)
		return io.EOF
	default:
	}
	select {
	case l.requests <- out:
		select {
		case <-l.done: // the handler may have left before it saw this one
			l.drain()
		default:
		}
		return nil
	case <-l.done:
		free(out)
		return io.EOF
	case <-l.caller.Done():
		free(out)
		return io.EOF
	}
}

func (l localClientStream) RecvMsg(m any) error {
	select { // what was answered before the end is delivered before the end
	case in := <-l.replies:
		return incoming(m, in)
	default:
	}
	select {
	case in := <-l.replies:
		return incoming(m, in)
	case <-l.caller.Done():
		return status.FromContextError(l.caller.Err()).Err()
	case <-l.done:
	}
	select {
	case in := <-l.replies:
		return incoming(m, in)
	default:
	}
	if l.err != nil {
		return l.err
	}
	return io.EOF
}

// closeLocal ends local calls and waits for their handlers, at most for the time given: a handler that ignores its
// context must not keep a process from ending.
func (s *Server) closeLocal(patience time.Duration) {
	locals.Lock()
	if locals.byAddress[s.Address()] == s {
		delete(locals.byAddress, s.Address())
	}
	locals.Unlock()
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.calls.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		s.log.Warn("a call is still being answered although its server was closed", "address", s.Address())
	}
}
