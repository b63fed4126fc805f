// Package chunkserver stores chunks: it takes appends and answers reads of clients, keeps the data in directories (package
// disk), and tells the metaservers how it is and what it holds.
//
// It decides nothing about the cluster: which chunks exist, where they belong and when they go is the metaservers' business.
package chunkserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/peer"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Config of a Server.
type Config struct {
	Listen     string            // host:port; port 0 takes a free one
	Advertise  string            // host:port that clients use; empty: where it listens
	Dirs       []string          // data directories, one for each disk
	Meta       []string          // host:port of the metaservers
	Domain     map[string]string // where the server stands: zone, rack, host
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Reserve    uint64        // bytes kept free on each disk; 0: 1 GiB or 1% of it, whichever is less
	Heartbeat  time.Duration // 0: one second
	ReadMemory int64         // bytes of replies on their way to clients, at least 32 MiB for each disk; 0: 256 MiB

	// ScrubRate is how fast all chunks are read and checked for ever, in bytes a second; 0: 8 MiB, negative: not at all.
	ScrubRate int64
	// ScrubNowRate is how fast that goes when somebody asked for it; 0: as fast as the disks can.
	ScrubNowRate int64

	// Of tests:
	fs        disk.FS       // nil: the operating system's
	scrubRest time.Duration // 0: scrubRest
}

const (
	// maxStreams bounds the chunks that are written at once, and with them queues, file descriptors and indexes.
	maxStreams = 4096
	// maxReading bounds the reads that wait for one disk at once.
	maxReading = 128
	// maxSealing bounds the chunks that are sealed beside the streams that wrote them.
	maxSealing = 64
)

// Server is a chunk server.
type Server struct {
	cfg     Config
	log     *slog.Logger
	rpc     *rpc.Server
	pool    rpc.Pool
	store   *store
	metrics *metrics

	shares   map[*disk.Disk]*share
	local    *disk.Memory // of replies
	sealing  chan struct{}
	streams  atomic.Int64
	unplaced *semaphore.Weighted // bytes of frames that wait to be written, of chunks for which no disk was chosen yet

	orders    orders
	deletions *deletions
	copies    *copies
	copyRate  *throttle
	copyPass  *passage
	scrubs    *scrubs
	beat      chan struct{} // 1: there is something to tell the metaserver at once
	relist    chan struct{} // 1: the inventory is to be sent: a disk failed, or more is damaged than a heartbeat says
	corruptMu sync.Mutex
	corrupt   []uint64

	leader      atomic.Pointer[string]
	connected   atomic.Bool
	removed     atomic.Bool // from the cluster, as the metaserver said
	ready       chan struct{}
	readyOnce   sync.Once
	unreachable sync.Once

	receivers sync.WaitGroup // goroutines that take from streams
	sealers   sync.WaitGroup

	mu      sync.Mutex
	stop    context.CancelFunc // of the Run under way
	running sync.WaitGroup
	closed  bool

	closeOnce sync.Once
	closeErr  error
}

// New opens the data directories and listens; nothing is answered before Run.
func New(cfg Config) (*Server, error) {
	if len(cfg.Meta) == 0 {
		return nil, errors.New("chunk server: no metaserver is given")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = time.Second
	}
	if cfg.scrubRest == 0 {
		cfg.scrubRest = scrubRest
	}
	if cfg.ReadMemory == 0 {
		cfg.ReadMemory = 256 << 20
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger, shares: map[*disk.Disk]*share{}, local: disk.NewMemory(0),
		unplaced: semaphore.NewWeighted(maxQueued), sealing: make(chan struct{}, maxSealing),
		deletions: newDeletions(), copyRate: newThrottle(), copyPass: newPassage(), beat: make(chan struct{}, 1), relist: make(chan struct{}, 1), ready: make(chan struct{}),
	}
	s.copies = newCopies(s.deletions.has)
	if err := s.open(); err != nil {
		if s.rpc != nil {
			s.rpc.Close()
		}
		return nil, fmt.Errorf("chunk server: %w", err)
	}
	rpc.RegisterChunk(s.rpc, s)
	return s, nil
}

func (s *Server) open() (err error) {
	if s.rpc, err = rpc.NewServer(s.cfg.Listen, s.log); err != nil {
		return err
	}
	s.metrics = newMetrics(s, s.cfg.Registerer)
	s.store, err = openStore(s.cfg.Dirs, disk.Options{Reserve: s.cfg.Reserve, Logger: s.log, OnBad: s.foundBad, OnFail: func(error) { notify(s.relist) }, OnSync: s.metrics.synced, FS: s.cfg.fs})
	if err != nil {
		return err
	}
	for _, d := range s.store.disks {
		s.shares[d] = newShare(s.cfg.ReadMemory, len(s.store.disks))
		s.deletions.lanes[d] = &lane{wake: make(chan struct{}, 1)}
	}
	s.scrubs = s.newScrubs()
	if err := s.metrics.register(); err != nil {
		return errors.Join(err, s.store.close())
	}
	return nil
}

