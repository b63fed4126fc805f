package fuse_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/pprof"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/fuse"
	"github.com/shoalfs/shoalfs/internal/cluster"
	"github.com/shoalfs/shoalfs/internal/testenv"
)

// testTimeout bounds each test that mounts: what hangs is taken apart, so that no dead mount is left.
const testTimeout = 2 * time.Minute

// theCluster is one for all tests of the package; each has a directory of its own there.
var theCluster struct {
	once sync.Once
	c    *cluster.Cluster
	dir  string
	err  error
	n    int
	mu   sync.Mutex
}

func logger() *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

func startCluster() {
	s := &theCluster
	if s.dir, s.err = os.MkdirTemp("", "shoal-fuse-test-"); s.err != nil {
		return
	}
	if s.c, s.err = cluster.New(cluster.Config{Dir: s.dir, Metaservers: 1, Chunkservers: 3, Listen: "127.0.0.1:0", Logger: logger()}); s.err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s.err = s.c.Start(ctx)
}

func stopCluster() error {
	s := &theCluster
	if s.dir == "" {
		return nil
	}
	var err error
	if s.c != nil {
		err = s.c.Close()
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// sharedCluster returns the cluster's address.
func sharedCluster(t *testing.T) string {
	t.Helper()
	testenv.NeedFUSE(t)
	theCluster.once.Do(startCluster)
	if theCluster.err != nil {
		t.Fatalf("start the cluster: %v", theCluster.err)
	}
	return theCluster.c.Address()
}

func dial(t *testing.T) *client.FS {
	t.Helper()
	fs := dialTo(t, sharedCluster(t))
	t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			t.Errorf("close the client: %v", err)
		}
	})
	return fs
}

// dialTo connects to a cluster; the caller closes the client.
func dialTo(t *testing.T, address string) *client.FS {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	fs, err := client.Dial(ctx, address, client.WithLogger(logger()), client.WithName(t.Name()))
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// newSubdir makes a directory of the cluster that no other test has.
func newSubdir(t *testing.T) string {
	t.Helper()
	testenv.NeedFUSE(t)
	theCluster.mu.Lock()
	theCluster.n++
	name := fmt.Sprintf("/test-%d", theCluster.n)
	theCluster.mu.Unlock()
	fs := dial(t)
	if err := fs.Mkdir(t.Context(), name, 0o777); err != nil {
		t.Fatal(err)
	}
	return name
}

// mountAt mounts with a client of its own, until the test ends.
func mountAt(t *testing.T, o fuse.Options) (dir string, s *fuse.Server) {
	t.Helper()
	return mountOf(t, dial(t), o)
}

func mountOf(t *testing.T, fs *client.FS, o fuse.Options) (dir string, s *fuse.Server) {
	t.Helper()
	o.Logger = logger()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir = t.TempDir()
	s, err := fuse.Mount(ctx, fs, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(testTimeout, func() {
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		_ = testenv.Detach(dir) // the test has failed
		panic(t.Name() + " hangs")
	})
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
			_ = testenv.Detach(dir) // likewise
		}
		watchdog.Stop()
	})
	return dir, s
}

// mount gives a test a mount of a directory of its own.
func mount(t *testing.T) string {
	t.Helper()
	dir, _ := mountAt(t, fuse.Options{Subdir: newSubdir(t)})
	return dir
}

// twoMounts mounts one directory twice, with two clients.
func twoMounts(t *testing.T) (a, b string) {
	t.Helper()
	sub := newSubdir(t)
	a, _ = mountAt(t, fuse.Options{Subdir: sub})
	b, _ = mountAt(t, fuse.Options{Subdir: sub})
	return a, b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return data
}

func write(t *testing.T, path, data string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(data), 0o644))
}

func stat(t *testing.T, path string) syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}
