package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Node is a member of the group of metaservers.
type Node struct {
	cfg Config
	id  raft.ServerID
	log *slog.Logger

	home      *home
	logs      *logStore
	snapshots *snapshots
	layer     *layer
	transport *transport
	acks      *acks
	raft      *raft.Raft
	metrics   *metrics

	complaints *complaints // raft's, about its peers and the network

	lead       atomic.Pointer[leading] // nil while this node does not lead, or not yet
	leadership chan bool
	reads      *rounds
	proposals  *proposals
	states     *states

	failOnce sync.Once
	failed   chan struct{} // closed after cause was set
	cause    error

	stop      chan struct{}
	wg        sync.WaitGroup
	leaveOnce sync.Once
	closing   sync.Once
	closed    error
}

// leading is a term in which this node leads and has applied an entry.
type leading struct {
	term uint64
	lost chan struct{} // closed when it is over
}

// New opens the member's directory, brings the database up to its newest snapshot, and joins the group. It calls other
// members at once and answers them as soon as the server that RegisterPeer was called with serves.
func New(cfg Config) (_ *Node, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, id: serverID(cfg.ID), log: cfg.Logger, metrics: newMetrics(),
		leadership: make(chan bool, 1), reads: newRounds(), states: newStates(), failed: make(chan struct{}), stop: make(chan struct{}),
	}
	if n.home, err = openHome(cfg.Dir, cfg.ID); err != nil {
		return nil, err
	}
	if err := n.open(); err != nil {
		return nil, errors.Join(err, n.release())
	}
	n.proposals = newProposals()
	if err := n.metrics.register(cfg.Registerer, n); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	n.wg.Go(n.watch)
	n.wg.Go(n.confirmReads)
	return n, nil
}

func serverID(id uint64) raft.ServerID { return raft.ServerID(strconv.FormatUint(id, 10)) }

// open does what can fail.
func (n *Node) open() (err error) {
	defer func() {
		if r := recover(); r != nil { // raft panics when the log lacks an entry that it should have
			err = fmt.Errorf("consensus: the log in %s is damaged: %v", n.home.logs(), r)
		}
	}()
	logger := newRaftLogger(n.log)
	n.complaints = logger.seen
	if n.logs, err = openLog(n.home.logs(), n.cfg.SegmentSize, logger, n.fail); err != nil {
		return err
	}
	if n.snapshots, err = openSnapshots(n.home.snapshots(), n.cfg.DB, n.log, n.metrics); err != nil {
		return err
	}
	if err := n.reconcile(); err != nil {
		return err
	}
	if err := n.cfg.Check(); err != nil {
		return err
	}
	n.states.skip(n.cfg.DB.Applied())
	peers := addresses{}
	for id, a := range n.cfg.Peers {
		peers[serverID(id)] = raft.ServerAddress(a)
	}
	n.layer = newLayer(n, n.cfg.Address, n.cfg.Pool, n.cfg.Cluster)
	n.transport = newTransport(n.layer, peers, max(2*time.Second, 4*n.cfg.HeartbeatTimeout), logger)
	n.acks = n.transport.acks
	conf := &raft.Config{
		ProtocolVersion:          raft.ProtocolVersionMax,
		LocalID:                  n.id,
		HeartbeatTimeout:         n.cfg.HeartbeatTimeout,
		ElectionTimeout:          n.cfg.ElectionTimeout,
		LeaderLeaseTimeout:       n.cfg.LeaderLease,
		CommitTimeout:            n.cfg.CommitTimeout,
		MaxAppendEntries:         maxAppend,
		BatchApplyCh:             true,
		TrailingLogs:             n.cfg.TrailingLogs,
		SnapshotInterval:         n.cfg.SnapshotInterval,
		SnapshotThreshold:        n.cfg.SnapshotThreshold,
		NoSnapshotRestoreOnStart: true,
		NoLegacyTelemetry:        true,
		Logger:                   logger,
	}
	cache, err := raft.NewLogCache(2*maxAppend, n.logs)
	if err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	if err := n.bootstrap(conf, cache); err != nil {
		return err
	}
	if n.raft, err = raft.NewRaft(conf, fsm{n}, cache, n.logs, n.snapshots, n.transport); err != nil {
		return fmt.Errorf("consensus: start raft: %w", err)
	}
	n.compareMembers()
	return nil
}

