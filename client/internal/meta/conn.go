package meta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	hungAfter   = 2 * time.Second  // without any answer while calls wait for one
	maxAttempt  = 15 * time.Second // after which a call is made again although the leader lives
	minBackoff  = 20 * time.Millisecond
	maxBackoff  = time.Second
	soonBackoff = 100 * time.Millisecond // at most, for as long as an election may take
	soon        = 5 * time.Second
	maxHops     = 3  // hints followed one after another before they are doubted
	maxMembers  = 64 // addresses remembered
	maxInternal = 5  // answers "internal error" before the caller gets it

	waitTold  = 5 * time.Second // without a leader before the log says so
	waitAgain = time.Minute     // after which it says so again
)

var (
	errLeft    = errors.New("the metaserver was given up")
	errClosed  = errors.New("the client is closed")
	errSession = errors.New("the session ended")
)

// target is one attempt to have a leader: calls use it until one of them, or the session stream, finds that it does not
// answer or does not lead. Then all of them go on with the next.
type target struct {
	address   string
	api       pb.MetaClient
	notBefore time.Time
	ctx       context.Context // ends when the target is given up
	cancel    context.CancelCauseFunc
	calls     atomic.Int64 // in flight, the session stream included
	heard     atomic.Int64 // the last sign of life, nanoseconds since start
}

var start = time.Now()

func (t *target) sign()                 { t.heard.Store(int64(time.Since(start))) }
func (t *target) silent() time.Duration { return time.Since(start) - time.Duration(t.heard.Load()) }

// conn follows the leader.
type conn struct {
	pool    *rpc.Pool
	log     *slog.Logger
	metrics *metrics

	mu      sync.Mutex
	seeds   []string // as configured: never forgotten
	members []string // as the leader says
	next    int      // in seeds and members, for the next target without a hint
	now     *target
	fails   int // targets given up since one last answered
	hops    int // hints followed since one last answered
	closed  bool

	troubles []Trouble // of targets given up since one last answered
	since    time.Time // the first of them
	told     time.Time // when the log last said that we wait
}

func newConn(pool *rpc.Pool, addresses []string, log *slog.Logger, m *metrics) (*conn, error) {
	if len(addresses) == 0 {
		return nil, errors.New("no metaserver address given")
	}
	if len(addresses) > maxMembers {
		return nil, fmt.Errorf("%d metaserver addresses, at most %d", len(addresses), maxMembers)
	}
	return &conn{pool: pool, log: log, metrics: m, seeds: slices.Clone(addresses)}, nil
}

// learn takes the addresses of all metaservers.
func (c *conn) learn(members []*pb.MetaMember) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = nil
	for _, m := range members {
		if m.Address != "" && len(c.members) < maxMembers && !slices.Contains(c.seeds, m.Address) {
			c.members = append(c.members, m.Address)
		}
	}
}

