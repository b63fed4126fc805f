// Package cluster runs a whole shoalfs cluster inside one process: what `shoal up` is, and what tests start.
//
// Its directory holds meta-N/ for each metaserver and chunk-N/ for each chunk server, cluster.json (how many of each there
// are and where the metaservers listen, which the replicated log knows too and which therefore stays as it is), and the
// file LOCK, locked while a process runs the cluster.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoalfs/shoalfs/chunkserver"
	"github.com/shoalfs/shoalfs/metaserver"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// What a new cluster gets where the configuration does not say.
const (
	DefaultMetaservers  = 1
	DefaultChunkservers = 3
	DefaultListen       = "127.0.0.1:7400"

	maxChunkservers = 64 // in one process
)

// Config describes a cluster. What is left zero is what the directory was made with, or the default for a new one.
type Config struct {
	Dir          string // made if it is not there
	Metaservers  int    // 1, 3 or 5; cannot be changed afterwards
	Chunkservers int    // at least 1; may grow
	// Listen is the host:port of the first metaserver; the others take the ports after it. Port 0 takes free ones, and
	// keeps them in later runs.
	Listen string
	// Prepare is called when the directory is known to be free for this cluster, before anything else in it is touched: the
	// place to take what else the cluster needs, such as ports. Nil: nothing.
	Prepare                 func() error
	ScrubRate               int64                 // as chunkserver.Config has it, of each chunk server
	RepairRate              int64                 // as metaserver.Config has it
	SuspectAfter, DeadAfter time.Duration         // likewise
	Logger                  *slog.Logger          // nil: silent
	Registerer              prometheus.Registerer // nil: no metrics
}

// Cluster is a running one.
type Cluster struct {
	cfg    Config
	lock   *os.File
	metas  []*metaserver.Server
	chunks []*chunkserver.Server

	stopMetas, stopChunks context.CancelFunc
	metaRuns, chunkRuns   sync.WaitGroup
	ready                 chan struct{}
	failed                chan struct{} // closed when a part ended by itself; failure says why
	failOnce, closeOnce   sync.Once
	failure, closeErr     error
}

// New opens or makes the cluster in cfg.Dir: it takes the directory's lock and every part listens. Nothing is served
// before Start. After an error nothing is left open.
func New(cfg Config) (*Cluster, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if cfg.Registerer == nil {
		cfg.Registerer = prometheus.NewRegistry()
	}
	if err := refusePart(cfg.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, lock: lock, ready: make(chan struct{}), failed: make(chan struct{}), stopMetas: func() {}, stopChunks: func() {}}
	if err := c.open(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Cluster) open() error {
	st, err := settle(c.cfg)
	if err != nil {
		return err
	}
	if c.cfg.Prepare != nil {
		if err := c.cfg.Prepare(); err != nil {
			return err
		}
	}
	// All ports are tried before any part is made: a metaserver that came up would remember where its peers should have been.
	for _, addr := range st.Metaservers {
		if err := tryListen(addr); err != nil {
			return err
		}
	}
	if err := st.save(c.cfg.Dir); err != nil {
		return err
	}
	peers := map[uint64]string{}
	for i, addr := range st.Metaservers {
		peers[uint64(i+1)] = addr
	}
	for i, addr := range st.Metaservers {
		m, err := metaserver.New(metaserver.Config{
			ID: uint64(i + 1), Listen: addr, Advertise: addr, Dir: filepath.Join(c.cfg.Dir, partName("meta", i)), Peers: peers,
			RepairRate: c.cfg.RepairRate, SuspectAfter: c.cfg.SuspectAfter, DeadAfter: c.cfg.DeadAfter,
			Logger: c.cfg.Logger.With("part", partName("meta", i)), Registerer: c.registerer(partName("meta", i)),
		})
		if err != nil {
			return fmt.Errorf("%s: %w", partName("meta", i), err)
		}
		c.metas = append(c.metas, m)
	}
	host, _, err := net.SplitHostPort(st.Metaservers[0])
	if err != nil {
		return err
	}
	for i := range st.Chunkservers {
		s, err := chunkserver.New(chunkserver.Config{
			Listen: net.JoinHostPort(host, "0"), Dirs: []string{filepath.Join(c.cfg.Dir, partName("chunk", i))}, Meta: st.Metaservers,
			ScrubRate: c.cfg.ScrubRate,
			Logger:    c.cfg.Logger.With("part", partName("chunk", i)), Registerer: c.registerer(partName("chunk", i)),
		})
		if err != nil {
			return fmt.Errorf("%s: %w", partName("chunk", i), err)
		}
		c.chunks = append(c.chunks, s)
	}
	return nil
}

// registerer tells the metrics of the parts apart by a label.
func (c *Cluster) registerer(part string) prometheus.Registerer {
	return prometheus.WrapRegistererWith(prometheus.Labels{"part": part}, c.cfg.Registerer)
}

func partName(kind string, i int) string { return kind + "-" + strconv.Itoa(i+1) }

// Start runs every part until Close, and returns when the cluster serves: a metaserver leads and every chunk server is
// registered. ctx bounds that wait only. It is called once.
func (c *Cluster) Start(ctx context.Context) error {
	metaCtx, stopMetas := context.WithCancel(context.Background())
	chunkCtx, stopChunks := context.WithCancel(context.Background())
	c.stopMetas, c.stopChunks = stopMetas, stopChunks
	for i, m := range c.metas {
		c.metaRuns.Go(func() { c.ended(metaCtx, partName("meta", i), m.Run(metaCtx)) })
	}
	for i, m := range c.metas {
		if err := c.await(ctx, partName("meta", i), m.Ready()); err != nil {
			return err
		}
	}
	if err := c.leaveRemoved(ctx); err != nil {
		return err
	}
	for i, s := range c.chunks { // one after the other, so that the server of a new chunk-N gets the id N
		if s == nil {
			continue
		}
		c.chunkRuns.Go(func() { c.ended(chunkCtx, partName("chunk", i), s.Run(chunkCtx)) })
		if err := c.await(ctx, partName("chunk", i), s.Ready()); err != nil {
			return err
		}
	}
	c.chunks = slices.DeleteFunc(c.chunks, func(s *chunkserver.Server) bool { return s == nil })
	close(c.ready)
	return nil
}

// ended notes a part that stopped without being told to: the cluster is then not what was asked for.
func (c *Cluster) ended(ctx context.Context, part string, err error) {
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		err = errors.New("ended unexpectedly")
	}
	c.failOnce.Do(func() {
		c.failure = fmt.Errorf("%s: %w", part, err)
		close(c.failed)
	})
}