// bootstrap writes the membership into an empty log.
func (n *Node) bootstrap(conf *raft.Config, logs raft.LogStore) error {
	exists, err := raft.HasExistingState(logs, n.logs, n.snapshots)
	if err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	if exists {
		return nil
	}
	var members raft.Configuration
	for _, id := range slices.Sorted(maps.Keys(n.cfg.Peers)) {
		members.Servers = append(members.Servers, raft.Server{Suffrage: raft.Voter, ID: serverID(id), Address: raft.ServerAddress(n.cfg.Peers[id])})
	}
	if err := raft.BootstrapCluster(conf, logs, n.logs, n.snapshots, n.transport, members); err != nil {
		return fmt.Errorf("consensus: begin the log: %w", err)
	}
	return nil
}

// compareMembers tells when the log has other members than the configuration.
func (n *Node) compareMembers() {
	logged := map[raft.ServerID]bool{}
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		logged[s.ID] = true
	}
	for id := range n.cfg.Peers {
		if !logged[serverID(id)] {
			n.log.Warn("a configured metaserver is no member; the log decides who is", "id", id, "members", slices.Sorted(maps.Keys(logged)))
		}
	}
	if len(logged) > len(n.cfg.Peers) && len(n.cfg.Peers) > 1 {
		n.log.Warn("the log has more members than were configured; the log decides", "members", slices.Sorted(maps.Keys(logged)))
	}
}

// RegisterPeer makes a server answer the other members.
func (n *Node) RegisterPeer(s grpc.ServiceRegistrar) { pb.RegisterPeerServer(s, n.layer) }

// watch follows who leads and what fails, until Close.
func (n *Node) watch() {
	defer n.resign()
	for {
		select {
		case leads := <-n.raft.LeaderCh():
			n.resign() // also between two terms that are both ours
			if leads {
				n.takeOver()
			}
		case <-n.cfg.DB.Err():
			n.fail(n.cfg.DB.Failure())
		case <-n.failed:
		case <-n.stop:
			return
		}
		if n.failure() != nil { // it must neither lead nor vote for a state that it cannot apply
			n.resign()
			n.leave()
			<-n.stop
			return
		}
	}
}

// takeOver waits until an entry of the new term is applied, and with it all before it.
func (n *Node) takeOver() {
	term := n.raft.CurrentTerm()
	p, err := n.proposals.submit(context.Background(), func() raft.Future { return n.raft.Barrier(0) })
	if err != nil {
		return // closing
	}
	<-p.done
	if p.err != nil || n.raft.State() != raft.Leader || n.raft.CurrentTerm() != term || n.failure() != nil {
		return // LeaderCh has news, or will have
	}
	n.lead.Store(&leading{term: term, lost: make(chan struct{})})
	n.log.Info("leads the metaservers", "id", n.cfg.ID, "term", term, "index", n.AppliedIndex())
	n.publish(true)
}

// resign forgets a leadership that is over.
func (n *Node) resign() {
	if l := n.lead.Swap(nil); l != nil {
		close(l.lost)
		n.log.Info("does not lead the metaservers any more", "id", n.cfg.ID, "term", l.term)
		n.publish(false)
	}
}

// publish leaves the newest state in the channel.
func (n *Node) publish(leads bool) {
	for {
		select {
		case n.leadership <- leads:
			return
		default:
		}
		select {
		case <-n.leadership:
		default:
		}
	}
}

// HandOver makes another member the leader, once it has all of the log. It returns when that is done, or tried for about as long as
// an election takes.
func (n *Node) HandOver(id uint64) error {
	want := raft.ServerID(strconv.FormatUint(id, 10))
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.ID == want {
			return n.raft.LeadershipTransferToServer(s.ID, s.Address).Error()
		}
	}
	return fmt.Errorf("consensus: metaserver %d is no member", id)
}

// StepDown hands the leadership over if this node has it and there is somebody to take it. It returns when that is done, or was tried for
// about as long as an election takes.
func (n *Node) StepDown() {
	if n.raft.State() != raft.Leader || n.voters() < 2 {
		return
	}
	if err := n.raft.LeadershipTransfer().Error(); err != nil {
		n.log.Debug("could not hand the leadership over; the others elect a leader themselves", "error", err)
	}
}

