package metaserver

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/consensus"
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
	if s.yields(req.Op) {
		return nil, rpc.ErrNotLeader("")
	}
	s.mutations.Add(1)
	m := &mutation{l: l, req: req, op: own(req.Op)}
	if req.Session == 0 {
		if err := s.fits(req.Op); err != nil {
			return refusal(err), nil
		}
		return m.propose(ctx)
	}
	for range maxPreparations {
		res, err := m.attempt(ctx)
		if err != nil || !res.Mismatch {
			return res, err
		}
	}
	return nil, status.Error(codes.Unavailable, "the names involved change too fast; ask again")
}

// mutation is one on its way into the log.
type mutation struct {
	l   *leader
	req *pb.MutateRequest
	op  *pb.Op // of the request, completed by the leader

	// Of the attempt under way.
	index    uint64 // touch is of a state that holds the commands up to this
	touch    namespace.Touch
	existing uint64 // MakeNode that may open a file: the file that is there
	open     *lease.Opening
	change   *lease.Change
	handed   bool // the end of these is taken care of
}

// attempt prepares and proposes once.
func (m *mutation) attempt(ctx context.Context) (*pb.Result, error) {
	m.open, m.change, m.handed = nil, nil, false
	defer func() {
		if !m.handed { // a panic, or nothing was begun
			m.release(true)
		}
	}()
	recorded, err := m.look(ctx)
	if err != nil {
		return nil, err
	}
	if recorded != nil {
		// It was done before, perhaps under another leader: what the other clients cached then must be gone.
		return recorded, m.l.fromTable(m.l.table.Admit(ctx, m.req.Session))
	}
	if err := m.admit(); err != nil {
		return m.refuse(ctx, err)
	}
	if len(m.touch.Inodes) == 0 && m.touch.Victim == 0 {
		return m.propose(ctx)
	}
	if ready, err := m.begin(ctx); !ready {
		return m.over(ctx, &pb.Result{Mismatch: true}, err)
	}
	return m.propose(ctx)
}

// admit completes the operation as far as it depends on the servers, and says why the leader does not take it.
func (m *mutation) admit() error {
	if err := m.l.admit(m.op); err != nil {
		return err
	}
	if err := m.l.s.fits(m.op); err != nil {
		return err
	}
	switch op := m.op.GetOp().(type) {
	case *pb.Op_SetLayout:
		return m.l.feasible(chunk.LayoutOf(op.SetLayout.Layout))
	case *pb.Op_AllocChunks:
		return m.l.fill(op.AllocChunks)
	}
	return nil
}

// refuse answers with an error without recording it. That may only be said of a mutation which is not done already: one that
// was asked for before may be on its way through the log, and is in the state once a later command is.
func (m *mutation) refuse(ctx context.Context, reason error) (*pb.Result, error) {
	if _, err := m.l.own(&pb.Op{Op: &pb.Op_FinishDeletions{FinishDeletions: &pb.FinishDeletions{}}}); err != nil {
		return nil, err
	}
	switch recorded, err := m.look(ctx); {
	case err != nil:
		return nil, err
	case recorded != nil:
		return recorded, m.l.fromTable(m.l.table.Admit(ctx, m.req.Session))
	}
	return refusal(reason), nil
}

