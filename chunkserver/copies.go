package chunkserver

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	// maxCopies bounds the copies that wait to be made or to be reported. The metaserver repeats what is dropped.
	maxCopies = 4096
	// copiesAtOnce is how many are made at the same time.
	copiesAtOnce = 4
	// stuckPoll is how often a copy is looked after, whether its disk hangs.
	stuckPoll = time.Second
	// copiedPage is how many are reported in one heartbeat.
	copiedPage = 1024
	// maxCopyError bounds the error of a report, in bytes.
	maxCopyError = 1024
)

// errDeleted is why a copy ends whose chunk is to be deleted.
var errDeleted = errors.New("the chunk is to be deleted")

// copies is a queue of copies to be made and a list of what came of them.
type copies struct {
	wake    chan struct{}       // 1: something may be begun
	deleted func(chunk.ID) bool // the chunk is to be deleted first

	mu      sync.Mutex
	known   map[chunk.ID]*copyJob // queued, being made, or not reported yet
	queue   []*copyJob            // in the order in which they were asked for: the most urgent first
	running int
	results []*pb.CopyResult
}

// copyJob is an order on its way.
type copyJob struct {
	id    chunk.ID
	order *pb.CopyOrder // not changed once the job runs
	again bool          // ordered while the chunk was to be deleted: to be made after that

	// since it runs
	cancel context.CancelCauseFunc
	ended  bool                      // its result is there
	disk   atomic.Pointer[disk.Disk] // the one that it has to wait for, as far as that is known
}

func newCopies(deleted func(chunk.ID) bool) *copies {
	return &copies{wake: make(chan struct{}, 1), deleted: deleted, known: map[chunk.ID]*copyJob{}}
}

// add queues copies. An order that is repeated changes one that has not begun: it may name other sources.
func (c *copies) add(orders []*pb.CopyOrder) {
	if len(orders) == 0 {
		return
	}
	c.mu.Lock()
	for _, o := range orders {
		id := chunk.ID(o.Stored)
		switch j := c.known[id]; {
		case j == nil && len(c.known) < maxCopies:
			j = &copyJob{id: id, order: o, again: c.deleted(id)}
			c.known[id] = j
			c.queue = append(c.queue, j)
		case j != nil && slices.Contains(c.queue, j):
			j.order = o
		}
	}
	c.mu.Unlock()
	notify(c.wake)
}

// drop forgets what was not begun yet.
func (c *copies) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, j := range c.queue {
		delete(c.known, j.id)
	}
	c.queue = nil
}

// rank orders copies: first what is about to be lost, last what only rewrites data that is safe where it is.
func rank(o *pb.CopyOrder) int {
	switch {
	case len(o.Ranges) > 0:
		return 2
	case !urgent(o):
		return 1
	}
	return 0
}

// urgent tells whether, with one more loss, there is nothing left to make what is ordered of.
func urgent(o *pb.CopyOrder) bool {
	l := chunk.LayoutOf(o.GetSource().GetLayout())
	holders := 0
	for _, server := range o.GetSource().GetServers() {
		if server != 0 {
			holders++
		}
	}
	return len(o.Ranges) == 0 && l.Parity > 0 && holders <= l.Data
}

// next takes the first job that may begin, nil if none may. A deletion that was ordered before goes first. What is urgent does not
// wait for what gives way to clients.
func (c *copies) next(ctx context.Context) (*copyJob, context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := -1
	for i, j := range c.queue {
		if !c.deleted(j.id) && (first < 0 || rank(j.order) < rank(c.queue[first].order)) {
			first = i
		}
	}
	if first < 0 {
		return nil, nil
	}
	j := c.queue[first]
	c.queue = slices.Delete(c.queue, first, first+1)
	c.running++
	ctx, j.cancel = context.WithCancelCause(ctx)
	return j, ctx
}

// finish ends a job; without a result it is as if it had never been ordered.
func (c *copies) finish(j *copyJob, result *pb.CopyResult) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	if result != nil {
		c.results = append(c.results, result)
	} else {
		delete(c.known, j.id)
	}
	j.cancel(nil)
	j.ended = true
}

// stop has none of these chunks made any more: a deletion that was ordered after a copy is the later wish. It returns those of
// which a copy has yet to end. Of the others none is made until their deletion is over.
func (c *copies) stop(ids []chunk.ID) (ending map[chunk.ID]bool) {
	ending = map[chunk.ID]bool{}
	stopped := make(map[chunk.ID]bool, len(ids))
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		stopped[id] = true
		j := c.known[id]
		if j == nil {
			continue
		}
		if i := slices.Index(c.queue, j); i >= 0 {
			if !j.again {
				c.queue = slices.Delete(c.queue, i, i+1)
				delete(c.known, id)
			}
		} else if !j.ended {
			j.cancel(errDeleted)
			ending[id] = true
		}
	}
	// Nor may a copy be reported any more that is about to be deleted.
	c.results = slices.DeleteFunc(c.results, func(r *pb.CopyResult) bool {
		gone := r.Error == "" && stopped[chunk.ID(r.Stored)]
		if gone {
			delete(c.known, chunk.ID(r.Stored))
		}
		return gone
	})
	return ending
}

// report returns results. They are not returned again: when a report gets lost, the order is repeated.
func (c *copies) report() []*pb.CopyResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(c.results), copiedPage)
	page := c.results[:n:n]
	for _, r := range page {
		delete(c.known, chunk.ID(r.Stored))
	}
	if c.results = c.results[n:]; len(c.results) == 0 {
		c.results = nil
	}
	return page
}

// count says how many wait and how many are being made.
func (c *copies) count() (queued, running int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue), c.running
}

// runCopies makes what is ordered until ctx ends.
func (s *Server) runCopies(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, copiesAtOnce)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		j, jctx := s.copies.next(ctx)
		for j == nil {
			select {
			case <-s.copies.wake:
				j, jctx = s.copies.next(ctx)
			case <-ctx.Done():
				return nil
			}
		}
		free := sync.OnceFunc(func() { <-slots })
		jctx, over := context.WithCancel(jctx)
		running.Go(func() {
			defer over()
			s.runCopy(jctx, j)
			free()
		})
		running.Go(func() {
			if j.stuck(jctx, s.store) {
				free()
			}
		})
	}
}

// stuck waits until the disk hangs that a job waits for while there are others, so that what they are to have gets its place, or
// until ctx ends.
func (j *copyJob) stuck(ctx context.Context, s *store) bool {
	for wait(ctx, stuckPoll) {
		if d := j.disk.Load(); d != nil && s.hangs(d) {
			return true
		}
	}
	return false
}

// runCopy does one order and notes what came of it.
func (s *Server) runCopy(ctx context.Context, j *copyJob) {
	n, err := s.makeCopy(ctx, j.order, &j.disk)
	if err != nil && ctx.Err() != nil {
		if err = context.Cause(ctx); !errors.Is(err, errDeleted) {
			s.copies.finish(j, nil) // the server stops
			return
		}
	}
	result := &pb.CopyResult{Stored: uint64(j.id), Bytes: n}
	switch {
	case err == nil:
		s.log.Debug("made a copy of a chunk", "chunk", j.id, "bytes", n)
	case errors.Is(err, errDeleted):
		result.Error = err.Error()
	default:
		s.log.Warn("a copy of a chunk could not be made; the metaserver decides what next", "chunk", j.id, "err", err)
		result.Error = text(err.Error()[:min(len(err.Error()), maxCopyError)])
	}
	s.metrics.copied(n, err)
	s.copies.finish(j, result)
	notify(s.deletions.wake) // one may have waited for that
	notify(s.beat)
}
