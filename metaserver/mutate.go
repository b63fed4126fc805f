package metaserver

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/lease"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

var errSessionEnded = rpc.Error(rpc.SessionEnded, "the session has ended")

// maxPreparations is how often a mutation is prepared again because others changed the names that it is about.
const maxPreparations = 64

// metaService answers clients.
type metaService struct {
	pb.UnimplementedMetaServer
	s *Server
}

// Mutate implements pb.MetaServer.
func (m *metaService) Mutate(ctx context.Context, req *pb.MutateRequest) (*pb.Result, error) {
	start := time.Now()
	res, err := m.s.mutate(ctx, req)
	m.s.metrics.mutation(req.GetOp(), res, err, time.Since(start))
	return res, rpc.ToStatus(err)
}

func (s *Server) mutate(ctx context.Context, req *pb.MutateRequest) (*pb.Result, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	if err := validate(req); err != nil {
		return refusal(err), nil
	}
	s.mutations.Add(1)
	strip(req.Op)
	if req.Session == 0 {
		return l.propose(req)
	}
	for range maxPreparations {
		res, err := l.attempt(ctx, req)
		if err != nil || !res.Mismatch {
			return res, err
		}
	}
	return nil, status.Error(codes.Unavailable, "the names involved change too fast; ask again")
}

// attempt prepares and proposes a mutation once.
func (l *leader) attempt(ctx context.Context, req *pb.MutateRequest) (*pb.Result, error) {
	p := &preparation{l: l, req: req}
	recorded, err := p.look()
	if err != nil {
		return nil, err
	}
	if recorded != nil {
		// It was done before, perhaps under another leader: what the other clients cached then must be gone.
		return recorded, l.fromTable(l.table.Admit(ctx, req.Session))
	}
	if len(p.touch.Inodes) == 0 && p.touch.Victim == 0 {
		l.fill(req.Op)
		return l.propose(req)
	}
	return p.run(ctx)
}

// preparation is a mutation that changes inodes, being prepared.
type preparation struct {
	l        *leader
	req      *pb.MutateRequest
	touch    namespace.Touch
	existing uint64 // MakeNode that may open a file: the file that is there
}

// look reads what the mutation is about. A result is one that was recorded before.
func (p *preparation) look() (recorded *pb.Result, err error) {
	err = p.l.s.db.View(func(r kv.Reader) error {
		if recorded = namespace.Result(r, p.req.Session, p.req.Sequence); recorded != nil {
			return nil
		}
		p.touch = touched(r, p.req.Op)
		p.existing = existing(r, p.req.Op)
		return nil
	})
	return recorded, err
}

// touched is namespace.Touched, but a file counts as a victim even while it has more names: two of them can go at once.
func touched(r kv.Reader, op *pb.Op) namespace.Touch {
	t := namespace.Touched(r, op)
	switch op := op.GetOp().(type) {
	case *pb.Op_Unlink:
		t.Victim = op.Unlink.Expect
	case *pb.Op_Rename:
		if m := op.Rename; !m.Exchange && !m.NoReplace && m.Expect != m.ExpectReplaced {
			t.Victim = m.ExpectReplaced
		}
	}
	return t
}

// existing is the inode that a MakeNode which need not be the first will open instead.
func existing(r kv.Reader, op *pb.Op) uint64 {
	m := op.GetMakeNode()
	if m == nil || m.Exclusive || m.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return 0
	}
	attr, _, err := namespace.Lookup(r, posix.Cred{}, m.Parent, m.Name)
	if err != nil || attr == nil {
		return 0
	}
	return attr.Inode
}

func (p *preparation) run(ctx context.Context) (*pb.Result, error) {
	l, req := p.l, p.req
	if p.existing != 0 {
		o, err := l.table.Open(ctx, req.Session, req.Sequence, p.existing)
		if errors.Is(err, lease.ErrTooMany) {
			// The client opens what it is told exists, and hears of the limit then. Here an errno would say that the mutation was
			// not done, which nobody knows when it was asked for before.
			return p.enclosed(ctx)
		}
		if err != nil {
			return nil, l.fromTable(err)
		}
		opened := false
		defer func() { o.Done(opened) }()
		res, err := p.enclosed(ctx)
		opened = err != nil || res.Errno == 0
		return res, err
	}
	return p.enclosed(ctx)
}