// leave ends this node's part in the group, once: what was proposed is answered, the leadership is handed over if there is
// somebody to take it, and raft ends.
func (n *Node) leave() {
	n.leaveOnce.Do(func() {
		n.complaints.over.Store(true)
		n.proposals.close() // raft would leave them unanswered
		n.StepDown()
		f := n.raft.Shutdown()
		// Before the wait: raft's goroutines may be waiting for answers of others. Not the layer alone: raft would complain of a
		// listener that fails.
		_ = n.transport.Close() // never fails
		_ = f.Error()           // never fails
	})
}

func (n *Node) fail(cause error) {
	n.failOnce.Do(func() {
		n.cause = cause
		n.log.Error("this metaserver stopped applying the log and leaves its group", "id", n.cfg.ID, "error", cause)
		close(n.failed)
	})
}

func (n *Node) failure() error {
	select {
	case <-n.failed:
		return n.cause
	default:
		return nil
	}
}

// Failed is closed when this member cannot go on: it leaves the group, and only a new Node, over a database opened again, can
// join it. Failure says why.
func (n *Node) Failed() <-chan struct{} { return n.failed }

// Failure is nil while nothing failed.
func (n *Node) Failure() error { return n.failure() }

// Leadership tells of changes: true when this node leads and has applied an entry of its term, false when that is over. Only
// the newest state is kept, so that true after true means a new term, whose beginning was missed.
func (n *Node) Leadership() <-chan bool { return n.leadership }

// IsLeader reports whether this node leads and has applied an entry of its term. Only ReadIndex knows whether another one
// leads by now.
func (n *Node) IsLeader() bool {
	l := n.lead.Load()
	return l != nil && n.raft.State() == raft.Leader && n.raft.CurrentTerm() == l.term && n.failure() == nil
}

// Leader is the address of the leader, "" while none is known or it does not serve yet.
func (n *Node) Leader() string {
	addr, id := n.raft.LeaderWithID()
	if id == n.id && !n.IsLeader() {
		return ""
	}
	return string(addr)
}

// Term is the newest term that this node knows of.
func (n *Node) Term() uint64 { return n.raft.CurrentTerm() }

// AppliedIndex is the newest entry of the log that is applied to the database.
func (n *Node) AppliedIndex() uint64 { return n.cfg.DB.Applied() }

// LastIndex is the newest entry of this member's log.
func (n *Node) LastIndex() uint64 { return n.raft.LastIndex() }

// Members are all metaservers by id, with what this one knows of them.
func (n *Node) Members() []*pb.MetaMember {
	_, leader := n.raft.LeaderWithID()
	leads := n.IsLeader()
	var out []*pb.MetaMember
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		id, err := strconv.ParseUint(string(s.ID), 10, 64)
		if err != nil {
			continue // we write none such
		}
		m := &pb.MetaMember{Id: id, Address: string(s.Address), Leader: s.ID == leader}
		if a, ok := n.cfg.Peers[id]; ok {
			m.Address = a
		}
		switch {
		case m.Leader:
			m.State = "leader"
		case s.ID == n.id && n.failure() != nil:
			m.State = "failed"
		case s.ID == n.id:
			m.State = map[raft.RaftState]string{raft.Follower: "follower", raft.Candidate: "candidate", raft.Leader: "leader"}[n.raft.State()]
		case !leads:
			m.State = "unknown" // only the leader hears from all
		case n.acks.lately(s.ID, 2*n.cfg.HeartbeatTimeout):
			m.State = "follower"
		default:
			m.State = "unreachable"
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *pb.MetaMember) int { return int(int64(a.Id) - int64(b.Id)) })
	return out
}

// Snapshot makes the database's file hold all that is applied, and truncates the log.
func (n *Node) Snapshot() error {
	if err := n.raft.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("consensus: snapshot: %w", err)
	}
	return nil
}

// Close leaves the group and returns when all goroutines have ended. Proposals in flight are answered first. The database
// stays open.
func (n *Node) Close() error {
	n.closing.Do(func() {
		n.metrics.unregister()
		n.leave()
		close(n.stop)
		n.states.end()
		n.wg.Wait()
		n.closed = n.release()
	})
	return n.closed
}

// release closes what open opened, as far as it came.
func (n *Node) release() error {
	var err error
	if n.transport != nil {
		err = n.transport.Close()
		n.transport.CloseStreams()
		n.layer.wait()
	}
	if n.logs != nil && n.logs.WAL != nil {
		err = errors.Join(err, n.logs.Close())
	}
	return errors.Join(err, n.home.close())
}
