package chunkserver

import (
	"context"
	"errors"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
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

// deletions are the chunks to be deleted and a list of those that are. Each disk deletes what it has by itself, so that one that
// hangs keeps no other waiting.
type deletions struct {
	wake  chan struct{}        // 1: something is to be sent to the disk that has it
	lanes map[*disk.Disk]*lane // set before anything is ordered

	mu      sync.Mutex
	known   map[chunk.ID]bool // of which the deletion is not over
	queue   []chunk.ID        // those that are not with a disk yet
	drops   int               // how often all was forgotten
	deleted []chunk.ID        // to be reported
}

// lane is what one disk has to delete.
type lane struct {
	wake  chan struct{} // 1: there is something to delete
	queue []chunk.ID    // guarded by deletions.mu
}

func newDeletions() *deletions {
	return &deletions{wake: make(chan struct{}, 1), lanes: map[*disk.Disk]*lane{}, known: map[chunk.ID]bool{}}
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
	q.drops++
	forget := func(ids *[]chunk.ID) {
		for _, id := range *ids {
			delete(q.known, id)
		}
		*ids = nil
	}
	forget(&q.queue)
	for _, l := range q.lanes {
		forget(&l.queue)
	}
}

// waiting returns what is not with a disk yet, and a number for send.
func (q *deletions) waiting() ([]chunk.ID, int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.queue), q.drops
}

// send gives chunks that wait to the disks that have them, unless all was dropped meanwhile: what waits now was ordered again, and
// where it is has to be found out again.
func (q *deletions) send(to map[chunk.ID]*disk.Disk, drops int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.drops != drops {
		notify(q.wake)
		return
	}
	rest := q.queue[:0]
	for _, id := range q.queue {
		d, ok := to[id]
		switch {
		case !ok:
			rest = append(rest, id)
		case d == nil: // no disk has it: it is gone
			q.over(id, true)
		default:
			l := q.lanes[d]
			l.queue = append(l.queue, id)
			notify(l.wake)
		}
	}
	if q.queue = rest; len(rest) == 0 {
		q.queue = nil
	}
}

// over ends the deletion of a chunk; q.mu is held.
func (q *deletions) over(id chunk.ID, done bool) {
	delete(q.known, id)
	if done {
		q.deleted = append(q.deleted, id)
	}
}

// take returns the next chunks for a disk to delete.
func (q *deletions) take(l *lane) []chunk.ID {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(l.queue), deleteBatch)
	batch := l.queue[:n:n]
	if l.queue = l.queue[n:]; len(l.queue) == 0 {
		l.queue = nil
	}
	return batch
}

// finish takes what a disk was given. What it has deleted may be on another one, too.
func (q *deletions) finish(batch, done []chunk.ID) {
	gone := make(map[chunk.ID]bool, len(done))
	for _, id := range done {
		gone[id] = true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range batch {
		if gone[id] {
			q.queue = append(q.queue, id)
		} else {
			q.over(id, false)
		}
	}
	notify(q.wake)
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

// runDeletions does what is ordered until ctx ends.
func (s *Server) runDeletions(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range s.store.disks {
		g.Go(func() error { s.deleteFrom(ctx, d); return nil })
	}
	g.Go(func() error {
		for {
			select {
			case <-s.deletions.wake:
				s.sendDeletions()
			case <-ctx.Done():
				return nil
			}
		}
	})
	return g.Wait()
}

// sendDeletions sends what waits to the disks that have it. A chunk of which a copy is just being made waits until that has ended;
// it never takes long, unless its disk hangs.
func (s *Server) sendDeletions() {
	ids, drops := s.deletions.waiting()
	if len(ids) == 0 {
		return
	}
	ending := s.copies.stop(ids)
	to := make(map[chunk.ID]*disk.Disk, len(ids))
	for _, id := range ids {
		if !ending[id] {
			to[id] = s.store.find(id)
		}
	}
	s.deletions.send(to, drops)
	notify(s.copies.wake) // one may have waited for a deletion
	notify(s.beat)
}

// deleteFrom deletes what one disk has to until ctx ends.
func (s *Server) deleteFrom(ctx context.Context, d *disk.Disk) {
	l := s.deletions.lanes[d]
	for {
		batch := s.deletions.take(l)
		if len(batch) == 0 {
			select {
			case <-l.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		done, err := remove(d, batch)
		if err != nil {
			s.log.Error("chunks could not be deleted; the metaserver will ask again", "count", len(batch)-len(done), "err", err)
		}
		s.metrics.deletions.Add(float64(len(done)))
		s.deletions.finish(batch, done)
	}
}

// remove deletes chunks from a disk, durably, and returns those that are gone from it for certain.
func remove(d *disk.Disk, ids []chunk.ID) ([]chunk.ID, error) {
	gone := make([]chunk.ID, 0, len(ids))
	var errs []error
	for _, id := range ids {
		if err := d.Delete(id); err != nil {
			errs = append(errs, err)
			continue
		}
		gone = append(gone, id)
	}
	if err := d.SyncDeletions(gone); err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	return gone, errors.Join(errs...)
}

// notify wakes the reader of a channel of capacity 1.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
