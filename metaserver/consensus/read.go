package consensus

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/status"
)

// ReadIndex returns when a read of the local database that begins afterwards is linearizable: it sees everything whose
// success was reported to anyone, by any member, before the call. On a member that does not lead it fails like Propose.
//
// Why it need not wait until the log is applied: what this leader reported in its term it had applied before; what others
// reported in earlier terms lies before the first entry of this term, which IsLeader says is applied; and what a later
// leader may report cannot have happened before the call, because a majority, asked after it, still knew no later term.
func (n *Node) ReadIndex(ctx context.Context) error {
	if !n.IsLeader() {
		return n.notLeading()
	}
	n.metrics.reads.Inc()
	if n.voters() == 1 {
		return nil // nobody else can lead
	}
	r := n.reads.join()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

func (n *Node) voters() (count int) {
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			count++
		}
	}
	return count
}

// round is one confirmation and the reads that wait for it.
type round struct {
	done chan struct{}
	err  error // set before done is closed
}

func (r *round) finish(err error) {
	r.err = err
	close(r.done)
}

// rounds hands reads to the next round.
type rounds struct {
	mu     sync.Mutex
	next   *round // nil until a read wants one
	closed error  // what reads get once nobody makes rounds any more
	wanted chan struct{}
}

func newRounds() *rounds { return &rounds{wanted: make(chan struct{}, 1)} }

// join returns the round that begins after this call.
func (q *rounds) join() *round {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		r := &round{done: make(chan struct{})}
		r.finish(q.closed)
		return r
	}
	if q.next == nil {
		q.next = &round{done: make(chan struct{})}
		select {
		case q.wanted <- struct{}{}:
		default:
		}
	}
	return q.next
}

// begin takes the reads that came so far; nil when there are none.
func (q *rounds) begin() *round {
	q.mu.Lock()
	defer q.mu.Unlock()
	r := q.next
	q.next = nil
	return r
}

func (q *rounds) close(err error) {
	q.mu.Lock()
	q.closed = err
	q.mu.Unlock()
	if r := q.begin(); r != nil {
		r.finish(err)
	}
}

// confirmReads makes a round whenever reads want one, until stop is closed.
func (n *Node) confirmReads() {
	defer n.reads.close(errStopping())
	for {
		select {
		case <-n.stop:
			return
		case <-n.reads.wanted:
		}
		if r := n.reads.begin(); r != nil {
			r.finish(n.confirm())
		}
	}
}

// confirm returns nil when a majority, asked after the call began, still follows this leader.
func (n *Node) confirm() error {
	l := n.lead.Load()
	if l == nil || !n.IsLeader() {
		return n.notLeading()
	}
	n.metrics.confirmations.Inc()
	number := n.acks.begin()
	n.raft.VerifyLeader() // sends heartbeats now; what counts are their answers, see acks
	for !n.acks.majority(n.raft.GetConfiguration().Configuration(), n.id, l.term, number) {
		select {
		case <-n.acks.changed:
		case <-l.lost:
			return n.notLeading()
		case <-n.stop:
			return errStopping()
		}
	}
	if !n.IsLeader() || n.lead.Load() != l {
		return n.notLeading()
	}
	return nil
}

// acks notes which followers said when that they know no later term than ours. raft's own VerifyLeader counts any answer
// that arrives, even one that was sent long before and lay in a socket while this process did not run.
type acks struct {
	round   atomic.Uint64
	changed chan struct{} // something was noted

	mu sync.Mutex
	by map[raft.ServerID]ack
}

type ack struct {
	term  uint64
	round uint64 // the newest one that had begun when the question was sent
	at    time.Time
}

func newAcks() *acks { return &acks{changed: make(chan struct{}, 1), by: map[raft.ServerID]ack{}} }

// begin starts a round and returns its number. Questions sent from now on belong to it.
func (a *acks) begin() uint64   { return a.round.Add(1) }
func (a *acks) current() uint64 { return a.round.Load() }

func (a *acks) confirmed(id raft.ServerID, term, round uint64) {
	a.mu.Lock()
	if old := a.by[id]; term > old.term || term == old.term && round >= old.round {
		a.by[id] = ack{term, round, time.Now()}
	}
	a.mu.Unlock()
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// majority reports whether, with self, most voters answered a question of this round or a later one in that term.
func (a *acks) majority(c raft.Configuration, self raft.ServerID, term, round uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	voters, confirmed := 0, 0
	for _, s := range c.Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if k := a.by[s.ID]; s.ID == self || k.term == term && k.round >= round {
			confirmed++
		}
	}
	return confirmed > voters/2
}

// lately reports whether a follower answered within d.
func (a *acks) lately(id raft.ServerID, d time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, ok := a.by[id]
	return ok && time.Since(k.at) < d
}
