package metaserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/lease"
	"github.com/shoalfs/shoalfs/metaserver/liveness"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	"github.com/shoalfs/shoalfs/metaserver/repair"
	"github.com/shoalfs/shoalfs/metaserver/rewrite"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	pollInterval = 250 * time.Millisecond // of states of chunk servers
	tickInterval = time.Second            // of sessions and deletions
	retryDelay   = 100 * time.Millisecond
	maxExpired   = 4096 // sessions ended by one command
)

// leader is what a metaserver is and does beyond following, for one leadership.
type leader struct {
	s     *Server
	log   *slog.Logger
	term  uint64
	since time.Time
	ctx   context.Context
	end   context.CancelFunc
	done  chan struct{}

	table    *lease.Table
	live     *liveness.Tracker
	repair   *repair.Engine
	rewrite  *rewrite.Engine
	orderers []orderer // the more urgent first
	horizon  horizon
	checking sync.Mutex             // held by the one check of the cluster that may run
	differs  atomic.Pointer[string] // what is wrong with the states of the metaservers; nil: nothing that is known

	mu    sync.Mutex
	beats map[chunk.ServerID]*heartbeats // the stream of each chunk server
	// checks are shards that servers are to look at; scrubs is how far they are with the full scrub of that number.
	checks    map[chunk.ServerID][]uint64
	doubts    map[placed]uint64 // shards that the state may count as whole yet although they are not, see lost
	scrubs    map[chunk.ServerID]*pb.ScrubProgress
	scrubPass uint64
	audits    map[chunk.ServerID]*auditing
}

// follow starts and stops the duties of the leader with the leadership, until ctx ends.
func (s *Server) follow(ctx context.Context) error {
	var l *leader
	defer func() { s.dismiss(l) }()
	tick := time.NewTicker(retryDelay)
	defer tick.Stop()
	for {
		select {
		case leads := <-s.node.Leadership():
			// Also between two leaderships that follow each other: in between, another may have led.
			s.dismiss(l)
			l = nil
			if leads {
				l = s.promote(ctx)
			}
		case <-tick.C:
			s.observe()
		case <-ctx.Done():
			return nil
		}
	}
}

// observe keeps Ready and Health up to date.
func (s *Server) observe() {
	address := s.node.Leader()
	if address == "" || address == s.cfg.Advertise && s.lead.Load() == nil {
		return
	}
	s.leaderAt.Store(int64(time.Since(s.started)))
	s.readyOnce.Do(func() { close(s.ready) })
}

func (s *Server) promote(ctx context.Context) *leader {
	l := &leader{
		s: s, log: s.log, term: s.node.Term(), since: time.Now(), done: make(chan struct{}),
		table: lease.New(lease.Config{Lease: s.cfg.LeaseTTL, Margin: s.cfg.LeaseMargin, Session: s.cfg.SessionTTL}),
		live:  liveness.New(liveness.Config{SuspectAfter: s.cfg.SuspectAfter, DeadAfter: s.cfg.DeadAfter}),
		beats: map[chunk.ServerID]*heartbeats{}, checks: map[chunk.ServerID][]uint64{}, doubts: map[placed]uint64{}, scrubs: map[chunk.ServerID]*pb.ScrubProgress{},
		audits: map[chunk.ServerID]*auditing{},
	}
	l.repair = repair.New(repairCluster{l}, repair.Config{Logger: s.log, SuspectAfter: s.cfg.SuspectAfter})
	l.rewrite = rewrite.New(rewriteCluster{repairCluster{l}}, s.rewriteConfig())
	l.orderers = []orderer{l.repair, l.rewrite}
	l.ctx, l.end = context.WithCancel(ctx)
	s.taking.Store(l)
	go func() {
		defer close(l.done)
		if err := l.run(); err != nil && l.ctx.Err() == nil {
			l.log.Error("the duties of the leader failed", "error", err)
		}
	}()
	return l
}

func (s *Server) dismiss(l *leader) {
	if l == nil {
		return
	}
	s.lead.CompareAndSwap(l, nil)
	s.taking.CompareAndSwap(l, nil)
	l.end()
	l.table.Close()
	<-l.done
	s.log.Info("this metaserver does not lead any more", "term", l.term, "led", time.Since(l.since).Round(time.Millisecond))
}

