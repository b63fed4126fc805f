package meta

import (
	"context"
	"sync"
	"time"

	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

var credNone posix.Cred

// pings remembers when pings were sent.
type pings struct {
	mu   sync.Mutex
	last uint64
	at   [maxPings]time.Time // of ping n at n % maxPings
}

// next numbers a ping that is sent now.
func (p *pings) next() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last++
	p.at[p.last%maxPings] = time.Now()
	return p.last
}

// answered returns when a ping was sent, false if it is not known (any more).
func (p *pings) answered(n uint64) (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n == 0 || n > p.last || p.last-n >= maxPings {
		return time.Time{}, false
	}
	return p.at[n%maxPings], true
}

// acks gathers revocations to be acknowledged.
type acks struct {
	mu      sync.Mutex
	revokes []*pb.Revoke
}

func (a *acks) add(r *pb.Revoke) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revokes = append(a.revokes, r)
}

// take returns the answers to them, with what is open now: whatever is opened later asks the server.
func (a *acks) take(c *cache) []*pb.RevokeAck {
	a.mu.Lock()
	revokes := a.revokes
	a.revokes = nil
	a.mu.Unlock()
	out := make([]*pb.RevokeAck, 0, len(revokes))
	for _, r := range revokes {
		out = append(out, &pb.RevokeAck{Revoke: r.Id, Opened: c.openOf(r.Inodes)})
	}
	return out
}

// learnMembers asks the leader who the metaservers are.
func (c *Client) learnMembers() {
	ctx, cancel := context.WithTimeout(c.ctx, hungAfter)
	defer cancel()
	if r, err := c.Status(ctx); err == nil {
		c.conn.learn(r.Metaservers)
	}
}

func (c *Client) learnServers(servers []*pb.ServerInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range servers {
		c.servers[s.Id] = s
	}
}
