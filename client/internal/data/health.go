package data

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// A server that failed is avoided for avoidMin, twice as long each further time, up to avoidMax. One that is full is
// avoided for avoidMax at once.
const (
	avoidMin = 10 * time.Second
	avoidMax = time.Minute
	// A server that was slow to answer a read is asked last for slowFor.
	slowFor = 5 * time.Second
	// reportEvery bounds how often one server is reported for one reason.
	reportEvery = time.Second
)

// health is what this client itself saw of the chunk servers. The metaserver's view of them is in Meta.Server.
type health struct {
	meta  Meta
	tasks *tasks
	bads  atomic.Int32 // servers with failures
	slows atomic.Bool  // some server was slow at some time

	mu      sync.Mutex
	servers map[chunk.ServerID]*serverHealth
}

type serverHealth struct {
	failures    int
	full        bool      // so it said when it failed last
	last        time.Time // of the last failure
	avoid       time.Time // until when
	slow        time.Time // until when it is asked last
	late        time.Time // when it last held up others
	reported    time.Time
	outstanding atomic.Int64 // reads
}

func newHealth(meta Meta, t *tasks) *health {
	return &health{meta: meta, tasks: t, servers: map[chunk.ServerID]*serverHealth{}}
}

func (h *health) get(id chunk.ServerID) *serverHealth {
	s := h.servers[id]
	if s == nil {
		s = new(serverHealth)
		h.servers[id] = s
	}
	return s
}

// failed records that a server as a whole failed, and reports it, unless err is nil: then it was only slow.
func (h *health) failed(id chunk.ServerID, full bool, err error) {
	now := time.Now()
	h.mu.Lock()
	s := h.get(id)
	if s.failures == 0 {
		h.bads.Add(1)
	}
	if now.After(s.avoid) { // failures of many streams at once are one
		s.failures++
	}
	s.last, s.full = now, full
	wait := min(avoidMin<<min(s.failures-1, 6), avoidMax)
	if full {
		wait = avoidMax
	}
	s.avoid = now.Add(wait)
	report := err != nil && now.Sub(s.reported) >= reportEvery
	if report {
		s.reported = now
	}
	h.mu.Unlock()
	if report && !full {
		h.tasks.run(func() { h.meta.ReportServer(id, 0, err) })
	}
}

// late records that a server held up others. Any disk does so now and then; one that does it again is avoided like one that failed,
// without being reported. apart is how far apart two times are that are not one.
func (h *health) late(id chunk.ServerID, now time.Time, apart time.Duration) {
	h.mu.Lock()
	s := h.get(id)
	again := !s.late.IsZero() && now.Sub(s.late) < avoidMin
	if again && now.Sub(s.late) < apart {
		h.mu.Unlock()
		return
	}
	s.late = now
	h.mu.Unlock()
	if again {
		h.failed(id, false, nil)
	}
}

// badCopy reports that a server's copy of a chunk is missing or corrupt.
func (h *health) badCopy(id chunk.ServerID, c chunk.ID, err error) {
	h.tasks.run(func() { h.meta.ReportServer(id, c, err) })
}

// good records that a server works.
func (h *health) good(id chunk.ServerID) {
	if h.bads.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.servers[id]; s != nil && s.failures > 0 && time.Now().After(s.avoid) {
		s.failures = 0
		h.bads.Add(-1)
	}
}

// avoided returns the servers to keep away from, and which of them are full.
func (h *health) avoided() (ids, full []chunk.ServerID) {
	if h.bads.Load() == 0 {
		return nil, nil
	}
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, s := range h.servers {
		if !now.Before(s.avoid) {
			continue
		}
		if ids = append(ids, id); s.full {
			full = append(full, id)
		}
	}
	slices.Sort(ids)
	return ids, full
}

// slow records that a server did not answer a read in time: for a while others are asked first.
func (h *health) slow(id chunk.ServerID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.get(id).slow = time.Now().Add(slowFor)
	h.slows.Store(true)
}

// unready tells whether others should be asked for reads before this server.
func (h *health) unready(id chunk.ServerID) bool {
	if h.bads.Load() == 0 && !h.slows.Load() {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s, now := h.servers[id], time.Now()
	return s != nil && (now.Before(s.avoid) || now.Before(s.slow))
}

// failedSince tells whether a server failed after t.
func (h *health) failedSince(id chunk.ServerID, t time.Time) bool {
	if h.bads.Load() == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.servers[id]
	return s != nil && s.last.After(t)
}

// outstanding returns the counter of the reads that a server has not answered.
func (h *health) outstanding(id chunk.ServerID) *atomic.Int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return &h.get(id).outstanding
}
