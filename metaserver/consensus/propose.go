package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Propose is Start and the wait for the outcome. When ctx ends meanwhile, the command may still be applied, now or later.
func (n *Node) Propose(ctx context.Context, cmd *pb.Command) (*pb.Result, error) {
	p, err := n.Start(ctx, cmd)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.Done():
		return p.Outcome()
	case <-ctx.Done():
		n.metrics.proposals.WithLabelValues(unknown).Inc()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// What becomes of a proposal, in the metrics.
const applied, refused, unknown = "applied", "refused", "unknown"

// Start appends a command to the log. On a member that does not lead it fails with rpc.ErrNotLeader; after any error nothing
// was done.
func (n *Node) Start(ctx context.Context, cmd *pb.Command) (*Proposal, error) {
	p, err := n.start(ctx, cmd)
	if err != nil {
		n.metrics.proposals.WithLabelValues(refused).Inc()
	}
	return p, err
}

func (n *Node) start(ctx context.Context, cmd *pb.Command) (*Proposal, error) {
	began := time.Now()
	if !n.IsLeader() {
		return nil, n.notLeading()
	}
	data, err := proto.Marshal(cmd)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "command: %v", err)
	}
	if len(data) > maxCommand {
		return nil, rpc.Error(rpc.TooLarge, fmt.Sprintf("a command of %d bytes, at most %d", len(data), maxCommand))
	}
	p, err := n.proposals.submit(ctx, func() raft.Future { return n.raft.Apply(data, 0) })
	if err != nil {
		return nil, err
	}
	return &Proposal{n: n, began: began, proposal: p}, nil
}

// Proposal is a command that raft was given.
type Proposal struct {
	*proposal
	n     *Node
	began time.Time
}

// Done is closed when the outcome is known: when the command is applied or, if it is not committed by then, when raft notices
// that this member does not lead any more.
func (p *Proposal) Done() <-chan struct{} { return p.done }

// Outcome is what applying the command gave; the Result belongs to the caller. To be asked once, when Done is closed. With
// rpc.ErrNotLeader nothing was done; with codes.Unavailable the command may still be applied, now or later: who wants to know
// asks again under the same sequence.
func (p *Proposal) Outcome() (*pb.Result, error) {
	res, outcome, err := p.outcome()
	p.n.metrics.proposals.WithLabelValues(outcome).Inc()
	if err == nil {
		p.n.metrics.seconds.Observe(time.Since(p.began).Seconds())
	}
	return res, err
}

func (p *Proposal) outcome() (*pb.Result, string, error) {
	switch {
	case errors.Is(p.err, raft.ErrNotLeader), errors.Is(p.err, raft.ErrLeadershipTransferInProgress):
		return nil, refused, p.n.notLeading() // it never entered the log
	case p.err != nil:
		return nil, unknown, status.Errorf(codes.Unavailable, "whether the command was done is not known: %v", p.err)
	}
	switch r := p.response.(type) {
	case *pb.Result:
		return r, applied, nil
	case error:
		return nil, unknown, status.Errorf(codes.Unavailable, "the command is in the log but was not applied here: %v", r)
	}
	return nil, unknown, status.Error(codes.Unavailable, "the command is in the log but was not applied here")
}

// notLeading is what everybody gets who asks this member for what only the leader does.
func (n *Node) notLeading() error {
	if err := n.failure(); err != nil {
		return rpc.ErrNotLeader("")
	}
	return rpc.ErrNotLeader(n.Leader())
}

func errStopping() error { return status.Error(codes.Unavailable, "this metaserver is stopping") }

// proposals are the futures that raft owes us. raft answers none that it holds when it is shut down, so they are waited for
// before; and it has no way to wait for one with a context, so one goroutine waits for all, in the order in which raft got
// them, which is that in which it answers.
type proposals struct {
	slots chan struct{} // as many as raft takes without blocking

	mu      sync.Mutex
	closed  bool
	pending chan *proposal // has room for as many as there are slots
	done    chan struct{}  // all are answered, and no more will come
}

type proposal struct {
	future   raft.Future
	done     chan struct{}
	err      error // these two are set before done is closed
	response any
}

func newProposals() *proposals {
	p := &proposals{slots: make(chan struct{}, maxAppend), pending: make(chan *proposal, maxAppend), done: make(chan struct{})}
	go p.collect()
	return p
}

// submit hands something to raft. An error means that it was not.
func (q *proposals) submit(ctx context.Context, start func() raft.Future) (*proposal, error) {
	if ctx.Err() != nil {
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	select {
	case q.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		<-q.slots
		return nil, errStopping()
	}
	p := &proposal{future: start(), done: make(chan struct{})}
	q.pending <- p
	return p, nil
}

func (q *proposals) collect() {
	defer close(q.done)
	for p := range q.pending {
		p.err = p.future.Error()
		if f, ok := p.future.(raft.ApplyFuture); ok && p.err == nil {
			p.response = f.Response()
		}
		close(p.done)
		<-q.slots
	}
}

// close takes no more and returns when all are answered: what is committed, when it is applied; the rest at the latest when
// raft notices that it lost its majority.
func (q *proposals) close() {
	q.mu.Lock()
	if !q.closed {
		q.closed = true
		close(q.pending)
	}
	q.mu.Unlock()
	<-q.done
}
