package chunkserver

import (
	"context"
	"sync"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

const (
	// maxDeletions bounds the deletions that wait to be done or to be reported. The metaserver repeats what is dropped.
	maxDeletions = 64 << 10
	// deleteBatch is how many are done between two syncs of directories.
	deleteBatch = 512
	// deletedPage is how many are reported in one heartbeat.
	deletedPage = 8192
)

// deletions is a queue of chunks to be deleted and a list of those that are.
type deletions struct {
	wake chan struct{} // 1: there is something to delete

	mu      sync.Mutex
	known   map[chunk.ID]bool // queued or being deleted
	queue   []chunk.ID
	deleted []chunk.ID // to be reported
}

func newDeletions() *deletions {
	return &deletions{wake: make(chan struct{}, 1), known: map[chunk.ID]bool{}}
}

// add queues deletions that are not queued yet.
func (q *deletions) add(ids []uint64) {
	q.mu.Lock()
	for _, raw := range ids {
		if id := chunk.ID(raw); !q.known[id] && len(q.known)+len(q.deleted) < maxDeletions {
			q.known[id] = true
			q.queue = append(q.queue, id)
		}
	}
	q.mu.Unlock()
	notify(q.wake)
}

// has says whether a chunk is to be deleted, or just being so.
func (q *deletions) has(id chunk.ID) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.known[id]
}

// drop forgets what was not begun yet. The metaserver orders again what it still wants.
func (q *deletions) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range q.queue {
		delete(q.known, id)
	}
	q.queue = nil
}

// take returns the next chunks to delete.
func (q *deletions) take() []chunk.ID {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.queue), deleteBatch)
	batch := q.queue[:n:n]
	if q.queue = q.queue[n:]; len(q.queue) == 0 {
		q.queue = nil
	}
	return batch
}

// finish takes a batch out of the queue; done are those to be reported.
func (q *deletions) finish(batch, done []chunk.ID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range batch {
		delete(q.known, id)
	}
	q.deleted = append(q.deleted, done...)
}

// report returns chunks that are gone. They are not returned again: a report that gets lost is asked for again.
func (q *deletions) report() []uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.deleted), deletedPage)
	ids := make([]uint64, n)
	for i, id := range q.deleted[:n] {
		ids[i] = uint64(id)
	}
	if q.deleted = q.deleted[n:]; len(q.deleted) == 0 {
		q.deleted = nil
	}
	return ids
}

// runDeletions does what is queued until ctx ends.
func (s *Server) runDeletions(ctx context.Context) error {
	for {
		batch := s.deletions.take()
		if len(batch) == 0 {
			select {
			case <-s.deletions.wake:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		s.copies.stop(batch)
		done, err := s.store.remove(batch)
		if err != nil {
			s.log.Error("chunks could not be deleted; the metaserver will ask again", "count", len(batch)-len(done), "err", err)
		}
		s.metrics.deletions.Add(float64(len(done)))
		s.deletions.finish(batch, done)
		notify(s.copies.wake) // one may have waited for a deletion
		notify(s.beat)
	}
}

// notify wakes the reader of a channel of capacity 1.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
