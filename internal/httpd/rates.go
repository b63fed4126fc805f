package httpd

import (
	"sync"
	"time"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// minWindow is the shortest time over which a rate is computed.
const minWindow = time.Second

// counters are totals since their server's start at one moment.
type counters struct {
	at               time.Time
	mutations, reads uint64
	servers          map[uint32]traffic
}

type traffic struct{ read, written uint64 } // bytes

// rate is what went through per second between two samples.
type rate struct{ Read, Written float64 } // bytes a second

type rates struct {
	Known            bool // false until there are two samples
	Over             time.Duration
	Mutations, Reads float64 // a second
	Total            rate
	Server           map[uint32]rate
}

// sampler keeps the last two samples that lie at least minWindow apart. Pages that are asked for drive it: nobody looking
// costs nothing.
type sampler struct {
	mu        sync.Mutex
	now       func() time.Time
	old, last *counters
}

// add takes a sample and returns the rates since the one before.
func (s *sampler) add(st *pb.StatusReply) rates {
	c := &counters{at: s.now(), mutations: st.Mutations, reads: st.Reads, servers: map[uint32]traffic{}}
	for _, v := range st.Servers {
		c.servers[v.Id] = traffic{v.BytesRead, v.BytesWritten}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil || c.at.Sub(s.last.at) >= minWindow {
		s.old, s.last = s.last, c
	}
	if s.old == nil {
		return rates{}
	}
	return between(s.old, c)
}

func between(a, b *counters) rates {
	over := b.at.Sub(a.at)
	r := rates{
		Known: true, Over: over, Server: map[uint32]rate{},
		Mutations: perSecond(a.mutations, b.mutations, over), Reads: perSecond(a.reads, b.reads, over),
	}
	for id, t := range b.servers {
		was, known := a.servers[id]
		if !known {
			continue
		}
		v := rate{perSecond(was.read, t.read, over), perSecond(was.written, t.written, over)}
		r.Server[id] = v
		r.Total.Read += v.Read
		r.Total.Written += v.Written
	}
	return r
}

// perSecond treats a counter that went backwards as one that started again at zero.
func perSecond(was, is uint64, over time.Duration) float64 {
	if is < was {
		was = 0
	}
	return float64(is-was) / over.Seconds()
}
