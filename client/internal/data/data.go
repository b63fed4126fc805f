// Package data is the data path of a client: it turns reads and writes of files into reads and appends of chunks. It knows
// inodes and their extents, and nothing of names.
//
// What it promises:
//
//   - Reads, sizes and truncation of a File see this client's own writes in program order, committed or not: what is still
//     buffered lies over what is sent to chunk servers, and that over the extents that metadata has.
//   - A write is published by one metadata commit, after its bytes, of a code the shards of them, are held by every live target
//     of their chunks and by no fewer than the layout's minimum (on their disks, for a durable commit). Until then nobody else
//     sees any of it. A target that alone holds this up is passed over after a second or so (lag.go).
//   - A chunk server that fails or stalls costs the writer a new chunk, never an error: bytes are kept in memory until
//     enough servers have them on disk, committed or not, and read back from those that have should others be lost before
//     the commit. All servers may lose power at once, again and again: what they lost is written again, and what was committed
//     of it relocated. Only if this client, too, ends before can a commit that was not durable be lost.
//   - A read returns bytes that match the checksums their writer sent, or that are computed from shards that do, or waits, or
//     fails with EIO when no copy, or too few shards, can be good.
//   - Memory for data that is not known to be on disk is bounded for the whole Store; a write that does not fit waits.
//   - An error of work in the background is returned once, by the next write, commit or close of the file it befell.
package data

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Meta is what the data path needs of the metadata client. Errors carry an errno where the metaserver refused; a Result
// may carry it instead.
type Meta interface {
	// Commit applies c exactly once, however often it must be asked. When it returned, Extents shows what c published.
	Commit(ctx context.Context, c *pb.Commit) (*pb.Result, error)
	// Relocate has extents refer to where their bytes were written again, exactly once.
	Relocate(ctx context.Context, r *pb.Relocate) error
	// AllocChunks takes up to count new chunks of a layout (zero: the cluster's default), or of what can be done of it now.
	// EAGAIN: too few servers are up.
	AllocChunks(ctx context.Context, layout chunk.Layout, count int, avoid []chunk.ServerID) ([]*pb.AllocatedChunk, error)
	// SealChunks gives chunks up.
	SealChunks(ctx context.Context, chunks []*pb.ChunkCommit) error
	// Extents answers from what is cached under the lease, unless fresh. length 0: to the end of the extent block.
	Extents(ctx context.Context, inode, off, length uint64, fresh bool) (*pb.ExtentsReply, error)
	// Server says where a chunk server is and what the metaserver thinks of it.
	Server(ctx context.Context, id chunk.ServerID) (address string, state pb.ServerState, err error)
	// Leaving returns the chunk servers that are being drained, and those that the metaserver takes for dead. It does not block.
	Leaving() (drained, dead []chunk.ServerID)
	// ReportServer tells the metaserver that a server (id 0: only its copy of a chunk) failed this client. It does not block.
	ReportServer(id chunk.ServerID, c chunk.ID, err error)
	Session() uint64
	// SessionGen changes whenever the session was lost and another was opened.
	SessionGen() uint64
	Cluster() []byte
}

// Defaults of a StoreConfig.
const (
	DefaultMemory = 256 << 20
	DefaultCache  = 128 << 20

	minMemory            = 8 << 20
	defaultStallTimeout  = 3 * time.Second
	defaultLagTimeout    = time.Second
	defaultIdleTimeout   = 30 * time.Second
	defaultSyncAfter     = 2 * time.Second
	defaultCommitAfter   = 5 * time.Second
	defaultReadTimeout   = time.Second
	defaultClosePatience = 3 * time.Second
)

// StoreConfig says what a Store works with. Meta and Pool are required.
type StoreConfig struct {
	Meta       Meta
	Pool       *rpc.Pool
	Memory     int64 // bytes of written data that is not known to be on the disks of enough servers; 0: DefaultMemory, at least 8 MiB
	CacheBytes int64 // bytes of chunk data kept for reading; 0: DefaultCache, negative: none
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: metrics are not exported

	StallTimeout  time.Duration // a target that acknowledges nothing for so long is given up; 0: 3 s
	LagTimeout    time.Duration // so long a target alone may hold up what somebody waits for and enough others have; 0: 1 s
	IdleTimeout   time.Duration // open chunks that nothing was written to for so long are given up; 0: 30 s
	SyncAfter     time.Duration // written data that servers have only received is brought to their disks after so long; 0: 2 s
	CommitAfter   time.Duration // what was written is published after so long if nobody asks for it before; 0: 5 s
	ReadTimeout   time.Duration // a replica that does not answer for so long has the next one asked beside it; 0: 1 s
	ClosePatience time.Duration // Close waits for metadata and disks for so long; 0: 3 s
}

