// Package client is the Go SDK of shoalfs. Dial connects to a cluster; the FS that it returns has the shape of package os,
// each method with a context:
//
//	fsys, err := client.Dial(ctx, "127.0.0.1:7400")
//	...
//	err = fsys.WriteFile(ctx, "/hello", []byte("world\n"), 0o644)
//
// What one client finished is seen by every other at once: names and attributes always, data when the file was closed or
// synced and is opened afterwards. A metaserver or chunk server that does not answer makes calls wait and go on when it,
// or another, answers; they fail when their context ends.
//
// Errors are *fs.PathError or *os.LinkError and answer errors.Is(err, fs.ErrNotExist) and friends. Reading a file does not
// change its access time (as with the mount option noatime).
//
// Adapters that speak in inodes (FUSE, copies of whole trees) use Low.
package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoalfs/shoalfs/client/internal/data"
	"github.com/shoalfs/shoalfs/client/internal/meta"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Defaults of the options.
const (
	DefaultMemory = 256 << 20 // bytes of written data on their way to the servers
	DefaultCache  = 128 << 20 // bytes of file data kept for reading
	DefaultAttrs  = 100_000   // inodes and names cached, and what weighs as much: 512 bytes of inline data, 8 extents
)

// FS is a connection to a cluster. It is safe for use by any number of goroutines.
type FS struct {
	cred  Cred
	log   *slog.Logger
	pool  *rpc.Pool
	meta  *meta.Client
	store *data.Store
	low   Low

	closed atomic.Bool

	mu     sync.Mutex
	files  map[Ino]*openFile
	lately closedFiles
}

type config struct {
	cred       *Cred
	memory     int64
	cache      int64
	attrs      int
	name       string
	log        *slog.Logger
	registerer prometheus.Registerer
	idle       time.Duration // after which open chunks are given up; 0: the default
}

// Option changes how Dial connects.
type Option func(*config)

// WithCred sets on whose behalf the path API works; by default that is the user of this process with its groups.
func WithCred(c Cred) Option { return func(o *config) { o.cred = &c } }

// WithMemory bounds the bytes written but not yet acknowledged by the servers. Writers wait when it is reached.
func WithMemory(bytes int64) Option { return func(o *config) { o.memory = bytes } }

// WithCache bounds the bytes of file data kept in memory for reading; 0: none are kept.
func WithCache(bytes int64) Option { return func(o *config) { o.cache = bytes } }

// WithAttrCache bounds the number of inodes and names cached.
func WithAttrCache(entries int) Option { return func(o *config) { o.attrs = entries } }

// WithLogger sets where to log; by default slog.Default().
func WithLogger(l *slog.Logger) Option { return func(o *config) { o.log = l } }

// WithName sets what the cluster's status calls this client; by default the program's name and the host's.
func WithName(name string) Option { return func(o *config) { o.name = name } }

// WithRegisterer exports the client's metrics.
func WithRegisterer(r prometheus.Registerer) Option { return func(o *config) { o.registerer = r } }

// Dial connects to the cluster that has metaservers at the addresses (host:port, several separated by commas; one that
// answers is enough). It waits until the cluster has let the client in or ctx ends; ctx does not bound the life of the FS.
func Dial(ctx context.Context, addrs string, opts ...Option) (*FS, error) {
	o := config{memory: DefaultMemory, cache: DefaultCache, attrs: DefaultAttrs, log: slog.Default(), name: defaultName()}
	for _, opt := range opts {
		opt(&o)
	}
	if o.cache == 0 { // which data.StoreConfig takes for its default
		o.cache = -1
	}
	cred := processCred()
	if o.cred != nil {
		cred = *o.cred
	}
	var addresses []string
	for a := range strings.SplitSeq(addrs, ",") {
		if a = strings.TrimSpace(a); a != "" {
			addresses = append(addresses, a)
		}
	}
	f := &FS{cred: cred, log: o.log, pool: new(rpc.Pool), files: map[Ino]*openFile{}}
	f.low.fs = f
	var err error
	f.meta, err = meta.New(meta.Config{Addresses: addresses, Name: o.name, Pool: f.pool, Entries: o.attrs, Logger: o.log, Registerer: o.registerer})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %q: %w", addrs, err), f.pool.Close())
	}
	if err = f.meta.Start(ctx); err != nil {
		err = &ConnectError{err: err, Metaservers: problemsOf(f.meta.Troubles())}
	} else {
		f.store, err = data.NewStore(data.StoreConfig{Meta: f.meta, Pool: f.pool, Memory: o.memory, CacheBytes: o.cache, Logger: o.log, Registerer: o.registerer, IdleTimeout: o.idle})
	}
	if err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("connect to %q: %w", addrs, err), f.meta.Close(closing), f.pool.Close())
	}
	return f, nil
}

// Close publishes what is still uncommitted, ends the session and closes the connections. It waits for the cluster a few
// seconds at most; data that could not be written by then is lost, and the error says so.
func (f *FS) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	err := f.store.Close()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return errors.Join(err, f.meta.Close(ctx), f.pool.Close())
}

const closeTimeout = 3 * time.Second

// Low returns the inode API.
func (f *FS) Low() *Low { return &f.low }

// Cred returns on whose behalf the path API works.
func (f *FS) Cred() Cred { return f.cred }

// Status asks the leading metaserver how the cluster is.
func (f *FS) Status(ctx context.Context) (*pb.StatusReply, error) { return f.meta.Status(ctx) }

// Servers lists the chunk servers as the leading metaserver sees them.
func (f *FS) Servers(ctx context.Context) ([]*pb.ServerInfo, error) { return f.meta.Servers(ctx) }

// StatFS says how much fits into the cluster.
func (f *FS) StatFS(ctx context.Context) (StatFS, error) {
	s, err := f.low.StatFS(ctx)
	return s, pathError("statfs", "/", err)
}

func defaultName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return fmt.Sprintf("%s[%d]@%s", filepath.Base(os.Args[0]), os.Getpid(), host)
}

func processCred() Cred {
	c := Cred{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	groups, err := os.Getgroups()
	if err == nil {
		for _, g := range groups {
			c.Groups = append(c.Groups, uint32(g))
		}
	}
	return c
}
