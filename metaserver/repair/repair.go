// Package repair keeps every chunk at its full redundancy: it finds the shards that are missing, damaged, on dead servers or
// on servers being drained, has them made anew on others, the most endangered chunks first, and evens out how full servers
// are. It runs on the leading metaserver.
//
// What it must remember is in the state: which shards are whole, which are on the move. All else (the queue, what was ordered
// when) is in memory, and found again by a new leader from indexes whose size is that of the problem, not of the cluster.
//
// A move is: a command that records it (StartMoves), which seals the chunk if it is still being written; an order to the server
// that gets the shard, which pulls it from others; and when that server has it on disk, a command that puts it in the place of
// the one before (FinishMoves). An order may be given any number of times. No copy is given up before the new one is recorded.
package repair

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	tick         = 250 * time.Millisecond
	surveyEvery  = 30 * time.Second // at least so often, should an event be missed
	surveyRest   = 10               // times as long as a survey took, no other is made
	orderAgain   = 10 * time.Second // when an order that was not answered is given again
	moveTimeout  = 10 * time.Minute // after which a move that nobody finished is given up
	chunksAView  = 1024             // records read in one View, which holds commands up
	maxQueue     = 64 << 10         // chunks that wait, of each urgency; the next survey finds those left out
	maxStart     = 64               // moves started by one command
	maxFinish    = 1024             // moves ended by one command
	perTarget    = 64               // moves under way to one server
	bytesTarget  = 256 << 20        // of these, bytes; one more is started while there are fewer
	perSource    = 128              // moves under way from one server
	retryAfter   = 5 * time.Second  // before a chunk whose move failed is tried again; twice as long each time
	maxRetry     = 5 * time.Minute
	stormPart    = 3 // more than one in so many servers gone at once: the network is likelier than the disks
	stormServers = 2 // so many may always be gone
)

// Cluster is what repair works on.
type Cluster interface {
	// View runs fn on the state.
	View(fn func(kv.Reader) error) error
	// Propose has a command applied that belongs to no session.
	Propose(op *pb.Op) (*pb.Result, error)
	// Servers describes all registered servers.
	Servers() []*pb.ServerInfo
	// Domain is where a server stands, as placement wants it.
	Domain(chunk.ServerID) []string
	// Poke has orders taken for a server soon.
	Poke(chunk.ServerID)
}

// Config of an Engine. Zero values stand for the defaults.
type Config struct {
	Logger *slog.Logger
	// StormPatience is how long repair waits when many servers went away at once. 15 minutes.
	StormPatience time.Duration
	// SuspectAfter is how long a server is silent before it is suspect for that. 3 seconds.
	SuspectAfter time.Duration
}

// Engine repairs while Run runs. Its methods may be called from any goroutine.
type Engine struct {
	cfg     Config
	cluster Cluster
	log     *slog.Logger
	wake    chan struct{} // 1: something changed

	mu       sync.Mutex
	servers  map[chunk.ServerID]*server
	queue    queue
	moves    map[place]*move
	results  []result // to be recorded
	retries  map[chunk.ID]*retry
	surveyed time.Time // when the last survey began
	took     time.Duration
	stale    bool // something changed since
	found    survey
	settled  bool // the first survey with all servers known is over
	heldBack string
	blocked  blocked
	rate     rate
	copied   counters
	again    time.Time // when a chunk may be tried again whose move failed
	sheds    map[place]shed
	balanced time.Time
	excess   uint64                      // bytes that balance would move
	cursors  map[chunk.ServerID]chunk.ID // where balance looks next; Run's alone
}

// key names a shard of a chunk.
type key struct {
	chunk chunk.ID
	shard int
}

// retry is when a chunk may be tried again.
type retry struct {
	after    time.Time
	delay    time.Duration
	failures int
	// servers are where a move failed, or could not start. Others are tried first.
	servers map[chunk.ServerID]bool
}

// retry notes that a move could not be made where it was to be, and returns when there may be another. e.mu is held.
func (e *Engine) retry(m *move) *retry {
	r := e.retries[m.chunk]
	if r == nil {
		r = &retry{delay: retryAfter / 2, servers: map[chunk.ServerID]bool{}}
		e.retries[m.chunk] = r
	}
	r.servers[m.server] = true
	return r
}

type counters struct{ done, failed, bytes uint64 }

// New makes an Engine. It does nothing before Run.
func New(cluster Cluster, cfg Config) *Engine {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.StormPatience <= 0 {
		cfg.StormPatience = 15 * time.Minute
	}
	if cfg.SuspectAfter <= 0 {
		cfg.SuspectAfter = 3 * time.Second
	}
	return &Engine{
		cfg: cfg, cluster: cluster, log: cfg.Logger, wake: make(chan struct{}, 1), stale: true,
		servers: map[chunk.ServerID]*server{}, moves: map[place]*move{}, sheds: map[place]shed{}, balanced: time.Now().Add(balanceAfter), retries: map[chunk.ID]*retry{}, cursors: map[chunk.ServerID]chunk.ID{},
	}
}

// Changed says that shards were lost, or that servers came, went or are to be drained.
func (e *Engine) Changed() {
	e.mu.Lock()
	e.stale = true
	e.mu.Unlock()
	e.poke()
}

func (e *Engine) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Run repairs until ctx ends. Errors of the cluster are logged and tried again.
func (e *Engine) Run(ctx context.Context) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	last := ""
	for {
		select {
		case <-t.C:
		case <-e.wake:
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
			e.log.Warn("repair cannot go on; it is tried again", "error", err)
		}
	}
}

// step does what there is to do now.
func (e *Engine) step(ctx context.Context) error {
	now := time.Now()
	e.learn(now)
	if err := e.resume(); err != nil {
		return err
	}
	if err := e.record(); err != nil {
		return err
	}
	if err := e.expire(now); err != nil {
		return err
	}
	if e.due(now) {
		if err := e.survey(ctx, now); err != nil {
			return err
		}
	}
	return e.start(ctx, now)
}

// due tells whether it is time for a survey.
func (e *Engine) due(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	since := now.Sub(e.surveyed)
	if !e.again.IsZero() && now.After(e.again) {
		e.again, e.stale = time.Time{}, true
	}
	return since > surveyEvery || e.stale && since > surveyRest*e.took
}