// look reads what the mutation is about. A result is one that was recorded before.
func (m *mutation) look(ctx context.Context) (recorded *pb.Result, err error) {
	m.index = m.l.s.db.Applied() // before the View: what it shows is at least as new
	err = m.l.s.db.ViewContext(ctx, func(r kv.Reader) error {
		if recorded = namespace.Result(r, m.req.Session, m.req.Sequence); recorded != nil {
			return nil
		}
		m.touch = touched(r, m.op)
		m.existing = existing(r, m.op)
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

// begin makes the leases of others end. The mutation is not ready to be proposed if the names that it is about mean something
// else by now.
func (m *mutation) begin(ctx context.Context) (ready bool, err error) {
	l := m.l
	if m.existing != 0 {
		m.open, err = l.table.Open(ctx, m.req.Session, m.req.Sequence, m.existing)
		// With too many open: the client opens what it is told exists, and hears of the limit then. Here an errno would say that
		// the mutation was not done, which nobody knows when it was asked for before.
		if err != nil && !errors.Is(err, lease.ErrTooMany) {
			return false, l.fromTable(err)
		}
	}
	if m.change, err = l.table.Begin(ctx, m.intent()); err != nil {
		return false, l.fromTable(err)
	}
	if same, err := m.unchanged(ctx); err != nil || !same {
		return false, err
	}
	setHolders(m.op, m.change.Holders())
	return true, nil
}

// over ends what begin began, with the outcome.
func (m *mutation) over(ctx context.Context, res *pb.Result, err error) (*pb.Result, error) {
	if !m.handed { // only read once another goroutine does this
		m.handed = true
	}
	defer m.release(err != nil || res.Errno == 0)
	if m.change != nil && err == nil && res.Errno == 0 && !res.Mismatch {
		res.Leased = res.Leased && m.l.leased(m.req.Session, res)
		if v := m.touch.Victim; v != 0 && len(m.change.Holders()) == 0 {
			m.l.forget(ctx, v)
		}
	}
	return res, err
}

// release lets others have leases and opens again. opened tells whether the mutation may have opened a file.
func (m *mutation) release(opened bool) {
	if m.change != nil {
		m.change.End()
	}
	if m.open != nil {
		m.open.Done(opened)
	}
}

func (m *mutation) intent() lease.Intent {
	in := lease.Intent{Session: m.req.Session, Unanswered: m.req.Unanswered, Inodes: m.touch.Inodes, Victim: m.touch.Victim}
	hint, opened := uint64(0), false
	switch op := m.op.GetOp().(type) {
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
func (m *mutation) unchanged(ctx context.Context) (same bool, err error) {
	switch m.op.GetOp().(type) {
	case *pb.Op_Unlink, *pb.Op_Rename:
	default:
		return true, nil // names its inodes itself
	}
	if m.l.s.db.Applied() == m.index {
		return true, nil
	}
	err = m.l.s.db.ViewContext(ctx, func(r kv.Reader) error {
		t := touched(r, m.op)
		same = t.Victim == m.touch.Victim && slices.Equal(t.Inodes, m.touch.Inodes)
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

// propose has the mutation logged and applied. A caller who leaves, by ctx, does not take the mutation with it: while its
// outcome is open it holds up who wants leases on what it changes.
func (m *mutation) propose(ctx context.Context) (*pb.Result, error) {
	s, req := m.l.s, m.req
	if s.node.Term() != m.l.term {
		// Won again, perhaps, but as another leadership: who led in between may have granted leases that this mutation did not
		// wait for.
		return m.over(ctx, nil, s.notLeader())
	}
	p, err := s.node.Start(ctx, &pb.Command{
		Version: namespace.VersionOf(m.op), Time: time.Now().UnixNano(),
		Session: req.Session, Sequence: req.Sequence, Unanswered: req.Unanswered, Cred: req.Cred, Op: m.op,
	})
	if err != nil {
		return m.over(ctx, nil, err)
	}
	select {
	case <-p.Done():
		res, err := m.outcome(p)
		return m.over(ctx, res, err)
	case <-ctx.Done():
		err = status.FromContextError(ctx.Err()).Err()
	case <-m.l.ctx.Done(): // raft may be waiting for the state machine
		err = s.notLeader()
	}
	m.handed = true
	s.outcomes.Go(func() {
		<-p.Done()
		defer m.survive()
		res, err := m.outcome(p)
		_, _ = m.over(context.WithoutCancel(ctx), res, err) // nobody is there to hear it
	})
	return nil, err
}

// survive keeps a panic from ending the process, as it would not in a handler.
func (m *mutation) survive() {
	if r := recover(); r != nil {
		m.l.log.Error("the end of a mutation panicked; this is a bug, please report it", "panic", r, "stack", string(debug.Stack()))
	}
}

func (m *mutation) outcome(p *consensus.Proposal) (*pb.Result, error) {
	res, err := p.Outcome()
	switch {
	case err != nil && m.l.ctx.Err() != nil:
		return nil, m.l.s.notLeader()
	case err != nil:
		return nil, err
	case m.l.s.node.Term() != m.l.term:
		// The leadership was lost and won in between: the leases that this mutation waited for are not all there were.
		return nil, m.l.s.notLeader()
	case namespace.IsSessionEnded(res):
		return nil, errSessionEnded
	}
	return res, nil
}

// fill puts in what only the leader knows.
//
// ENOSPC: the servers are up, but full. EAGAIN, where too few are up, is the state machine's to say.
func (l *leader) fill(a *pb.AllocChunks) error {
	want := chunk.LayoutOf(a.Want)
	candidates := l.live.Candidates(want.Width(), a.Avoid)
	layout := l.possible(want, len(candidates))
	if full := l.live.Full(); len(candidates) < layout.Min && len(candidates)+full >= layout.Min {
		return fserr.New(syscall.ENOSPC, "%d chunk servers are full and %d have room, where %v needs %d", full, len(candidates), layout, layout.Min)
	}
	a.Layout, a.Candidates = layout.Proto(), candidates
	return nil
}

// layout is how new data is stored where no policy says otherwise: in three copies unless this metaserver was told another
// number.
func (l *leader) layout() chunk.Layout { return chunk.Copies(l.s.cfg.Replicas) }

// possible is what can be done of a wanted layout with so many servers fit to be written to. A cluster of fewer servers than
// copies does what it can; more are made when there are more. Where too few are up for a code, new data goes into copies that
// survive as many losses, if there are enough for that.
func (l *leader) possible(want chunk.Layout, healthy int) chunk.Layout {
	if want.IsZero() {
		want = l.layout()
	}
	if want.Coded() && healthy < want.Min {
		if copies := chunk.Copies(want.Parity + 1); healthy >= copies.Min {
			return copies
		}
	}
	if n := l.live.Len(); !want.Coded() && n < want.Width() {
		want.Min = min(want.Min, max(n-1, 1))
	}
	return want
}

// feasible says why the cluster cannot hold data as a policy wants, nil when it can.
func (l *leader) feasible(want chunk.Layout) error {
	if n := len(l.live.Candidates(0, nil)); !want.IsZero() && n < want.Width() {
		return fserr.New(syscall.EINVAL, "%v needs %d chunk servers that are healthy and have room, of which there are %d", want, want.Width(), n)
	}
	return nil
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
func (l *leader) forget(ctx context.Context, inode uint64) {
	gone := false
	err := l.s.db.ViewContext(ctx, func(r kv.Reader) error {
		_, err := namespace.GetAttr(r, inode)
		gone = err != nil
		return nil
	})
	switch {
	case err == nil && gone:
		l.table.Gone(inode)
	case err != nil && ctx.Err() != nil: // the caller must not wait for it
		l.s.outcomes.Go(func() { l.forget(context.WithoutCancel(ctx), inode) })
	}
}
