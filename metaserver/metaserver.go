// Package metaserver is a metadata server: it keeps names, attributes, extents and the placement of chunks in a state
// that raft replicates, serves clients and chunk servers while it leads, and follows otherwise.
//
//   - namespace is the state machine, kv where its state is, consensus what replicates it.
//   - lease knows what clients have cached, liveness which chunk servers live; both only in the leader's memory.
//   - this package wires them: the gRPC services (mutate.go, read.go, session.go, registry.go, status.go), and the duties
//     of a leader (leader.go), which begin and end with its leadership.
package metaserver

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/consensus"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Server is a metaserver.
type Server struct {
	cfg     Config
	log     *slog.Logger
	dir     *dataDir
	db      *kv.DB
	pool    *rpc.Pool
	rpc     *rpc.Server
	node    *consensus.Node
	metrics *metrics

	taking atomic.Pointer[leader] // told what is applied: set as soon as the leadership begins
	lead   atomic.Pointer[leader] // serves requests; nil while this metaserver does not lead

	ready     chan struct{}
	readyOnce sync.Once
	leaderAt  atomic.Int64 // when a leader was last known: time since started, ns
	started   time.Time
	mutations atomic.Uint64 // in this leadership
	reads     atomic.Uint64

	room     atomic.Pointer[room] // of the data directory; nil: not known
	cornered atomic.Bool          // leads, short of room, and no other metaserver could do so instead

	mu       sync.Mutex
	cancel   context.CancelFunc // of Run
	closed   bool
	running  sync.WaitGroup
	outcomes sync.WaitGroup // mutations whose callers left before the outcome was known
	closing  sync.Once
	err      error // of Close
}

// New opens the data directory and listens; Run serves. The error says what is wrong with the directory, the address or
// the configuration.
func New(cfg Config) (_ *Server, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: cfg.Logger.With("metaserver", cfg.ID), pool: new(rpc.Pool), ready: make(chan struct{}), started: time.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	// The port first: whoever finds it taken has not touched the directory.
	if s.rpc, err = rpc.NewServer(cfg.Listen, s.log); err != nil {
		return nil, err
	}
	if s.cfg.Advertise == "" {
		s.cfg.Advertise = s.rpc.Address()
		if a := cfg.Peers[cfg.ID]; a != "" {
			s.cfg.Advertise = a
		}
	}
	if s.dir, err = openDir(cfg.Dir, cfg.ID); err != nil {
		return nil, err
	}
	if s.db, err = kv.Open(s.dir.file(stateFile), kv.Options{Buckets: namespace.Buckets(), Logger: s.log}); err != nil {
		return nil, err
	}
	if err = s.startRaft(); err != nil {
		return nil, err
	}
	s.metrics = newMetrics(s)
	s.node.RegisterPeer(s.rpc)
	pb.RegisterMetaServer(s.rpc, &metaService{s: s})
	pb.RegisterRegistryServer(s.rpc, &registryService{s: s})
	s.rpc.Direct(pb.Meta_Mutate_FullMethodName, pb.Meta_Lookup_FullMethodName, pb.Meta_GetAttr_FullMethodName,
		pb.Meta_Open_FullMethodName, pb.Meta_Extents_FullMethodName, pb.Meta_ReadDir_FullMethodName)
	return s, nil
}

func (s *Server) startRaft() error {
	peers := s.cfg.Peers
	if len(peers) == 0 {
		peers = map[uint64]string{s.cfg.ID: s.cfg.Advertise}
	}
	node, err := consensus.New(consensus.Config{
		ID: s.cfg.ID, Address: s.cfg.Advertise, Dir: s.cfg.Dir, Peers: peers,
		DB: s.db, Apply: s.apply, Commands: s.cfg.knows, Check: s.checkCommands, Pool: s.pool, Cluster: s.cluster, Logger: s.log, Registerer: s.registerer(),
		HeartbeatTimeout: s.cfg.HeartbeatTimeout,
	})
	if err != nil {
		return err
	}
	s.node = node
	return nil
}