// Address is where the server listens.
func (s *Server) Address() string { return s.rpc.Address() }

// Listening is the same.
func (s *Server) Listening() string { return s.rpc.Address() }

// Ready is closed when the server is registered with the leading metaserver.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends, and returns nil then; every other return is a failure that waiting would not mend. It is
// called once.
func (s *Server) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.stop = stop
	s.running.Add(1)
	s.mu.Unlock()
	defer s.running.Done()

	g, ctx := errgroup.WithContext(ctx)
	g.Go(s.rpc.Serve)
	g.Go(func() error { return s.runRegistry(ctx) })
	g.Go(func() error { return s.runDeletions(ctx) })
	g.Go(func() error { return s.runCopies(ctx) })
	g.Go(func() error { return s.runScrubs(ctx) })
	g.Go(func() error {
		<-ctx.Done()
		s.rpc.Close() // ends all calls; their chunks are sealed
		return nil
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("chunk server %s: %w", s.Address(), err)
	}
	return nil
}

// Close stops the server: calls end, what was being written is made durable and sealed, the data directories are released.
// It returns when all of that is done.
func (s *Server) Close() error {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.closed = true
		if s.stop != nil {
			s.stop()
		}
		s.mu.Unlock()
		s.running.Wait()
		s.rpc.Close()
		err := s.pool.Close()
		s.receivers.Wait()
		s.sealers.Wait()
		s.metrics.unregister()
		s.closeErr = errors.Join(err, s.store.close())
	})
	return s.closeErr
}

// share is what the clients of one disk may take, so that when it hangs there is something left for the others.
type share struct {
	reading chan struct{}       // a place for each read
	network *disk.Memory        // of replies
	queued  *semaphore.Weighted // bytes of frames that wait to be written
}

// minQueued is how much may wait for one of many disks at least, in bytes.
const minQueued = 32 << 20

// newShare makes that of one of so many disks.
func newShare(memory int64, disks int) *share {
	n := int64(disks)
	return &share{make(chan struct{}, maxReading), disk.NewMemory(memory / n), semaphore.NewWeighted(max(maxQueued/n, minQueued))}
}

// memoryFor says which buffers a reply takes. A caller in the same process keeps them as long as it likes, which must not
// keep others waiting: it accounts for them itself. Only calls from the network have a peer.
func (s *Server) memoryFor(ctx context.Context, d *disk.Disk) *disk.Memory {
	if _, ok := peer.FromContext(ctx); ok {
		return s.shares[d].network
	}
	return s.local
}

// Status describes the server.
type Status struct {
	ID           chunk.ServerID // 0 before it is registered
	Cluster      string         // hexadecimal, empty before it is registered
	UUID         string
	Address      string
	Leader       string // the metaserver it is connected to, empty if none
	Disks        []*pb.DiskInfo
	Streams      int // chunks being written
	BytesRead    uint64
	BytesWritten uint64
}

// Status returns the present state.
func (s *Server) Status() Status {
	id := s.store.identity()
	st := Status{
		ID: id.Server, UUID: fmt.Sprintf("%x", id.UUID), Address: s.Address(), Disks: s.store.infos(), Streams: int(s.streams.Load()),
		BytesRead: s.metrics.bytesRead.Load(), BytesWritten: s.metrics.bytesWritten.Load(),
	}
	if !id.Cluster.IsZero() {
		st.Cluster = id.Cluster.String()
	}
	if addr := s.leader.Load(); addr != nil && s.connected.Load() {
		st.Leader = *addr
	}
	return st
}

// Removed tells whether the cluster has forgotten this server (shoal servers remove): no metaserver lets it in.
func (s *Server) Removed() bool { return !s.connected.Load() && s.removed.Load() }

// Health returns what keeps the server from its work, nil if nothing does.
func (s *Server) Health() error {
	var errs []error
	switch {
	case s.connected.Load():
	case s.Removed():
		errs = append(errs, s.errRemoved())
	default:
		errs = append(errs, errors.New("not connected to the leading metaserver"))
	}
	if s.store.working() == 0 {
		errs = append(errs, errors.New("no data directory can be written to"))
	}
	return errors.Join(errs...)
}
