package consensus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	// keptMarks is how many marked indexes a member remembers the hash of its state at.
	keptMarks = 8
	// verdictPatience is how long a member has to take note that it is wrong.
	verdictPatience = 5 * time.Second
)

// states are the hashes of this member's state at marked indexes of the log. All members have the same state at an index, or one of
// them has a bug, or a disk or memory that changes bits: the leader compares, and whoever differs from most leaves the group
// before it spreads what it has.
type states struct {
	ctx context.Context // ends the hashing
	end context.CancelFunc

	mu      sync.Mutex
	marks   []*mark // ascending
	skipped uint64  // no index up to here is marked: the database came with them
	running context.CancelFunc
	changed chan struct{} // closed at the next change
}

// mark is one index. Its hash is there when done is closed.
type mark struct {
	index uint64
	done  chan struct{}
	sum   []byte
	err   error
}

func newStates() *states {
	s := &states{changed: make(chan struct{})}
	s.ctx, s.end = context.WithCancel(context.Background())
	return s
}

// mark has the state hashed that the command at the index has just left. It returns once that state is kept apart; nothing
// may be applied before. An older one that is still being hashed is given up.
func (n *Node) mark(index uint64) {
	s := n.states
	s.mu.Lock()
	if s.running != nil {
		s.running()
	}
	s.mu.Unlock()
	f, err := n.cfg.DB.Freeze()
	m := &mark{index: index, done: make(chan struct{}), err: err}
	ctx, cancel := context.WithCancel(s.ctx)
	s.mu.Lock()
	s.running = cancel
	if s.marks = append(s.marks, m); len(s.marks) > keptMarks {
		s.marks = slices.Delete(s.marks, 0, 1)
	}
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	if err != nil { // the database has failed, or is about to: whoever applies learns it
		cancel()
		close(m.done)
		return
	}
	n.wg.Go(func() {
		defer cancel()
		defer close(m.done)
		sum, err := f.Sum(ctx)
		if m.err = err; err != nil {
			n.log.Debug("the state was not hashed", "index", index, "error", err)
			return
		}
		m.sum = sum[:]
	})
}

// skip says that the database holds the commands up to an index, none of which was applied here.
func (s *states) skip(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marks, s.skipped = nil, index
	close(s.changed)
	s.changed = make(chan struct{})
}

// find returns the mark at an index, nil if there is none yet, up to where there will be none, and what is closed when that changes.
func (s *states) find(index uint64) (_ *mark, skipped uint64, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.marks {
		if m.index == index {
			return m, s.skipped, s.changed
		}
	}
	return nil, s.skipped, s.changed
}

// stateAt waits for the hash of the state at a marked index.
func (n *Node) stateAt(ctx context.Context, index uint64) ([]byte, error) {
	for {
		applied := n.AppliedIndex()
		m, skipped, changed := n.states.find(index)
		switch {
		case m != nil:
			select {
			case <-m.done:
				return m.sum, m.err
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-n.failed:
				return nil, n.cause
			}
		case applied > index || index <= skipped:
			return nil, fmt.Errorf("the state at index %d was not marked here", index)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-n.states.ctx.Done():
			return nil, errStopping()
		case <-n.failed:
			return nil, n.cause
		}
	}
}

// State implements pb.PeerServer.
func (l *layer) State(ctx context.Context, req *pb.StateRequest) (*pb.StateReply, error) {
	if err := l.check(req.Cluster); err != nil {
		return nil, err
	}
	switch v := len(req.Verdict); {
	case v > 0 && v != sha256.Size:
		return nil, status.Errorf(codes.InvalidArgument, "a verdict of %d bytes", v)
	case v > 0 && !bytes.Equal(req.Cluster, l.cluster()):
		return nil, status.Error(codes.InvalidArgument, "a verdict of somebody who does not know the cluster")
	}
	n := l.node
	if req.Member != n.cfg.ID {
		return nil, status.Errorf(codes.InvalidArgument, "a question to metaserver %d reached metaserver %d: their addresses are mixed up", req.Member, n.cfg.ID)
	}
	out := &pb.StateReply{Commands: n.cfg.Commands}
	if req.Index == 0 {
		return out, nil
	}
	sum, err := n.stateAt(ctx, req.Index)
	if err != nil {
		return out, ctx.Err() // that it has none is an answer, too
	}
	if len(req.Verdict) > 0 && !bytes.Equal(sum, req.Verdict) {
		n.condemn(differs(req.Index, sum, req.Verdict))
	}
	out.Sum = sum
	return out, nil
}

func differs(index uint64, own, most []byte) error {
	return fmt.Errorf("the state of this metaserver at entry %d of the log (hash %x) is not that of most of them (%x): its disk or memory changed something, "+
		"or there is a bug, which please report; stop it, move its data directory away, and let it take a copy from the others", index, own, most)
}

// condemn ends this member's part in the group for good: it does not start with this directory again.
func (n *Node) condemn(cause error) {
	if err := n.home.condemn(cause); err != nil {
		n.log.Error("it could not be noted that the data directory is of no use any more", "error", err)
	}
	n.fail(cause)
}