// current returns the target in use, once it may be tried.
func (c *conn) current(ctx context.Context) (*target, error) {
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return nil, errClosed
		}
		if c.now == nil {
			if err := c.choose("", 0); err != nil {
				c.mu.Unlock()
				return nil, err
			}
		}
		t := c.now
		c.mu.Unlock()
		wait := time.Until(t.notBefore)
		if wait <= 0 {
			return t, ctx.Err()
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-t.ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// choose makes the next target. mu is held.
func (c *conn) choose(hint string, wait time.Duration) error {
	address := hint
	if address == "" {
		all := append(slices.Clone(c.seeds), c.members...)
		address = all[c.next%len(all)]
		c.next++
	}
	cc, err := c.pool.Get(address)
	if err != nil {
		return err
	}
	if r, ok := cc.(interface{ ResetConnectBackoff() }); ok {
		r.ResetConnectBackoff()
	}
	t := &target{address: address, api: pb.NewMetaClient(cc), notBefore: time.Now().Add(wait)}
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	c.now = t
	return nil
}

// leave gives a target up because of err and chooses the next, unless that was done already.
func (c *conn) leave(t *target, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now != t || c.closed {
		return
	}
	hint := ""
	if d := rpc.Detail(err); d.GetKind() == rpc.NotLeader && c.hops < maxHops && d.Leader != t.address {
		hint = d.Leader
	}
	var wait time.Duration
	if hint != "" {
		c.hops++
	} else {
		c.hops = 0
		wait = min(minBackoff<<min(c.fails, 10), maxBackoff)
		if n := len(c.seeds) + len(c.members); c.fails < n-1 {
			wait = minBackoff // first go round once
		}
		if c.since.IsZero() || time.Since(c.since) < soon {
			wait = min(wait, soonBackoff)
		}
		c.fails++
	}
	c.noteTrouble(t.address, err)
	if c.fails == 1 || c.fails%30 == 0 {
		c.log.Info("looking for the leading metaserver", "left", t.address, "hint", hint, "attempts", c.fails, "cause", reasonOf(err))
	}
	c.metrics.leaves.Inc()
	c.now = nil
	t.cancel(errLeft)
	_ = c.choose(hint, wait) // fails when the pool is closed: current says so
}

// works notes that a target answered as a leader does.
func (c *conn) works(t *target) {
	c.mu.Lock()
	if c.now == t {
		c.fails, c.hops = 0, 0
		c.noteEnd(t.address)
	}
	c.mu.Unlock()
}

func (c *conn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.now != nil {
		c.now.cancel(errClosed)
	}
}

// call runs f against the leader until it has an answer: nil, an errno, errSession, or an error that asking again would
// not cure. Whatever else goes wrong is tried again until ctx ends. tried, if not nil, counts the attempts that may have
// been heard.
func (c *conn) call(ctx context.Context, method string, tried *int, f func(context.Context, pb.MetaClient) error) error {
	internal := 0
	for {
		t, err := c.current(ctx)
		if err != nil {
			return err
		}
		c.metrics.rpcs.WithLabelValues(method).Inc()
		err = c.attempt(ctx, t, f)
		if err == nil {
			c.works(t)
			return nil
		}
		if ctx.Err() != nil {
			if tried != nil {
				*tried++
			}
			return context.Cause(ctx)
		}
		switch kind, code := rpc.Kind(err), status.Code(err); {
		case kind == pb.ErrorDetail_ERRNO:
			c.works(t)
			return rpc.FromStatus(err)
		case kind == rpc.SessionEnded:
			c.works(t)
			return errSession
		case kind == rpc.WrongCluster, kind == rpc.TooLarge:
			return err
		case code == codes.InvalidArgument, code == codes.Unimplemented, code == codes.OutOfRange,
			code == codes.PermissionDenied, code == codes.Unauthenticated, code == codes.ResourceExhausted:
			return err
		case code == codes.Internal:
			if internal++; internal == maxInternal {
				return err
			}
		}
		if tried != nil {
			*tried++
		}
		if status.Code(err) == codes.DeadlineExceeded && t.silent() < hungAfter {
			continue
		}
		c.leave(t, err)
	}
}

// attempt runs f once. It is cancelled when the target is given up.
func (c *conn) attempt(ctx context.Context, t *target, f func(context.Context, pb.MetaClient) error) error {
	actx, cancel := context.WithTimeout(ctx, maxAttempt)
	defer cancel()
	stop := context.AfterFunc(t.ctx, cancel)
	defer stop()
	if t.calls.Add(1) == 1 {
		t.sign() // the wait begins
	}
	defer t.calls.Add(-1)
	err := f(actx, t.api)
	if actx.Err() == nil {
		t.sign()
	}
	return err
}

// watch gives up a target that leaves calls unanswered and shows no other sign of life, until ctx ends.
func (c *conn) watch(ctx context.Context) {
	tick := time.NewTicker(hungAfter / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c.mu.Lock()
		t := c.now
		c.mu.Unlock()
		if t != nil && t.calls.Load() > 0 && t.silent() > hungAfter {
			c.leave(t, fmt.Errorf("metaserver %s: no answer for %v", t.address, hungAfter))
		}
	}
}