// enclosed proposes between Begin and End of the leases.
func (p *preparation) enclosed(ctx context.Context) (*pb.Result, error) {
	l, req := p.l, p.req
	change, err := l.table.Begin(ctx, p.intent())
	if err != nil {
		return nil, l.fromTable(err)
	}
	defer change.End()
	if same, err := p.unchanged(); err != nil || !same {
		return &pb.Result{Mismatch: true}, err
	}
	setHolders(req.Op, change.Holders())
	res, err := l.propose(req)
	if err != nil || res.Errno != 0 || res.Mismatch {
		return res, err
	}
	res.Leased = res.Leased && l.leased(req.Session, res)
	if v := p.touch.Victim; v != 0 && len(change.Holders()) == 0 {
		l.forget(v)
	}
	return res, nil
}

func (p *preparation) intent() lease.Intent {
	in := lease.Intent{Session: p.req.Session, Unanswered: p.req.Unanswered, Inodes: p.touch.Inodes, Victim: p.touch.Victim}
	hint, opened := uint64(0), false
	switch op := p.req.Op.GetOp().(type) {
	case *pb.Op_Unlink:
		hint, opened = op.Unlink.Hint, op.Unlink.Opened
	case *pb.Op_Rename:
		hint, opened = op.Rename.Hint, op.Rename.Opened
	}
	if in.Victim != 0 && hint == in.Victim {
		in.Known, in.Opened = true, opened
	}
	return in
}

// unchanged looks again: between the first look and Begin the names may have come to mean other inodes, which Begin did
// not mark. What changes from now on, the state machine notices.
func (p *preparation) unchanged() (same bool, err error) {
	switch p.req.Op.GetOp().(type) {
	case *pb.Op_Unlink, *pb.Op_Rename:
	default:
		return true, nil // names its inodes itself
	}
	err = p.l.s.db.View(func(r kv.Reader) error {
		t := touched(r, p.req.Op)
		same = t.Victim == p.touch.Victim && slices.Equal(t.Inodes, p.touch.Inodes)
		return nil
	})
	return same, err
}

func setHolders(op *pb.Op, holders []uint64) {
	switch op := op.GetOp().(type) {
	case *pb.Op_Unlink:
		op.Unlink.Holders = holders
	case *pb.Op_Rename:
		op.Rename.Holders = holders
	}
}

// propose has the mutation logged and applied. It does not end with the caller's context: a mutation whose outcome is open
// must not be let go of while this metaserver leads.
func (l *leader) propose(req *pb.MutateRequest) (*pb.Result, error) {
	if l.s.node.Term() != l.term {
		// Won again, perhaps, but as another leadership: who led in between may have granted leases that this mutation did not
		// wait for.
		return nil, l.s.notLeader()
	}
	res, err := l.s.node.Propose(l.ctx, &pb.Command{
		Version: namespace.CommandVersion, Time: time.Now().UnixNano(),
		Session: req.Session, Sequence: req.Sequence, Unanswered: req.Unanswered, Cred: req.Cred, Op: req.Op,
	})
	switch {
	case err != nil && l.ctx.Err() != nil:
		return nil, l.s.notLeader()
	case err != nil:
		return nil, err
	case l.s.node.Term() != l.term:
		// The leadership was lost and won in between: the leases that this mutation waited for are not all there were.
		return nil, l.s.notLeader()
	case namespace.IsSessionEnded(res):
		return nil, errSessionEnded
	}
	return res, nil
}

// fill puts in what only the leader knows.
func (l *leader) fill(op *pb.Op) {
	if a := op.GetAllocChunks(); a != nil {
		a.Layout = l.layout()
		a.Candidates = l.live.Candidates(int(a.Layout.Replicas), a.Avoid)
	}
}

// layout is how new data is stored: by default in three copies, two of which must hold it before it counts. A cluster of
// fewer servers does what it can.
func (l *leader) layout() *pb.Layout {
	n := max(min(l.s.cfg.Replicas, l.live.Len()), 1)
	return &pb.Layout{Replicas: uint32(n), MinCopies: uint32(max(n-1, 1))}
}

// leased tells whether the session may cache all attributes in a result. To be called before the change ends.
func (l *leader) leased(session uint64, res *pb.Result) bool {
	var buf [4]uint64
	inodes := buf[:0]
	for _, a := range [...]*pb.Attr{res.Attr, res.Parent, res.Parent2, res.Replaced} {
		if a != nil {
			inodes = append(inodes, a.Inode)
		}
	}
	return len(inodes) > 0 && l.table.Leased(session, inodes...)
}

// forget drops what the table knows of an inode that nobody had open, if it is gone now.
func (l *leader) forget(inode uint64) {
	gone := false
	if err := l.s.db.View(func(r kv.Reader) error {
		_, err := namespace.GetAttr(r, inode)
		gone = err != nil
		return nil
	}); err == nil && gone {
		l.table.Gone(inode)
	}
}
