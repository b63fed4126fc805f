package data

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	// suspectEvery bounds how often extents are fetched anew because of one chunk.
	suspectEvery = 10 * time.Second
	maxSuspects  = 4096
)

// moved is the chunks that are perhaps on other servers by now than the extents say that are cached: repair and drains move shards
// without a word to clients, whose reads succeed all the same, by way of other copies and of computing what is missing, but cost more.
type moved struct {
	any    atomic.Bool
	mu     sync.Mutex
	chunks map[chunk.ID]suspicion
}

type suspicion struct {
	due  bool
	last time.Time // when the extents were last fetched anew
}

// suspect notes that a server that was named has not got the chunk, or is gone.
func (m *moved) suspect(id chunk.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.chunks[id]
	if s.due || time.Since(s.last) < suspectEvery {
		return
	}
	if m.chunks == nil || len(m.chunks) >= maxSuspects {
		m.chunks = map[chunk.ID]suspicion{}
	}
	s.due = true
	m.chunks[id] = s
	m.any.Store(true)
}

// due tells whether the extents that name chunks are to be fetched anew, once for each reason that there was.
func (m *moved) due(chunks []*pb.ChunkInfo) (due bool) {
	if !m.any.Load() {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range chunks {
		if s := m.chunks[chunk.ID(c.Id)]; s.due {
			m.chunks[chunk.ID(c.Id)] = suspicion{last: time.Now()}
			due = true
		}
	}
	return due
}
