package metaserver

import (
	"context"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// audit is what an inventory that somebody waits for showed, compared with the state.
type audit struct {
	shards       int // that are whole as far as the server knows
	missing, bad []chunk.ID
	kept         []chunk.ID // that should have been deleted
	foreign      uint64
	first        chunk.ID // of the foreign ones
}

// auditing is the wait for an inventory of one server.
type auditing struct {
	since time.Time
	heard time.Time // the last sign that it comes
	asked bool      // the server was
	twice bool      // what seemed missing is looked for again
	done  chan *audit
}

// audit has a server list what it holds, twice where something seems missing, as what is missing once may have been written
// since. It returns nil when the server says nothing for so long. What was found missing or damaged has been given to repair.
func (l *leader) audit(ctx context.Context, id chunk.ServerID, patience time.Duration) (*audit, error) {
	a := &auditing{since: time.Now(), heard: time.Now(), done: make(chan *audit, 1)}
	l.mu.Lock()
	l.audits[id] = a
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.audits, id)
		l.mu.Unlock()
	}()
	l.poke(id)
	tick := time.NewTicker(retryDelay)
	defer tick.Stop()
	for {
		select {
		case found := <-a.done:
			return found, nil
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		l.mu.Lock()
		silent := time.Since(a.heard)
		l.mu.Unlock()
		if silent > patience {
			return nil, nil
		}
	}
}

// auditWants tells, once, that a server is to be asked for its inventory.
func (l *leader) auditWants(id chunk.ServerID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.audits[id]
	if a == nil || a.asked {
		return false
	}
	a.asked, a.heard = true, time.Now()
	return true
}

// auditHears says that a part of an inventory arrived.
func (l *leader) auditHears(id chunk.ServerID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.audits[id]; a != nil {
		a.heard = time.Now()
	}
}

// audited hands over what an inventory showed that began to arrive at some time. unproven are shards that only it lacks.
func (l *leader) audited(id chunk.ServerID, began time.Time, unproven int, found *audit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.audits[id]
	switch {
	case a == nil || began.Before(a.since):
	case unproven > 0 && !a.twice:
		a.twice, a.asked, a.heard = true, false, time.Now()
	default:
		select {
		case a.done <- found:
		default: // it has one
		}
	}
}
