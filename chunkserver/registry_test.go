package chunkserver

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/internal/testenv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestInventoryAndDeletion(t *testing.T) {
	m, s := one(t)
	c := dial(t, s)
	for id := range chunk.ID(5) {
		w := c.append(id + 1)
		w.send([]byte("abc"), seal)
		w.acked(3, 0)
	}
	open := c.append(9)
	open.send([]byte("abcdef"), nil)
	open.acked(6, 0)
	m.mu.Lock()
	before := m.complete
	m.mu.Unlock()
	m.push(&pb.HeartbeatReply{WantInventory: true})
	m.until(t, "an inventory", func() bool { return m.complete > before })
	m.until(t, "all chunks", func() bool { return len(m.inventory) == 6 && m.inventory[1].Length == 3 && m.inventory[9].Length == 6 })
	m.push(&pb.HeartbeatReply{Delete: []uint64{1, 2, 9, 77}})
	m.push(&pb.HeartbeatReply{Delete: []uint64{1, 2}})
	m.until(t, "deletions", func() bool { return m.deleted[1] > 0 && m.deleted[2] > 0 && m.deleted[9] > 0 && m.deleted[77] > 0 })
	if _, err := c.read(1, 0, 3); rpc.Kind(err) != rpc.ChunkNotFound {
		t.Errorf("read of a deleted chunk: %v", err)
	}
	open.send([]byte("ghi"), nil)
	if err := open.failure(); rpc.Kind(err) != rpc.ChunkNotFound {
		t.Errorf("append to a deleted chunk: %v", err)
	}
	c.mustRead(3, 0, []byte("abc"))
	m.until(t, "the disk's chunks", func() bool { return m.last.Disks[0].Chunks == 3 && m.last.BytesWritten == 21 })
}

