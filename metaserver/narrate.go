package metaserver

import (
	"context"
	"sync"
	"time"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	sayAtMost  = 250 * time.Millisecond // between two messages, while there are few problems to tell
	sayAtLeast = time.Second            // so that the caller sees that this metaserver lives
	sayLines   = 100                    // problems in one message
)

// narrator tells the caller of a check how it gets on, neither too often nor too seldom.
type narrator struct {
	send   func(*pb.FsckReply) error
	cancel context.CancelFunc // of the check: nobody listens any more
	stop   chan struct{}
	done   chan struct{}

	mu                 sync.Mutex
	err                error // of send
	phase              string
	at, total          uint64
	found, fixed       []string // lines to be told
	sent               time.Time
	problems, repaired int // lines, in all
}

// narrate makes a narrator; close ends it.
func narrate(send func(*pb.FsckReply) error, cancel context.CancelFunc) *narrator {
	n := &narrator{send: send, cancel: cancel, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(n.done)
		tick := time.NewTicker(sayAtMost)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				n.mu.Lock()
				if len(n.found)+len(n.fixed) > 0 || time.Since(n.sent) >= sayAtLeast {
					n.flush()
				}
				n.mu.Unlock()
			case <-n.stop:
				return
			}
		}
	}()
	return n
}

// close returns the error of send, if there was one.
func (n *narrator) close() error {
	close(n.stop)
	<-n.done
	return n.err
}

func (n *narrator) progress(phase string, done, total uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.phase, n.at, n.total = phase, done, total
	n.offer()
}

func (n *narrator) problem(line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.problems++
	n.found = append(n.found, line)
	n.offer()
}

func (n *narrator) repair(line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.repaired++
	n.fixed = append(n.fixed, line)
	n.offer()
}

// offer sends what there is, if it is time.
func (n *narrator) offer() {
	if len(n.found)+len(n.fixed) >= sayLines || time.Since(n.sent) >= sayAtMost {
		n.flush()
	}
}

func (n *narrator) flush() {
	n.say(&pb.FsckReply{Phase: n.phase, Done: n.at, Total: n.total, Problems: n.found, Repaired: n.fixed})
	n.found, n.fixed = nil, nil
}

func (n *narrator) say(m *pb.FsckReply) {
	if n.err != nil {
		return
	}
	n.sent = time.Now()
	if n.err = n.send(m); n.err != nil {
		n.cancel()
	}
}

// end sends the last message, once all else was told.
func (n *narrator) end(m *pb.FsckReply) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.found)+len(n.fixed) > 0 {
		n.flush()
	}
	n.say(m)
}