// run takes the leadership up, serves, and does the duties until it ends.
func (l *leader) run() error {
	if err := l.takeUp(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(l.ctx)
	g.Go(func() error { return l.every(ctx, pollInterval, l.poll) })
	g.Go(func() error { return l.every(ctx, tickInterval, l.expireSessions) })
	g.Go(func() error { return l.every(ctx, tickInterval, l.noteTime) })
	g.Go(func() error { return l.every(ctx, tickInterval, l.settleDoubts) })
	g.Go(func() error { return l.every(ctx, tickInterval, l.raiseCommands) })
	g.Go(func() error { return l.every(ctx, l.s.cfg.StateCheckEvery, l.checkStates) })
	g.Go(func() error { return l.repair.Run(ctx) })
	g.Go(func() error { return l.rewrite.Run(ctx) })
	return g.Wait()
}

// takeUp waits until all of earlier leaderships is applied, makes the cluster if there is none, and opens the doors.
func (l *leader) takeUp() error {
	for {
		err := l.open()
		if err == nil {
			return nil
		}
		l.log.Warn("cannot take the leadership up yet", "term", l.term, "error", err)
		select {
		case <-time.After(retryDelay):
		case <-l.ctx.Done():
			return l.ctx.Err()
		}
	}
}

func (l *leader) open() error {
	s := l.s
	if err := s.node.ReadIndex(l.ctx); err != nil {
		return err
	}
	if s.cluster() == nil {
		if err := l.initCluster(); err != nil {
			return err
		}
	}
	var totals namespace.TotalsRecord
	var sessions []uint64
	var servers []namespace.ServerRecord
	if err := s.db.ViewContext(l.ctx, func(r kv.Reader) error {
		totals, sessions, servers = namespace.Totals(r), namespace.Sessions(r), namespace.Servers(r)
		return nil
	}); err != nil {
		return err
	}
	for i := range servers {
		l.live.Add(known(&servers[i]))
	}
	l.table.Start(sessions)
	s.mutations.Store(0)
	s.reads.Store(0)
	s.lead.Store(l)
	s.observe()
	l.log.Info("this metaserver leads", "term", l.term, "cluster", hexID(totals.Cluster), "sessions", len(sessions), "chunkservers", len(servers), "inodes", totals.Inodes)
	return nil
}

func known(r *namespace.ServerRecord) liveness.Server {
	return liveness.Server{ID: r.ID, UUID: hexID(r.UUID), Address: r.Address, Domain: r.Domain, Draining: r.Draining}
}

func (l *leader) initCluster() error {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	res, err := l.own(&pb.Op{Op: &pb.Op_InitCluster{InitCluster: &pb.InitCluster{
		Cluster: id, Time: time.Now().UnixNano(),
		Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid()), // as mkfs does for the user who makes a file system
	}}})
	if err != nil {
		return err
	}
	l.log.Info("made a new cluster", "cluster", hexID(res.Cluster))
	return nil
}

// own proposes a command of the leader itself. A Result with an errno is an error here.
func (l *leader) own(op *pb.Op) (*pb.Result, error) {
	if err := l.admit(op); err != nil {
		return nil, err
	}
	res, err := l.s.node.Propose(l.ctx, &pb.Command{Version: namespace.VersionOf(op), Time: time.Now().UnixNano(), Op: op})
	if err != nil {
		return nil, err
	}
	if res.Errno != 0 {
		return nil, fserr.New(syscall.Errno(res.Errno), "%s", res.Message)
	}
	return res, nil
}

// every calls f until ctx ends. An error of f is logged, once until it changes.
func (l *leader) every(ctx context.Context, d time.Duration, f func() error) error {
	tick := time.NewTicker(d)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		switch err := f(); {
		case err == nil || ctx.Err() != nil:
			last = ""
		case err.Error() != last:
			last = err.Error()
			l.log.Warn("a duty of the leader failed; it is tried again", "error", err)
		}
	}
}

// poll notices chunk servers that come and go.
func (l *leader) poll() error {
	changes := l.live.Poll()
	if len(changes) > 0 {
		l.repair.Changed()
	}
	for _, c := range changes {
		level := slog.LevelInfo
		if c.To > pb.ServerState_SERVER_STATE_HEALTHY {
			level = slog.LevelWarn
		}
		l.log.Log(l.ctx, level, "a chunk server changed state", "server", c.Server.ID, "address", c.Server.Address,
			"from", stateName(c.From), "to", stateName(c.To), "reason", c.Reason)
	}
	return nil
}

func stateName(s pb.ServerState) string {
	switch s {
	case pb.ServerState_SERVER_STATE_HEALTHY:
		return "healthy"
	case pb.ServerState_SERVER_STATE_SUSPECT:
		return "suspect"
	case pb.ServerState_SERVER_STATE_DEAD:
		return "dead"
	}
	return "unknown"
}

// expireSessions ends the sessions of clients that went silent, by a command in the log.
func (l *leader) expireSessions() error {
	ids := l.table.Expired()
	if len(ids) == 0 {
		return nil
	}
	ids = ids[:min(len(ids), maxExpired)]
	if _, err := l.own(&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: ids}}}); err != nil {
		return fmt.Errorf("end %d expired sessions: %w", len(ids), err)
	}
	l.log.Info("ended sessions of clients that went silent", "sessions", ids, "silent", l.s.cfg.SessionTTL)
	return nil
}