func TestCorruptIsReported(t *testing.T) {
	m, s := one(t)
	c := dial(t, s)
	w := c.append(1)
	w.send([]byte("abcdefgh"), func(h *pb.AppendHeader) { h.Durable, h.Seal = true, true })
	w.acked(8, 8)
	path := filepath.Join(s.cfg.Dirs[0], "chunks", "01", "0000000000000001.chunk")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[strings.Index(string(b), "abcdefgh")+2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.read(1, 0, 1); rpc.Kind(err) != rpc.ChunkCorrupt {
		t.Errorf("%v", err)
	}
	m.until(t, "a report", func() bool { return m.corrupt[1] })
	m.push(&pb.HeartbeatReply{WantInventory: true})
	m.until(t, "a bad chunk in the inventory", func() bool { return m.inventory[1] != nil && m.inventory[1].Bad })
}

// TestRestart stops a server while a chunk is being written and starts it again: it is the same server, and takes the
// chunk's appends no more.
func TestRestart(t *testing.T) {
	m := newMeta(t)
	cfg := Config{Dirs: []string{t.TempDir(), t.TempDir()}, Meta: []string{m.srv.Address()}, Domain: map[string]string{"zone": "a"}}
	s := start(t, cfg)
	s.awaitReady(t)
	c := dial(t, s)
	w := c.append(1)
	w.send([]byte("abc"), nil)
	w.acked(3, 0)
	first := s.Status()
	s.halt(t)
	if err := <-s.done; err != nil {
		t.Errorf("run: %v", err)
	}
	s = start(t, cfg)
	s.awaitReady(t)
	if got := s.Status(); got.ID != first.ID || got.UUID != first.UUID || got.Cluster != first.Cluster {
		t.Errorf("%+v, was %+v", got, first)
	}
	c = dial(t, s)
	c.mustRead(1, 0, []byte("abc"))
	w = c.append(1)
	w.length = 3
	w.send([]byte("def"), nil)
	if err := w.failure(); err == nil {
		t.Error("the chunk takes appends")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.registered[len(m.registered)-1]; r.Server != uint32(first.ID) || string(r.Cluster) != string(testCluster) || r.Domain["zone"] != "a" || r.Address != s.Address() {
		t.Errorf("%v", r)
	}
	if m.inventory[1].GetLength() != 3 {
		t.Errorf("inventory %v", m.inventory)
	}
}

func TestLeaderChanges(t *testing.T) {
	a, b, c := newMeta(t), newMeta(t), newMeta(t)
	a.depose("")
	b.depose(c.srv.Address())
	s := start(t, Config{Dirs: []string{t.TempDir()}, Meta: []string{a.srv.Address(), b.srv.Address()}}) // c is only hinted at
	s.awaitReady(t)
	c.until(t, "an inventory", func() bool { return c.complete == 1 })
	if err := s.Health(); err != nil {
		t.Error(err)
	}
	a.update(func() { a.leads = true })
	c.depose(a.srv.Address())
	a.until(t, "an inventory at the new leader", func() bool { return a.complete == 1 })
	a.depose("") // nobody leads
	b.update(func() { b.leads = true })
	b.until(t, "an inventory at a leader that was found", func() bool { return b.complete == 1 })
	b.until(t, "heartbeats", func() bool { return b.beats > 5 })
}

func TestNoMetaserver(t *testing.T) {
	s := start(t, Config{Dirs: []string{t.TempDir()}, Meta: []string{"127.0.0.1:1"}})
	if err := s.Health(); err == nil {
		t.Error("a server that nobody knows is healthy")
	}
	c := dial(t, s)
	if _, err := c.read(1, 0, 1); err == nil || !strings.Contains(err.Error(), "not joined") {
		t.Errorf("%v", err)
	}
}

func TestWrongClusterIsFatal(t *testing.T) {
	m := newMeta(t)
	cfg := Config{Dirs: []string{t.TempDir()}, Meta: []string{m.srv.Address()}}
	s := start(t, cfg)
	s.awaitReady(t)
	s.halt(t)
	m.update(func() { m.cluster = []byte("another cluster!") })
	s = start(t, cfg)
	select {
	case err := <-s.done:
		if rpc.Kind(err) != rpc.WrongCluster || !strings.Contains(err.Error(), "another cluster") {
			t.Errorf("%v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it goes on trying")
	}
}

// A server that was removed says so, once, and what to do; it is not the metaserver that was lost.
func TestRemoved(t *testing.T) {
	m := newMeta(t)
	var log testenv.Log
	dirs := []string{t.TempDir()}
	cfg := Config{Dirs: dirs, Meta: []string{m.srv.Address()}, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	s := start(t, cfg)
	s.awaitReady(t)
	m.remove()
	const want = "this chunk server, number 5, was removed from the cluster: stop it; with an empty data directory it joins anew"
	says := func() {
		t.Helper()
		m.until(t, "more attempts", func() bool { return m.refused > 3 })
		if err := s.Health(); err == nil || err.Error() != want {
			t.Errorf("health: %v", err)
		}
		if got := log.String(); strings.Count(got, want) != 1 || strings.Contains(got, "lost the metaserver") || strings.Contains(got, "no metaserver takes") {
			t.Errorf("log:\n%s", got)
		}
	}
	says()
	s.halt(t)
	log.Reset()
	m.update(func() { m.refused = 0 })
	s = start(t, cfg) // it knows its number still
	says()
	m.update(func() { m.removed = false }) // as after the metadata was restored
	s.awaitReady(t)
	if err := s.Health(); err != nil {
		t.Error(err)
	}
}

func TestBadConfig(t *testing.T) {
	m := newMeta(t)
	used := start(t, Config{Dirs: []string{t.TempDir()}, Meta: []string{m.srv.Address()}})
	used.awaitReady(t)
	other := newMeta(t)
	other.cluster = []byte("another cluster!")
	foreign := start(t, Config{Dirs: []string{t.TempDir()}, Meta: []string{other.srv.Address()}})
	foreign.awaitReady(t)
	foreign.halt(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again := start(t, Config{Dirs: []string{t.TempDir()}, Meta: []string{m.srv.Address()}})
	again.awaitReady(t)
	again.halt(t)
	dir := t.TempDir()
	for name, f := range map[string]struct {
		cfg  Config
		want string
	}{
		"port in use":       {Config{Listen: used.Address(), Dirs: []string{dir}, Meta: []string{"x:1"}}, "address already in use"},
		"no metaserver":     {Config{Listen: "127.0.0.1:0", Dirs: []string{dir}}, "no metaserver"},
		"no directory":      {Config{Listen: "127.0.0.1:0", Meta: []string{"x:1"}}, "no data directory"},
		"twice":             {Config{Listen: "127.0.0.1:0", Dirs: []string{dir, dir + "/"}, Meta: []string{"x:1"}}, "twice"},
		"in use":            {Config{Listen: "127.0.0.1:0", Dirs: used.cfg.Dirs, Meta: []string{"x:1"}}, "another process"},
		"not to be made":    {Config{Listen: "127.0.0.1:0", Dirs: []string{file + "/data"}, Meta: []string{"x:1"}}, file},
		"of two clusters":   {Config{Listen: "127.0.0.1:0", Dirs: []string{foreign.cfg.Dirs[0], again.cfg.Dirs[0]}, Meta: []string{"x:1"}}, "another cluster"},
		"unlistenable":      {Config{Listen: "nonsense", Dirs: []string{dir}, Meta: []string{"x:1"}}, "nonsense"},
		"metrics are taken": {Config{Listen: "127.0.0.1:0", Dirs: []string{dir}, Meta: []string{"x:1"}, Registerer: taken(t)}, "register metrics"},
	} {
		s, err := New(f.cfg)
		if err == nil {
			s.Close()
			t.Errorf("%s: no error", name)
		} else if !strings.Contains(err.Error(), f.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, err := New(Config{Listen: "127.0.0.1:0", Dirs: []string{dir}, Meta: []string{"x:1"}}) // nothing was left open
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Run(context.Background()); err != nil {
		t.Errorf("run after close: %v", err)
	}
}

func taken(t *testing.T) prometheus.Registerer {
	reg := prometheus.NewRegistry()
	if err := reg.Register(prometheus.NewCounter(prometheus.CounterOpts{Name: "shoal_chunkserver_deletions_total", Help: "x"})); err != nil {
		t.Fatal(err)
	}
	return reg
}

func TestMetrics(t *testing.T) {
	m := newMeta(t)
	reg := prometheus.NewPedanticRegistry()
	s := start(t, Config{Dirs: []string{t.TempDir()}, Meta: []string{m.srv.Address()}, Registerer: reg})
	s.awaitReady(t)
	c := dial(t, s)
	w := c.append(1)
	w.send([]byte("abc"), func(h *pb.AppendHeader) { h.Durable, h.Seal = true, true })
	w.acked(3, 3)
	c.mustRead(1, 0, []byte("abc"))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range families {
		got[f.GetName()] = true
	}
	for _, name := range []string{"written_bytes_total", "read_bytes_total", "calls_total", "seconds", "syncs_total", "streams", "registered", "disk_free_bytes", "disk_chunks"} {
		if !got["shoal_chunkserver_"+name] {
			t.Errorf("no metric %s", name)
		}
	}
	s.halt(t)
	if families, _ := reg.Gather(); len(families) > 0 {
		t.Error("metrics stay after close")
	}
}
