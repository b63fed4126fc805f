package repair

import (
	"fmt"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// server is a chunk server as repair sees it.
type server struct {
	id       chunk.ServerID
	address  string
	domain   []string
	state    pb.ServerState
	draining bool
	usable   bool      // a shard may be sent there
	doubtful bool      // it may where nobody else is left: it heartbeats, but is slow, comes and goes, or failed a client
	capacity uint64    // bytes
	used     uint64    // bytes of chunks on it
	free     uint64    // bytes
	died     time.Time // zero while it is not dead

	to, from int    // moves under way
	incoming uint64 // bytes of those to it
	outgoing uint64 // bytes that will be deleted from it when moves are done
	shards   uint64 // that it has by the last survey
	counted  bool   // they were, since it is dead or drained
}

func (s *server) dead() bool { return s.state == pb.ServerState_SERVER_STATE_DEAD }

// candidate is the server for placement, weighted by its size: where a chunk belongs does not change as servers fill up.
func (s *server) candidate() *pb.Candidate {
	return &pb.Candidate{Server: uint32(s.id), Weight: max(s.capacity, 1), Domain: s.domain}
}

// learn takes in how the servers are.
func (e *Engine) learn(now time.Time) {
	infos := e.cluster.Servers()
	e.mu.Lock()
	defer e.mu.Unlock()
	present := make(map[chunk.ServerID]bool, len(infos))
	for _, info := range infos {
		id := chunk.ServerID(info.Id)
		present[id] = true
		s := e.servers[id]
		if s == nil {
			s = &server{id: id}
			e.servers[id] = s
			e.stale = true
		}
		was, drained := s.state, s.draining
		s.address, s.state, s.draining = info.Address, info.State, info.Draining
		s.domain = e.cluster.Domain(id)
		s.capacity, s.free, s.used = info.Capacity, info.Free, usedBy(info)
		s.usable = s.state == pb.ServerState_SERVER_STATE_HEALTHY && !s.draining && s.capacity > 0
		silent := time.Duration(info.LastSeenMs) * time.Millisecond
		s.doubtful = s.state == pb.ServerState_SERVER_STATE_SUSPECT && silent < e.cfg.SuspectAfter && !s.draining && s.capacity > 0
		if s.dead() != (was == pb.ServerState_SERVER_STATE_DEAD) || drained != s.draining || was == pb.ServerState_SERVER_STATE_UNKNOWN && s.state != was {
			e.stale = true
		}
		if !s.dead() && !s.draining {
			s.counted = false
		}
		switch {
		case !s.dead():
			s.died = time.Time{}
		case s.died.IsZero():
			s.died = now
		}
	}
	for id := range e.servers {
		if !present[id] {
			delete(e.servers, id)
			e.stale = true
		}
	}
	e.heldBack = e.storm(now)
}

// usedBy is how many bytes of chunks a server has.
func usedBy(info *pb.ServerInfo) uint64 {
	var n uint64
	for _, d := range info.Disks {
		n += d.Used
	}
	return n
}

// storm says why repair waits: when many servers went away at once they are likely to come back together, and copying what
// they hold would only take the network and the disks from those that are left.
func (e *Engine) storm(now time.Time) string {
	gone := 0
	var first time.Time
	for _, s := range e.servers {
		if !s.dead() || now.Sub(s.died) >= e.cfg.StormPatience {
			continue
		}
		gone++
		if first.IsZero() || s.died.Before(first) {
			first = s.died
		}
	}
	if gone <= stormServers || stormPart*gone <= len(e.servers) {
		return ""
	}
	left := (e.cfg.StormPatience - now.Sub(first)).Round(time.Second)
	return fmt.Sprintf("%d of %d chunk servers went away at once, which looks like the network: repair waits %v for them to come back", gone, len(e.servers), left)
}
