package cluster

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, cfg Config) *Cluster {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		_ = c.Close() // the test has failed already
		t.Fatal(err)
	}
	return c
}

func stop(t *testing.T, c *Cluster) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// use runs fn with a client of the cluster.
func use(t *testing.T, c *Cluster, fn func(ctx context.Context, fsys *client.FS)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	fsys, err := client.Dial(ctx, c.Address())
	if err != nil {
		t.Fatal(err)
	}
	fn(ctx, fsys)
	if err := fsys.Close(); err != nil {
		t.Error(err)
	}
}

// What was written is there after a restart, at the same addresses, and more chunk servers can join.
func TestRestartKeepsEverything(t *testing.T) {
	for _, n := range []int{1, 3} {
		dir := t.TempDir()
		c := start(t, Config{Dir: dir, Metaservers: n, Listen: "127.0.0.1:0"})
		address := c.Address()
		if got := len(strings.Split(address, ",")); got != n || c.Chunkservers() != DefaultChunkservers {
			t.Fatalf("%s, %d chunk servers", address, c.Chunkservers())
		}
		small, large := []byte("small"), make([]byte, 3<<20+17)
		for i := range large {
			large[i] = byte(i * i >> 7)
		}
		use(t, c, func(ctx context.Context, fsys *client.FS) {
			for path, data := range map[string][]byte{"/small": small, "/large": large} {
				if err := fsys.WriteFile(ctx, path, data, 0o640); err != nil {
					t.Fatal(err)
				}
			}
		})
		if err := c.Health(); err != nil {
			t.Error(err)
		}
		stop(t, c)

		c = start(t, Config{Dir: dir, Chunkservers: 5})
		if c.Address() != address || c.Metaservers() != n || c.Chunkservers() != 5 {
			t.Fatalf("%s with %d and %d, was %s", c.Address(), c.Metaservers(), c.Chunkservers(), address)
		}
		use(t, c, func(ctx context.Context, fsys *client.FS) {
			for path, want := range map[string][]byte{"/small": small, "/large": large} {
				if got, err := fsys.ReadFile(ctx, path); err != nil || string(got) != string(want) {
					t.Errorf("%s: %d bytes, %v", path, len(got), err)
				}
			}
		})
		st, err := c.Status(t.Context())
		if err != nil || len(st.Servers) != 5 || len(st.Metaservers) != n || st.Inodes != 3 {
			t.Errorf("%v, %v", st, err)
		}
		stop(t, c)
	}
}

