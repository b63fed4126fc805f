// Package rewrite writes data anew where it lies badly: in chunks of which little is still referred to, in files that are in
// too many pieces, and in another layout than the policy of their file asks for. It runs on the leading metaserver.
//
// The bytes of chunks never change, so all three are one operation, a job: take a list of ranges of chunks that files refer to,
// have chunk servers make one new chunk of them (orders go out with the heartbeats, as those of repair do), and have the state
// machine replace, in the extents of these files, what still refers to the ranges by the corresponding part of the new chunk.
// What was overwritten, cut off or deleted meanwhile refers there no more and is left alone; a chunk that nothing refers to is
// deleted as ever. So a job may be given up, or done again, at any time, and does no harm by being late.
//
// All shards of a new chunk must be cut out of the same bytes: a job one of whose sources is gone is given up, never patched.
//
// Nothing is remembered in the state but the chunks that jobs own; the next leader drops those. What to rewrite is found by
// going through the chunks, and through the extents of all files where that is worth it: there is no index from chunks to files.
package rewrite

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	tick         = 250 * time.Millisecond
	jobsAtOnce   = 16
	bytesAtOnce  = 512 << 20        // of new chunks that are being made
	perServer    = 8                // shards that one server is making
	bytesServer  = 256 << 20        // of these, bytes; one more is ordered while there are fewer
	orderAgain   = 10 * time.Second // when an order that was not answered is given again
	shardTries   = 3                // before a shard that a server cannot make counts as failed
	shardPause   = 2 * time.Second  // before a server is asked again for one that it could not make
	lastShards   = 30 * time.Second // how long a chunk that would do waits for its last shards
	jobTimeout   = 10 * time.Minute
	orderBytes   = 2 << 20   // of orders in one message
	chunksAView  = 1024      // records read in one View, which holds commands up
	extentsAView = 32 << 10  // extents looked at in one View
	blocksAView  = 1024      // likewise blocks of files
	passBytes    = 8 << 30   // rewritten in one go, before it is looked what else there is to do
	wideRange    = 1 << 20   // bytes of a range that makes cells of a code wide
	extentsAStep = 32 << 10  // of blocks remapped by one command
	maxChosen    = 64 << 10  // chunks compacted in one go
	maxFiles     = 256 << 10 // being converted
)

// Cluster is what rewriting works on.
type Cluster interface {
	// View runs fn on the state.
	View(fn func(kv.Reader) error) error
	// Propose has a command applied that belongs to no session.
	Propose(op *pb.Op) (*pb.Result, error)
	// Change makes clients drop what they cached of the inodes, and keeps them from caching it again before end is called.
	Change(ctx context.Context, inodes []uint64) (end func(), err error)
	// Servers describes all registered servers.
	Servers() []*pb.ServerInfo
	// Poke has orders taken for a server soon.
	Poke(chunk.ServerID)
	// Default is how the data of files is stored that have no policy of their own.
	Default() chunk.Layout
	// Place says how a new chunk is to be stored, cells apart, and where it may go. wait says why it cannot be made now.
	Place(want chunk.Layout) (layout chunk.Layout, candidates []*pb.Candidate, wait string)
	// Busy says why rewriting has to wait for something more urgent; empty: it need not.
	Busy() string
}

// Config of an Engine. Zero values stand for the defaults.
type Config struct {
	Logger *slog.Logger
	// LivePercent: sealed chunks of which less is referred to are compacted. 50.
	LivePercent int
	// MinGain is for how many bytes files are searched for what refers to such chunks; less has to be a tenth of all that is
	// stored, or to have waited for Patience. 64 MiB.
	MinGain uint64
	// Patience: 5 minutes.
	Patience time.Duration
	// Rest is the least time between two looks at all chunks. 10 seconds.
	Rest time.Duration
	// Quiet is how long a file in many pieces must not have changed before it is put together. 30 seconds.
	Quiet time.Duration
}

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.LivePercent <= 0 {
		c.LivePercent = 50
	}
	if c.MinGain == 0 {
		c.MinGain = 64 << 20
	}
	for d, def := range map[*time.Duration]time.Duration{&c.Patience: 5 * time.Minute, &c.Rest: 10 * time.Second, &c.Quiet: 30 * time.Second} {
		if *d <= 0 {
			*d = def
		}
	}
}

// Engine rewrites while Run runs. Its methods may be called from any goroutine.
type Engine struct {
	cfg     Config
	cluster Cluster
	log     *slog.Logger
	room    *semaphore.Weighted

	look look // Run's alone

	mu      sync.Mutex
	jobs    map[chunk.ID]*job
	files   files
	stats   Stats
	busy    string // what is more urgent now
	blocked string // why some of what was last tried could not be done
}

// New makes an Engine. It does nothing before Run.
func New(cluster Cluster, cfg Config) *Engine {
	cfg.setDefaults()
	return &Engine{
		cfg: cfg, cluster: cluster, log: cfg.Logger, room: semaphore.NewWeighted(bytesAtOnce),
		jobs: map[chunk.ID]*job{}, files: files{byInode: map[uint64]*file{}},
	}
}

// Run rewrites until ctx ends. Errors of the cluster are logged and tried again.
func (e *Engine) Run(ctx context.Context) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	last := ""
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
		err := e.step(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			last = ""
		case err.Error() != last:
			last = err.Error()
			e.log.Warn("rewriting of data cannot go on; it is tried again", "error", err)
		}
	}
}

// step does what there is to do now: what somebody asked for first, then what saves space.
func (e *Engine) step(ctx context.Context) error {
	why := e.cluster.Busy()
	e.setBusy(why)
	if why != "" {
		return nil
	}
	now := time.Now()
	if list := e.wanted(now); len(list) > 0 && !e.look.overdue(e, now) {
		return e.convert(ctx, list)
	}
	if e.look.due(e, now) {
		return e.compact(ctx, now)
	}
	return nil
}