// Run serves until ctx ends or something fails that only a restart puts right: then it returns why.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	if s.closed || s.cancel != nil {
		s.mu.Unlock()
		return errors.New("the metaserver is closed, or runs already")
	}
	s.cancel = cancel
	s.running.Add(1)
	s.mu.Unlock()
	defer s.running.Done()

	s.log.Info("metaserver serves", "address", s.rpc.Address(), "advertised", s.cfg.Advertise, "dir", s.cfg.Dir, "applied", s.db.Applied())
	// Who is told to stop leads no more before it stops serving, so that clients hear at once who does.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() {
		s.node.StepDown()
		stop()
	})()
	g, ctx := errgroup.WithContext(serving)
	g.Go(s.rpc.Serve)
	g.Go(func() error { return s.watch(ctx) })
	g.Go(func() error { return s.follow(ctx) })
	g.Go(func() error { return s.watchRoom(ctx) })
	g.Go(func() error {
		<-ctx.Done()
		s.rpc.Close() // waits for the handlers
		return nil
	})
	err := g.Wait()
	if err == nil {
		s.log.Info("metaserver stopped")
	}
	return err
}

// watch returns an error when the state or the log failed.
func (s *Server) watch(ctx context.Context) error {
	select {
	case <-s.db.Err():
		return fmt.Errorf("the state in %s failed, free some space or replace the disk and start again: %w", s.cfg.Dir, s.db.Failure())
	case <-s.node.Failed():
		return fmt.Errorf("the metaserver in %s left the others: %w", s.cfg.Dir, s.node.Failure())
	case <-ctx.Done():
		return nil
	}
}

// Close stops everything and returns when it has ended. What was acknowledged is on disk.
func (s *Server) Close() error {
	s.closing.Do(func() { s.err = s.shut() })
	return s.err
}

func (s *Server) shut() error {
	s.mu.Lock()
	s.closed = true
	if s.cancel != nil {
		s.cancel()
	}
	s.mu.Unlock()
	s.running.Wait()
	var errs []error
	if s.rpc != nil {
		s.rpc.Close()
	}
	if s.node != nil {
		errs = append(errs, s.node.Close())
	}
	s.outcomes.Wait() // the node has answered
	errs = append(errs, s.pool.Close())
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	if s.metrics != nil {
		s.metrics.close()
	}
	if s.dir != nil {
		errs = append(errs, s.dir.Close())
	}
	return errors.Join(errs...)
}

// Address is where peers and clients reach this metaserver.
func (s *Server) Address() string { return s.cfg.Advertise }

// Listening is the host:port that it listens on.
func (s *Server) Listening() string { return s.rpc.Address() }

// Ready is closed when a leader is known, and serves if it is this metaserver.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Health says what keeps this metaserver from serving or following, nil when nothing does.
func (s *Server) Health() error {
	if err := s.db.Failure(); err != nil {
		return err
	}
	select {
	case <-s.node.Failed():
		return s.node.Failure()
	default:
	}
	if since := time.Since(s.started) - time.Duration(s.leaderAt.Load()); since > s.cfg.LeaderlessAfter {
		return fmt.Errorf("no leader is known for %v: are most of the %d metaservers up and reachable?", since.Round(time.Second), max(len(s.cfg.Peers), 1))
	}
	return nil
}

// cluster is the cluster's id, nil while it has none.
func (s *Server) cluster() []byte {
	var id []byte
	_ = s.db.View(func(r kv.Reader) error { // a failed database has no id to tell
		id = namespace.Totals(r).Cluster
		return nil
	})
	if len(id) == 0 {
		return nil
	}
	return id
}

// leading returns the leader's half of this metaserver, or the error that sends the caller to the one that leads.
func (s *Server) leading() (*leader, error) {
	if l := s.lead.Load(); l != nil {
		return l, nil
	}
	return nil, s.notLeader()
}

func (s *Server) notLeader() error {
	address := s.node.Leader()
	if address == s.cfg.Advertise {
		address = "" // not yet, or not any more: ask again
	}
	return rpc.ErrNotLeader(address)
}

func hexID(id []byte) string { return hex.EncodeToString(id) }
