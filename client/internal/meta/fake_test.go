package meta

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type seqKey struct{ session, sequence uint64 }

// fake is a metaserver that a test can make lose replies, hang, forget sessions and revoke leases.
type fake struct {
	pb.UnimplementedMetaServer
	srv  *rpc.Server
	done chan error

	mu         sync.Mutex
	index      uint64
	nextIno    uint64
	nodes      map[uint64]*pb.Attr
	names      map[dirName]uint64
	results    map[seqKey]*pb.Result
	applied    int // mutations, replays not counted
	nonces     map[string]uint64
	live       map[uint64]bool
	nextSes    uint64
	streams    map[uint64]*fakeStream
	leaseMs    uint32
	calls      map[string]int
	unanswered uint64
	released   []uint64
	held       []uint64
	notLeader  *string // answers everything with NOT_LEADER and this hint
	mutePongs  bool

	// before is called, unlocked, when a call has arrived, after when its answer is ready: an error is sent instead.
	before func(method string, req proto.Message) error
	after  func(method string, req, reply proto.Message) error
}

type fakeStream struct {
	opened []uint64 // by the first ping
	out    chan *pb.SessionPush
	acks   chan *pb.RevokeAck
	drops  chan []uint64
	next   uint64
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{index: 1, nextIno: 1, nodes: map[uint64]*pb.Attr{}, names: map[dirName]uint64{}, results: map[seqKey]*pb.Result{}, nonces: map[string]uint64{}, live: map[uint64]bool{},
		streams: map[uint64]*fakeStream{}, leaseMs: 60_000, calls: map[string]int{}, done: make(chan error, 1)}
	f.nodes[1] = &pb.Attr{Inode: 1, Mode: syscall.S_IFDIR | 0o777, Nlink: 2, Parent: 1, Version: 1}
	srv, err := rpc.NewServer("127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	f.srv = srv
	pb.RegisterMetaServer(srv, f)
	go func() { f.done <- srv.Serve() }()
	t.Cleanup(func() {
		srv.Close()
		<-f.done
	})
	return f
}

func dial(t *testing.T, fakes ...*fake) *Client {
	t.Helper()
	c := newClient(t, 0, fakes...)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

func newClient(t *testing.T, entries int, fakes ...*fake) *Client {
	t.Helper()
	var addresses []string
	for _, f := range fakes {
		addresses = append(addresses, f.srv.Address())
	}
	pool := new(rpc.Pool)
	c, err := New(Config{Addresses: addresses, Name: "test", Pool: pool, Entries: entries, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.Close(ctx) // the server may be unable by now
		_ = pool.Close()
	})
	return c
}

// rpcs is how many calls of metadata operations the client made.
func rpcs(c *Client) (n float64) {
	for _, m := range []string{"Mutate", "Lookup", "GetAttr", "Open", "Extents", "ReadDir", "GetXattr", "ListXattr"} {
		var out dto.Metric
		_ = c.metrics.rpcs.WithLabelValues(m).Write(&out) // never fails
		n += out.GetCounter().GetValue()
	}
	return n
}

// silent checks that fn costs no message.
func silent(t *testing.T, c *Client, what string, fn func()) {
	t.Helper()
	was := rpcs(c)
	fn()
	if now := rpcs(c); now != was {
		t.Fatalf("%s: %v messages", what, now-was)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !ok() {
		pauseFor(ctx, 2*time.Millisecond)
		if ctx.Err() != nil {
			t.Fatal("never: ", what)
		}
	}
}

func (f *fake) enter(ctx context.Context, method string, req proto.Message) error {
	f.mu.Lock()
	f.calls[method]++
	hook, hint := f.before, f.notLeader
	f.mu.Unlock()
	if hint != nil {
		return rpc.ErrNotLeader(*hint)
	}
	if hook != nil {
		if err := hook(method, req); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (f *fake) leave(method string, req, reply proto.Message) error {
	f.mu.Lock()
	hook := f.after
	f.mu.Unlock()
	if hook != nil {
		return hook(method, req, reply)
	}
	return nil
}

func (f *fake) hooks(before func(string, proto.Message) error, after func(string, proto.Message, proto.Message) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before, f.after = before, after
}

func (f *fake) with(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

func (f *fake) Mutate(ctx context.Context, req *pb.MutateRequest) (*pb.Result, error) {
	if err := f.enter(ctx, "Mutate", req); err != nil {
		return nil, err
	}
	r, err := f.mutate(req)
	if err != nil {
		return nil, err
	}
	return r, f.leave("Mutate", req, r)
}

func (f *fake) mutate(req *pb.MutateRequest) (*pb.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o := req.Op.GetOpenSession(); o != nil {
		id := f.nonces[string(o.Nonce)]
		if id == 0 {
			f.nextSes++
			id = f.nextSes
			f.nonces[string(o.Nonce)], f.live[id] = id, true
		}
		return &pb.Result{Session: id, Cluster: make([]byte, 16)}, nil
	}
	if !f.live[req.Session] {
		return nil, rpc.Error(rpc.SessionEnded, "no such session")
	}
	f.unanswered = max(f.unanswered, req.Unanswered)
	key := seqKey{req.Session, req.Sequence}
	if r := f.results[key]; r != nil {
		return proto.Clone(r).(*pb.Result), nil
	}
	f.index++
	f.applied++
	r := f.apply(req)
	r.Index = f.index
	f.results[key] = proto.Clone(r).(*pb.Result)
	r.Leased = r.Errno == 0
	return r, nil
}

func (f *fake) change(ino uint64) *pb.Attr {
	a := proto.Clone(f.nodes[ino]).(*pb.Attr)
	a.Version = f.index
	f.nodes[ino] = a
	return a
}

func failed(errno syscall.Errno) *pb.Result { return &pb.Result{Errno: uint32(errno)} }

func (f *fake) apply(req *pb.MutateRequest) *pb.Result {
	switch op := req.Op.Op.(type) {
	case *pb.Op_MakeNode:
		key := dirName{op.MakeNode.Parent, string(op.MakeNode.Name)}
		if have := f.names[key]; have != 0 {
			if op.MakeNode.Exclusive {
				return failed(syscall.EEXIST)
			}
			return &pb.Result{Existed: true, Attr: f.nodes[have], Parent: f.nodes[key.dir]}
		}
		f.nextIno++
		a := &pb.Attr{Inode: f.nextIno, Mode: op.MakeNode.Mode, Nlink: 1, Version: f.index, DataVersion: f.index, Parent: key.dir}
		f.nodes[a.Inode], f.names[key] = a, a.Inode
		p := f.change(key.dir)
		p.Size++
		return &pb.Result{Attr: a, Parent: p}
	case *pb.Op_Unlink:
		key := dirName{op.Unlink.Parent, string(op.Unlink.Name)}
		ino := f.names[key]
		if ino == 0 {
			return failed(syscall.ENOENT)
		}
		delete(f.names, key)
		a := f.change(ino)
		a.Nlink--
		if op.Unlink.Opened && op.Unlink.Hint == ino {
			f.held = append(f.held, ino)
		} else {
			delete(f.nodes, ino)
		}
		p := f.change(key.dir)
		p.Size--
		return &pb.Result{Attr: a, Parent: p}
	case *pb.Op_Rename:
		from, to := dirName{op.Rename.Parent, string(op.Rename.Name)}, dirName{op.Rename.NewParent, string(op.Rename.NewName)}
		ino := f.names[from]
		delete(f.names, from)
		f.names[to] = ino
		r := &pb.Result{Attr: f.change(ino), Parent: f.change(from.dir)}
		if to.dir != from.dir {
			r.Parent2 = f.change(to.dir)
			r.Parent.Size--
			r.Parent2.Size++
		}
		return r
	case *pb.Op_SetAttr:
		a := f.change(op.SetAttr.Inode)
		if op.SetAttr.Mode != nil {
			a.Mode = a.Mode&syscall.S_IFMT | *op.SetAttr.Mode
		}
		return &pb.Result{Attr: a}
	case *pb.Op_Commit:
		a := f.change(op.Commit.Inode)
		a.DataVersion, a.Size = f.index, max(a.Size, op.Commit.Size)
		return &pb.Result{Attr: a}
	case *pb.Op_ReleaseInodes:
		f.released = append(f.released, op.ReleaseInodes.Inodes...)
		for _, ino := range op.ReleaseInodes.Inodes {
			delete(f.nodes, ino)
		}
	case *pb.Op_CloseSession:
		delete(f.live, req.Session)
	}
	return &pb.Result{}
}

func (f *fake) admit(ctx context.Context, method string, req proto.Message, rc *pb.ReadContext) error {
	if err := f.enter(ctx, method, req); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.live[rc.Session] {
		return rpc.Error(rpc.SessionEnded, "no such session")
	}
	return nil
}

func (f *fake) Lookup(ctx context.Context, req *pb.LookupRequest) (*pb.LookupReply, error) {
	if err := f.admit(ctx, "Lookup", req, req.Ctx); err != nil {
		return nil, err
	}
	f.mu.Lock()
	p := f.nodes[req.Parent]
	r := &pb.LookupReply{Parent: p, Leased: true, ParentLeased: true, Index: f.index, Attr: f.nodes[f.names[dirName{req.Parent, string(req.Name)}]]}
	f.mu.Unlock()
	if p == nil {
		return nil, rpc.ToStatus(syscall.ENOENT)
	}
	return r, f.leave("Lookup", req, r)
}

func (f *fake) GetAttr(ctx context.Context, req *pb.GetAttrRequest) (*pb.GetAttrReply, error) {
	if err := f.admit(ctx, "GetAttr", req, req.Ctx); err != nil {
		return nil, err
	}
	f.mu.Lock()
	r := &pb.GetAttrReply{Attr: f.nodes[req.Inode], Leased: true, Index: f.index}
	f.mu.Unlock()
	if r.Attr == nil {
		return nil, rpc.ToStatus(syscall.ENOENT)
	}
	return r, f.leave("GetAttr", req, r)
}

func (f *fake) Open(ctx context.Context, req *pb.OpenRequest) (*pb.ExtentsReply, error) {
	if err := f.admit(ctx, "Open", req, req.Ctx); err != nil {
		return nil, err
	}
	f.mu.Lock()
	r := &pb.ExtentsReply{Attr: f.nodes[req.Inode], Leased: true, Index: f.index, End: posix.ExtentBlock}
	f.mu.Unlock()
	if r.Attr == nil {
		return nil, rpc.ToStatus(syscall.ENOENT)
	}
	return r, f.leave("Open", req, r)
}

func (f *fake) Extents(ctx context.Context, req *pb.ExtentsRequest) (*pb.ExtentsReply, error) {
	if err := f.admit(ctx, "Extents", req, req.Ctx); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return &pb.ExtentsReply{Attr: f.nodes[req.Inode], Leased: true, Index: f.index, Offset: req.Offset, End: req.Offset + posix.ExtentBlock}, nil
}

func (f *fake) ReadDir(ctx context.Context, req *pb.ReadDirRequest) (*pb.ReadDirReply, error) {
	if err := f.admit(ctx, "ReadDir", req, req.Ctx); err != nil {
		return nil, err
	}
	f.mu.Lock()
	r := &pb.ReadDirReply{Attr: f.nodes[req.Inode], Leased: true, Index: f.index}
	for k, ino := range f.names {
		if k.dir == req.Inode && k.name > string(req.After) {
			r.Entries = append(r.Entries, &pb.Dirent{Name: []byte(k.name), Attr: f.nodes[ino], Leased: true})
		}
	}
	f.mu.Unlock()
	slices.SortFunc(r.Entries, func(a, b *pb.Dirent) int { return cmp.Compare(string(a.Name), string(b.Name)) })
	if len(r.Entries) > int(req.Limit) {
		r.Entries = r.Entries[:req.Limit]
	} else {
		r.Eof = true
	}
	return r, f.leave("ReadDir", req, r)
}

func (f *fake) Status(context.Context, *pb.StatusRequest) (*pb.StatusReply, error) {
	return &pb.StatusReply{}, nil
}

func (f *fake) Session(s grpcSession) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	if err := f.enter(s.Context(), "Session", first); err != nil {
		return err
	}
	f.mu.Lock()
	if !f.live[first.Session] {
		f.mu.Unlock()
		return rpc.Error(rpc.SessionEnded, "no such session")
	}
	st := &fakeStream{opened: first.Opened, out: make(chan *pb.SessionPush, 16), acks: make(chan *pb.RevokeAck, 64), drops: make(chan []uint64, 64)}
	f.streams[first.Session] = st
	st.out <- &pb.SessionPush{Pong: first.Ping, LeaseMs: f.leaseMs, SessionMs: 60_000, Held: slices.Clone(f.held)}
	f.mu.Unlock()
	ended := make(chan error, 1)
	go func() { ended <- f.pings(s, st) }()
	for {
		select {
		case m, ok := <-st.out:
			if !ok {
				return status.Error(codes.Aborted, "the test ended the stream")
			}
			if err := s.Send(m); err != nil {
				return err
			}
		case err := <-ended:
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

type grpcSession = pb.Meta_SessionServer

func (f *fake) pings(s grpcSession, st *fakeStream) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		for _, a := range m.Acks {
			st.acks <- a
		}
		if len(m.Dropped) > 0 {
			st.drops <- m.Dropped
		}
		f.mu.Lock()
		if m.Ping != 0 && !f.mutePongs && f.streams[m.Session] == nil {
			select {
			case st.out <- &pb.SessionPush{Pong: m.Ping, LeaseMs: f.leaseMs, SessionMs: 60_000}:
			default:
			}
		}
		f.mu.Unlock()
	}
}

func (f *fake) stream(c *Client) *fakeStream {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.streams[c.Session()]
}

// revoke takes leases away and returns the answer.
func (f *fake) revoke(t *testing.T, c *Client, inos ...uint64) *pb.RevokeAck {
	t.Helper()
	st := f.stream(c)
	st.next++
	st.out <- &pb.SessionPush{Revokes: []*pb.Revoke{{Id: st.next, Inodes: inos}}}
	return ackOf(t, st)
}

func ackOf(t *testing.T, st *fakeStream) *pb.RevokeAck {
	t.Helper()
	select {
	case a := <-st.acks:
		return a
	case <-time.After(20 * time.Second):
		t.Fatal("a revocation is not answered")
		return nil
	}
}