func (c *StoreConfig) setDefaults() error {
	if c.Meta == nil || c.Pool == nil {
		return errors.New("data: a store needs a metadata client and a connection pool")
	}
	if c.Memory <= 0 {
		c.Memory = DefaultMemory
	}
	c.Memory = max(c.Memory, minMemory)
	if c.CacheBytes == 0 {
		c.CacheBytes = DefaultCache
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	setDefault(&c.StallTimeout, defaultStallTimeout)
	setDefault(&c.LagTimeout, defaultLagTimeout)
	setDefault(&c.IdleTimeout, defaultIdleTimeout)
	setDefault(&c.SyncAfter, defaultSyncAfter)
	setDefault(&c.CommitAfter, defaultCommitAfter)
	setDefault(&c.ReadTimeout, defaultReadTimeout)
	setDefault(&c.ClosePatience, defaultClosePatience)
	return nil
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d <= 0 {
		*d = v
	}
}

// Store is the data path of one file system: its open files, the chunks it writes, and its cache of chunk data.
type Store struct {
	cfg     StoreConfig
	meta    Meta
	log     *slog.Logger
	metrics *metrics
	buffers *buffers
	health  *health
	writer  *writer
	reader  *reader

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  tasks
	closed atomic.Bool

	mu    sync.Mutex
	files map[uint64]*File
}

// NewStore starts a data path. Close ends it.
func NewStore(cfg StoreConfig) (*Store, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, meta: cfg.Meta, log: cfg.Logger, files: map[uint64]*File{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.buffers = newBuffers(cfg.Memory, s.relieve)
	s.health = newHealth(cfg.Meta, &s.tasks)
	s.reader = newReader(s)
	s.writer = newWriter(s)
	s.metrics = newMetrics(s, cfg.Registerer)
	s.writer.start()
	s.tasks.run(s.commitOld)
	return s, nil
}

// File returns the inode's File with one reference more; Close gives it back. attr is what the metaserver last said of the
// inode.
func (s *Store) File(inode uint64, attr *pb.Attr) *File {
	s.mu.Lock()
	f := s.files[inode]
	if f == nil {
		f = newFile(s, inode)
		s.files[inode] = f
	}
	f.refs++
	s.mu.Unlock()
	f.Observe(attr)
	return f
}

// Close publishes what is still dirty as far as that is possible within a few seconds, waits as long for the disks of chunk
// servers, gives the open chunks up, and returns when everything has ended. It returns the errors of files whose data could not be
// published. That published data may not be on enough disks yet is only logged.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.ClosePatience)
	defer cancel()
	files := s.list()
	errs := make([]error, len(files))
	var commits sync.WaitGroup
	for i, f := range files { // all at once: one that has to wait must not take the time of the others
		if f.Dirty() || f.owes() {
			commits.Go(func() { errs[i] = f.finish(ctx) })
		}
	}
	commits.Wait()
	s.writer.shutdown(ctx)
	s.cancel()
	s.tasks.wait()
	s.reader.close()
	return errors.Join(errs...)
}

// list returns the files that are open or dirty.
func (s *Store) list() []*File {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := make([]*File, 0, len(s.files))
	for _, f := range s.files {
		files = append(files, f)
	}
	return files
}

// drop forgets a file that is neither open nor dirty.
func (s *Store) drop(f *File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.refs == 0 && s.files[f.inode] == f && !f.Dirty() {
		delete(s.files, f.inode)
	}
}

// relieve sends what files have buffered, so that a writer that waits for memory gets it: need bytes and, as buffers are
// seldom full, some more. What was sent before is brought to the servers' disks.
func (s *Store) relieve(need int64) {
	s.writer.bringAll()
	var later []*File
	for _, f := range s.list() {
		switch n := f.buffered(); {
		case n == 0:
		case n <= smallestBuffer && need > 0: // would rather go inline
			later = append(later, f)
		default:
			f.flush()
			need -= int64(n)
		}
	}
	for _, f := range later {
		if need <= 0 {
			return
		}
		f.flush()
		need -= smallestBuffer
	}
}

// tasks counts goroutines in; none is counted in once wait was called.
type tasks struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// run starts fn unless wait was called before, and tells whether it did.
func (t *tasks) run(fn func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Go(fn)
	return true
}

func (t *tasks) wait() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.wg.Wait()
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// backoff grows from 20 ms to 1 s.
func backoff(attempt int) time.Duration {
	return min(20*time.Millisecond<<min(attempt, 10), time.Second)
}
