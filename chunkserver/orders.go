package chunkserver

import (
	"sync"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// orders decides whose orders count: those of the stream that was opened last, and of no older term than any before. A
// leader that was deposed without noticing it may otherwise order what its successor decided against.
type orders struct {
	mu     sync.Mutex
	stream *beater
	term   uint64
}

// follow makes a stream the one whose orders count. What was ordered before and has not begun is dropped: the metaserver at
// the other end orders again what it wants.
func (s *Server) follow(b *beater) {
	s.orders.mu.Lock()
	defer s.orders.mu.Unlock()
	s.orders.stream = b
	s.dropOrders()
}

func (s *Server) dropOrders() {
	s.deletions.drop()
	s.copies.drop()
}

// obey takes the orders of a reply. The lock is held over all of it, so that a reply that was received just before its
// stream was given up adds nothing after follow.
func (s *Server) obey(b *beater, r *pb.HeartbeatReply) {
	o := &s.orders
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stream != b {
		return
	}
	if r.Term < o.term {
		s.log.Warn("ignored orders of a metaserver that leads no more", "term", r.Term, "newest", o.term)
		return
	}
	if r.Term > o.term {
		o.term = r.Term
		s.dropOrders()
	}
	s.copyRate.set(r.CopyRate)
	if len(r.Delete) > 0 {
		s.deletions.add(r.Delete)
	}
	s.copies.add(r.Copies)
	s.check(r.Check)
	s.scrubs.request(r.ScrubPass)
}
