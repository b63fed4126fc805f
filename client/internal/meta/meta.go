// Package meta is the client's side of the metadata protocol: it follows the leading metaserver, keeps a session with
// it, performs every mutation exactly once, and caches attributes, names and extents as long as leases allow.
//
// Its rules: what is cached is used only while the lease runs, which is counted from when the last answered ping was sent.
// A reply is cached only if its inode was not revoked since the request was sent. Everything is dropped before the
// session is connected to another leader, and when the lease ran out. Facts about a name are ordered by the log index that
// they are true at, attributes by their version. What a mutation in flight will change is asked of the server.
package meta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Config says where the metaservers are.
type Config struct {
	Addresses  []string // host:port; one that answers is enough, the others are learnt
	Name       string   // of this client, for people to read
	Pool       *rpc.Pool
	Entries    int // inodes and names cached, and what weighs as much; 0: 100,000
	Logger     *slog.Logger
	Registerer prometheus.Registerer // may be nil
}

const defaultEntries = 100_000

// Client is a session with a cluster's metadata. It is safe for concurrent use.
type Client struct {
	log     *slog.Logger
	name    string
	conn    *conn
	cache   *cache
	reaper  *reaper
	metrics *metrics
	reports chan *pb.ReportServerRequest

	ctx    context.Context // of what runs in the background
	cancel context.CancelFunc
	group  sync.WaitGroup

	gen     atomic.Uint64
	mu      sync.Mutex
	session *session      // nil while none is open
	opened  chan struct{} // closed when a session is open
	cluster []byte
	servers map[uint32]*pb.ServerInfo
	closing bool
}

// New makes a client, which does nothing before Start.
func New(cfg Config) (*Client, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Entries <= 0 {
		cfg.Entries = defaultEntries
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	cn, err := newConn(cfg.Pool, cfg.Addresses, cfg.Logger, m)
	if err != nil {
		return nil, err
	}
	c := &Client{log: cfg.Logger, name: cfg.Name, conn: cn, metrics: m, opened: make(chan struct{}), servers: map[uint32]*pb.ServerInfo{}, reports: make(chan *pb.ReportServerRequest, 64)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.cache = newCache(cfg.Entries, m, c.background)
	c.reaper = newReaper(c)
	return c, nil
}

// Start opens the session and returns when the cluster granted a lease, or when ctx ends. A client whose Start failed
// needs Close all the same.
func (c *Client) Start(ctx context.Context) error {
	c.background(func() { c.conn.watch(c.ctx) })
	c.background(func() { c.run(c.ctx) })
	c.background(func() { c.reaper.run(c.ctx) })
	c.background(func() { c.report(c.ctx) })
	if err := c.cache.waitLease(ctx); err != nil {
		return fmt.Errorf("no metaserver lets this client in: %w", err)
	}
	return nil
}

// Troubles says why no metaserver serves this client; none while one does.
func (c *Client) Troubles() []Trouble { return c.conn.trouble() }

// Close ends the session, waiting for the cluster until ctx ends: a session that cannot be ended runs out by itself. Calls
// in flight fail.
func (c *Client) Close(ctx context.Context) error {
	c.mu.Lock()
	s := c.session
	done := c.closing
	c.closing = true
	c.mu.Unlock()
	if done {
		return nil
	}
	var err error
	if s != nil && ctx.Err() == nil {
		if err = c.closeSession(ctx, s); err != nil {
			err = fmt.Errorf("end the session: %w", err)
		}
	}
	c.mu.Lock() // so that nothing starts in the background any more
	c.cancel()
	c.mu.Unlock()
	c.conn.close()
	c.group.Wait()
	return err
}

// background runs f in a goroutine that Close waits for. It tells whether it did.
func (c *Client) background(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return false
	}
	c.group.Go(f)
	return true
}

// Observe adds a function that is told of every inode dropped from the cache other than by the client's own doing: it
// drops what it has itself and calls done. It must not block.
func (c *Client) Observe(f func(ino uint64, done func())) { c.cache.observe(f) }

// Cluster is the id of the cluster, 16 bytes.
func (c *Client) Cluster() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cluster
}

// Session is the session's number, 0 while there is none.
func (c *Client) Session() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == nil {
		return 0
	}
	return c.session.id
}

// SessionGen changes each time that the session was lost: what was uncommitted under it is gone.
func (c *Client) SessionGen() uint64 { return c.gen.Load() }

// await returns the open session, waiting for one if there is none.
func (c *Client) await(ctx context.Context) (*session, error) {
	for {
		c.mu.Lock()
		s, opened := c.session, c.opened
		c.mu.Unlock()
		if s != nil {
			return s, ctx.Err()
		}
		select {
		case <-opened:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.ctx.Done():
			return nil, errClosed
		}
	}
}

// Until is how long the cached attributes of an inode may be used; zero if they are not cached.
func (c *Client) Until(ino uint64) time.Time { return c.cache.leased(ino) }

// errUnknown says that a mutation may or may not have happened.
var errUnknown = errors.New("the session ended before the answer came; whether the operation was done is not known")