// noteTime remembers how far the state's clock was, for deletions to be old enough.
func (l *leader) noteTime() error {
	return l.s.db.ViewContext(l.ctx, func(r kv.Reader) error {
		l.horizon.note(time.Now(), namespace.Totals(r).Clock, l.s.db.Applied())
		return nil
	})
}

// grace is how long a chunk stays on the servers after it went from the state: a client may use what it cached so long.
func (l *leader) grace() time.Duration { return l.s.cfg.LeaseTTL + l.s.cfg.LeaseMargin }

// horizon tells which entries of the state are surely older than some duration, though the clock of the state is not that
// of this leader: it remembers what that clock said when. Entries have the time of the command that made them.
type horizon struct {
	mu      sync.Mutex
	samples []sample
}

type sample struct {
	at    time.Time
	clock int64
	index uint64
}

const maxSamples = 256

func (h *horizon) note(at time.Time, clock int64, index uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.samples); n > 0 && h.samples[n-1].index == index {
		return // nothing happened since
	}
	if len(h.samples) == maxSamples {
		h.samples = append(h.samples[:0], h.samples[1:]...)
	}
	h.samples = append(h.samples, sample{at, clock, index})
}

// before returns a time of the state's clock such that every entry older than that was made at least age ago.
// index is the applied index now.
func (h *horizon) before(now time.Time, age time.Duration, index uint64) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := len(h.samples) - 1; i >= 0; i-- {
		s := h.samples[i]
		if now.Sub(s.at) < age {
			continue
		}
		if s.index == index {
			return s.clock + 1 // nothing was applied since
		}
		return s.clock // later commands may have the same time
	}
	return 0
}

// apply is what raft calls for each command: the state machine, and then, before anyone can see what it did, the leader's
// own tables.
func (s *Server) apply(t kv.Txn, index uint64, cmd *pb.Command) *pb.Result {
	res := namespace.Apply(t, index, cmd)
	if l := s.taking.Load(); l != nil && res.GetErrno() == 0 && !res.GetMismatch() {
		l.applied(cmd, res)
		// What an earlier command recorded may be old by now: only a fresh result can be cached, see leased.
		res.Leased = res.Index == index
	}
	return res
}

func (l *leader) applied(cmd *pb.Command, res *pb.Result) {
	switch op := cmd.GetOp().GetOp().(type) {
	case *pb.Op_MakeNode:
		if a := res.Attr; a != nil {
			l.table.Made(cmd.Session, cmd.Sequence, a.Inode, a.Mode&syscall.S_IFMT == syscall.S_IFREG)
		}
	case *pb.Op_Unlink:
		l.kept(res.Attr, op.Unlink.Holders)
	case *pb.Op_Rename:
		l.kept(res.Replaced, op.Rename.Holders)
	case *pb.Op_ReleaseInodes:
		l.table.Released(cmd.Session, op.ReleaseInodes.Inodes)
	case *pb.Op_OpenSession:
		l.table.Opened(res.Session)
	case *pb.Op_CloseSession:
		l.table.Ended(cmd.Session)
	case *pb.Op_ExpireSessions:
		for _, id := range op.ExpireSessions.Sessions {
			l.table.Ended(id)
		}
	case *pb.Op_RegisterServer:
		r := op.RegisterServer
		l.live.Add(liveness.Server{ID: chunk.ServerID(res.Server), UUID: hexID(r.Uuid), Address: r.Address, Domain: r.Domain, Draining: l.live.Draining(chunk.ServerID(res.Server))})
	case *pb.Op_SetServer:
		l.live.SetDraining(chunk.ServerID(op.SetServer.Server), op.SetServer.Draining)
		l.repair.Changed()
	case *pb.Op_RemoveServer:
		l.live.Remove(chunk.ServerID(op.RemoveServer.Server))
		l.cutOff(chunk.ServerID(op.RemoveServer.Server))
		l.repair.Changed()
	}
}

// kept tells the sessions for which an inode stays that may have lost its last name.
func (l *leader) kept(victim *pb.Attr, holders []uint64) {
	if victim == nil || victim.Nlink > 0 {
		return
	}
	for _, session := range holders {
		l.table.Held(session, victim.Inode)
	}
}

// fromTable turns an error of the lease table into what the caller gets.
func (l *leader) fromTable(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, lease.ErrNoSession):
		return errSessionEnded
	case errors.Is(err, lease.ErrClosed):
		return l.s.notLeader()
	case errors.Is(err, lease.ErrTooMany):
		return fserr.New(syscall.ENFILE, "%v", err)
	}
	return err
}