func (c *Cluster) await(ctx context.Context, part string, ready <-chan struct{}) error {
	select {
	case <-ready:
		return nil
	case <-c.failed:
		return c.failure
	case <-ctx.Done():
		return fmt.Errorf("%s is not ready yet: %w", part, context.Cause(ctx))
	}
}

// Ready is closed when Start has succeeded.
func (c *Cluster) Ready() <-chan struct{} { return c.ready }

// Failed is closed when a part has ended by itself; Err says why.
func (c *Cluster) Failed() <-chan struct{} { return c.failed }

// Err returns why a part ended by itself, nil while none has.
func (c *Cluster) Err() error {
	select {
	case <-c.failed:
		return c.failure
	default:
		return nil
	}
}

// Address is what to connect to: the metaservers' host:port, comma-separated, as client.Dial takes it.
func (c *Cluster) Address() string {
	out := ""
	for i, m := range c.metas {
		if i > 0 {
			out += ","
		}
		out += m.Address()
	}
	return out
}

// Metaservers and Chunkservers are how many of each run. Before Start, chunk servers that were removed from the cluster count.
func (c *Cluster) Metaservers() int  { return len(c.metas) }
func (c *Cluster) Chunkservers() int { return len(c.chunks) }

// Health returns what is wrong with the parts, nil when nothing is. A chunk server that was removed is no part any more.
func (c *Cluster) Health() error {
	errs := []error{c.Err()}
	for i, m := range c.metas {
		if err := m.Health(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", partName("meta", i), err))
		}
	}
	for i, s := range c.chunks {
		if err := s.Health(); err != nil && !s.Removed() {
			errs = append(errs, fmt.Errorf("%s: %w", partName("chunk", i), err))
		}
	}
	return errors.Join(errs...)
}

// Status describes the cluster as the leading metaserver sees it, or as another one does while none leads.
func (c *Cluster) Status(ctx context.Context) (*pb.StatusReply, error) {
	var other *pb.StatusReply
	var errs []error
	for _, m := range c.metas {
		st, err := m.Status(ctx)
		switch {
		case err != nil:
			errs = append(errs, err)
		case st.Space != nil: // only the leader knows the chunk servers
			return st, nil
		default:
			other = st
		}
	}
	if other != nil {
		return other, nil
	}
	return nil, errors.Join(errs...)
}

// Close stops the chunk servers, then the metaservers, and returns when everything has ended and all that was committed
// is on disk. It may be called more than once.
func (c *Cluster) Close() error {
	c.closeOnce.Do(func() {
		var errs []error
		c.stopChunks()
		c.chunkRuns.Wait()
		for _, s := range c.chunks {
			if s != nil { // else it was removed from the cluster
				errs = append(errs, s.Close())
			}
		}
		c.stopMetas()
		c.metaRuns.Wait()
		for _, m := range c.metas {
			errs = append(errs, m.Close())
		}
		errs = append(errs, c.lock.Close())
		c.closeErr = errors.Join(errs...)
	})
	return c.closeErr
}

// tryListen says whether an address is free.
func tryListen(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err == nil {
		return l.Close()
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s is in use, perhaps by another cluster: stop that, or choose another address with --listen", addr)
	}
	return fmt.Errorf("cannot listen on %s (--listen): %w", addr, err)
}