// Commands returns the newest command set that every member knows. Each is asked; that one does not answer is an error.
func (n *Node) Commands(ctx context.Context) (uint32, error) {
	lowest := n.cfg.Commands
	for _, a := range n.askState(ctx, &pb.StateRequest{Cluster: n.cfg.Cluster()}) {
		if a.err != nil {
			return 0, fmt.Errorf("metaserver %d: %w", a.id, a.err)
		}
		lowest = min(lowest, a.reply.Commands)
	}
	return lowest, nil
}

// ErrUndecided says that members have different states, and that it cannot be told who is right.
var ErrUndecided = errors.New("metaservers have different states")

// CompareStates compares the states of all members that can be reached at the index of a MarkState command that this leader has
// applied. One that differs from most of all members leaves the group, and CompareStates names it; this leader may be the one.
// It returns how many agreed; ErrUndecided where none of the states is that of most. A member that does not answer within patience is left out.
func (n *Node) CompareStates(ctx context.Context, index uint64, patience time.Duration) (agreed int, wrong []uint64, err error) {
	if !n.IsLeader() {
		return 0, nil, n.notLeading()
	}
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	own, err := n.stateAt(asking, index)
	if err != nil {
		return 0, nil, fmt.Errorf("consensus: hash the state: %w", err)
	}
	sums := map[uint64][]byte{n.cfg.ID: own}
	for _, a := range n.askState(asking, &pb.StateRequest{Cluster: n.cfg.Cluster(), Index: index}) {
		switch {
		case a.err != nil:
			n.log.Info("a metaserver's state was not compared", "id", a.id, "index", index, "error", a.err)
		case len(a.reply.Sum) == sha256.Size:
			sums[a.id] = a.reply.Sum
		}
	}
	return n.judge(ctx, index, sums)
}

// judge decides who of the members with these hashes is wrong, and tells them.
func (n *Node) judge(ctx context.Context, index uint64, sums map[uint64][]byte) (agreed int, wrong []uint64, err error) {
	n.metrics.stateChecks.Inc()
	with := map[string][]uint64{} // by hash
	for _, id := range slices.Sorted(maps.Keys(sums)) {
		with[string(sums[id])] = append(with[string(sums[id])], id)
	}
	if len(with) == 1 {
		return len(sums), nil, nil
	}
	n.metrics.stateDifferences.Inc()
	most := ""
	for sum, ids := range with {
		if len(ids) > n.members()/2 {
			most = sum
		}
	}
	if most == "" {
		var parts []string
		for _, sum := range slices.Sorted(maps.Keys(with)) {
			parts = append(parts, fmt.Sprintf("%v have %x", with[sum], sum[:8]))
		}
		return 0, nil, fmt.Errorf("%w at entry %d of the log, and too few answer to tell who is right: %s", ErrUndecided, index, strings.Join(parts, ", "))
	}
	for id, sum := range sums {
		if string(sum) != most {
			wrong = append(wrong, id)
		}
	}
	slices.Sort(wrong)
	ctx, cancel := context.WithTimeout(ctx, verdictPatience)
	defer cancel()
	verdict := &pb.StateRequest{Cluster: n.cfg.Cluster(), Index: index, Verdict: []byte(most)}
	for _, a := range n.askState(ctx, verdict, wrong...) {
		switch {
		case a.err != nil:
			err = errors.Join(err, fmt.Errorf("metaserver %d has another state than most, and could not be told: %w", a.id, a.err))
		case len(a.reply.Sum) == 0:
			err = errors.Join(err, fmt.Errorf("metaserver %d has another state than most, and has forgotten which: the next comparison tells it", a.id))
		}
	}
	if slices.Contains(wrong, n.cfg.ID) {
		n.condemn(differs(index, sums[n.cfg.ID], []byte(most)))
	}
	return len(with[most]), wrong, err
}

func (n *Node) members() int { return len(n.raft.GetConfiguration().Configuration().Servers) }

// answer is what a member said.
type answer struct {
	id    uint64
	reply *pb.StateReply
	err   error
}

// askState asks the other members, or only those of them that are named, at once.
func (n *Node) askState(ctx context.Context, req *pb.StateRequest, only ...uint64) []answer {
	var wg sync.WaitGroup
	members := n.Members()
	out := make([]answer, 0, len(members))
	for _, m := range members {
		if m.Id == n.cfg.ID || len(only) > 0 && !slices.Contains(only, m.Id) {
			continue
		}
		out = append(out, answer{id: m.Id})
		a := &out[len(out)-1]
		wg.Go(func() {
			a.reply, a.err = n.askMember(ctx, m.Address, &pb.StateRequest{Cluster: req.Cluster, Index: req.Index, Verdict: req.Verdict, Member: m.Id})
		})
	}
	wg.Wait()
	return out
}

func (n *Node) askMember(ctx context.Context, address string, req *pb.StateRequest) (*pb.StateReply, error) {
	conn, err := n.cfg.Pool.Get(address)
	if err != nil {
		return nil, err
	}
	return pb.NewPeerClient(conn).State(ctx, req)
}