func TestRefusals(t *testing.T) {
	refused := func(t *testing.T, cfg Config, wants ...string) {
		t.Helper()
		c, err := New(cfg)
		if err == nil {
			_ = c.Close()
			t.Fatalf("%+v was accepted", cfg)
		}
		for _, want := range wants {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("no %q in %q", want, err)
			}
		}
	}
	t.Run("numbers", func(t *testing.T) {
		dir := t.TempDir()
		refused(t, Config{Dir: dir, Listen: "127.0.0.1:0", Metaservers: 2}, "1, 3 or 5", "--metaservers")
		refused(t, Config{Dir: dir, Listen: "127.0.0.1:0", Chunkservers: -1}, "--chunkservers")
		refused(t, Config{Dir: dir, Listen: "127.0.0.1:0", Chunkservers: 1000}, "--chunkservers")
		refused(t, Config{Dir: dir, Listen: "127.0.0.1"}, "HOST:PORT")
		refused(t, Config{Dir: dir, Listen: "127.0.0.1:http"}, "no port")
		refused(t, Config{Dir: dir, Listen: "0.0.0.0:0"}, "address")
		refused(t, Config{Dir: dir, Listen: "127.0.0.1:65535", Metaservers: 3}, "65537")
		if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
			t.Errorf("a refused cluster left something: %v, %v", list, err)
		}
	})
	t.Run("what it was made with", func(t *testing.T) {
		dir := t.TempDir()
		c := start(t, Config{Dir: dir, Listen: "127.0.0.1:0", Chunkservers: 2})
		first, err := c.Address(), error(nil)
		refused(t, Config{Dir: dir}, "another `shoal up`", dir)
		stop(t, c)
		refused(t, Config{Dir: dir, Metaservers: 3}, "1 metaserver", "--metaservers")
		refused(t, Config{Dir: dir, Chunkservers: 1}, "2 chunk servers", "--chunkservers")
		refused(t, Config{Dir: dir, Listen: "127.0.0.1:1"}, first, "--listen")
		l, err := net.Listen("tcp", first)
		if err != nil {
			t.Fatal(err)
		}
		refused(t, Config{Dir: dir}, first+" is in use", "--listen")
		_ = l.Close()
		c = start(t, Config{Dir: dir, Listen: "127.0.0.1:0"})
		if c.Address() != first {
			t.Errorf("moved from %s to %s", first, c.Address())
		}
		stop(t, c)
	})
	t.Run("a port in use touches nothing", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		dir := t.TempDir()
		refused(t, Config{Dir: dir, Listen: l.Addr().String()}, l.Addr().String()+" is in use", "--listen")
		for _, name := range []string{stateFile, "meta-1", "chunk-1"} {
			if _, err := os.Lstat(filepath.Join(dir, name)); !os.IsNotExist(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	t.Run("directories", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "meta-1"), 0o700); err != nil {
			t.Fatal(err)
		}
		refused(t, Config{Dir: dir, Listen: "127.0.0.1:0"}, "meta-1", stateFile)
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, Config{Dir: file, Listen: "127.0.0.1:0"}, file)
	})
	t.Run("cluster.json", func(t *testing.T) {
		for content, want := range map[string]string{
			"":  "damaged",
			"{": "damaged",
			`{"version":1,"metaservers":["127.0.0.1:7400"],"chunkservers":0}`:            "damaged",
			`{"version":1,"metaservers":["127.0.0.1:7400","b:1"],"chunkservers":3}`:      "damaged",
			`{"version":1,"metaservers":["nonsense"],"chunkservers":3}`:                  "damaged",
			`{"version":1,"metaservers":["127.0.0.1:0"],"chunkservers":3}`:               "damaged",
			`{"version":2,"metaservers":["127.0.0.1:7400"],"chunkservers":3}`:            "newer",
			`{"version":1,"x":"` + strings.Repeat("x", maxState) + `","chunkservers":3}`: "at most",
		} {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			refused(t, Config{Dir: dir}, stateFile, want)
		}
	})
}

// A cluster that was made but never started closes, and can be opened again.
func TestCloseWithoutStart(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		c, err := New(Config{Dir: dir, Listen: "127.0.0.1:0"})
		if err != nil {
			t.Fatal(err)
		}
		stop(t, c)
		stop(t, c)
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"version":1,"metaservers":["127.0.0.1:7400"],"chunkservers":3}`))
	f.Add([]byte(`{"version":9}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseState("cluster.json", b)
		if err == nil && (len(st.Metaservers) == 0 || st.Chunkservers < 1) {
			t.Errorf("%q gave %+v", b, st)
		}
	})
}

// A chunk server that was removed from the cluster does not keep it from starting, and joins anew with an empty directory.
func TestRemovedServer(t *testing.T) {
	dir := t.TempDir()
	var log testenv.Log
	c := start(t, Config{Dir: dir, Chunkservers: 4, Listen: "127.0.0.1:0", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	use(t, c, func(ctx context.Context, fsys *client.FS) {
		if err := fsys.RemoveServer(ctx, 2, false); err != nil {
			t.Fatal(err)
		}
	})
	log.Await(t, "this chunk server, number 2, was removed")
	if err := c.Health(); err != nil {
		t.Error(err)
	}
	stop(t, c)
	ids := func() (out []uint32) {
		c = start(t, Config{Dir: dir})
		use(t, c, func(ctx context.Context, fsys *client.FS) {
			servers, err := fsys.Servers(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range servers {
				out = append(out, s.Id)
			}
		})
		if err := c.Health(); err != nil || c.Chunkservers() != len(out) {
			t.Error(c.Chunkservers(), err)
		}
		stop(t, c)
		slices.Sort(out)
		return out
	}
	if got := ids(); !slices.Equal(got, []uint32{1, 3, 4}) {
		t.Errorf("%v", got)
	}
	if err := os.RemoveAll(filepath.Join(dir, "chunk-2")); err != nil {
		t.Fatal(err)
	}
	if got := ids(); !slices.Equal(got, []uint32{1, 3, 4, 5}) {
		t.Errorf("%v", got)
	}
}
