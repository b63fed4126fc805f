package data

import (
	"fmt"
	"slices"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// lateBytes is how much may be under way to a target that is late, rather than given up: frames give up their memory without it.
const lateBytes = chunk.MaxFrame

// mark is how far a target has to get: what it has received and what it has on disk, in bytes of the chunk.
type mark struct{ received, durable uint64 }

func (t *target) reached(m mark) bool { return t.received >= m.received && t.durable >= m.durable }

// goal is what somebody waits for and as many targets as the minimum have.
func (c *openChunk) goal() mark {
	received, durable := make([]uint64, 0, len(c.targets)), make([]uint64, 0, len(c.targets))
	for _, t := range c.targets {
		if t.live && !t.late {
			received, durable = append(received, t.received), append(durable, t.durable)
		}
	}
	if len(received) < c.minimum {
		return mark{}
	}
	slices.Sort(received)
	slices.Sort(durable)
	k := len(received) - c.minimum
	return mark{received: min(c.awaited, received[k]), durable: min(c.wanted, durable[k])}
}

// passLaggards has those who wait for the minimum of targets wait no longer for others, where these have been silent since
// then, or do not get there in the time that a silent one has.
func (w *writer) passLaggards(now time.Time) {
	var pass []*target
	for c := range w.chunks {
		goal := c.goal()
		for _, t := range c.targets {
			if !t.live || t.late || t.reached(goal) {
				t.behind = time.Time{}
				continue
			}
			if t.behind.IsZero() || t.reached(t.goal) { // it gets on, if always behind the others
				t.behind, t.goal = now, goal
			}
			patience := w.s.cfg.StallTimeout
			if t.stalled(now) > w.s.cfg.LagTimeout {
				patience = min(patience, w.s.cfg.LagTimeout)
			}
			if now.Sub(t.behind) > patience && !t.cutting {
				pass = append(pass, t)
			}
		}
	}
	for _, t := range pass {
		t.c.pass(t, now)
	}
}

// pass goes on without a target. The chunk ends, which is what is still to come of it: if the target gets there in time it is named
// as a holder when the chunk is given up, else repair makes its shard anew.
func (c *openChunk) pass(t *target, now time.Time) {
	if !t.live || t.late || t.finished || c.live() <= c.minimum { // of several some lack one thing, some another
		return
	}
	w := c.w
	lag := now.Sub(t.behind).Round(time.Millisecond)
	late := fmt.Errorf("chunk %v: server %d holds up others, of whom enough are done, for %v", c.id, t.server, lag)
	if t.next-c.base < len(c.queue) || t.sent-t.received > lateBytes {
		c.drop(t, late)
		return
	}
	t.late = true
	w.health.late(t.server, now, w.s.cfg.LagTimeout)
	w.s.metrics.late.Inc()
	w.log.Warn("a chunk server is slow; going on without it", "server", t.server, "chunk", c.id, "error", late)
	c.close()
	w.leaveIdle(t.server)
	c.advance()
}

// leaveIdle ends the chunks on a server that nothing is under way to.
func (w *writer) leaveIdle(server chunk.ServerID) {
	for c := range w.chunks {
		if !c.closing && len(c.queue) == 0 && c.on(server) {
			c.close()
		}
	}
}

func (c *openChunk) on(server chunk.ServerID) bool {
	return slices.ContainsFunc(c.targets, func(t *target) bool { return t.live && t.server == server })
}
