package chunkserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// pathOf is the file of a chunk in a server's first directory.
func pathOf(s *running, id chunk.ID) string {
	return filepath.Join(s.cfg.Dirs[0], "chunks", fmt.Sprintf("%02x", uint8(id)), id.String()+".chunk")
}

// stored starts a server that holds chunks 1 to n of some size, sealed.
func stored(t *testing.T, m *fakeMeta, cfg Config, n int) *running {
	t.Helper()
	cfg.Dirs, cfg.Meta = []string{t.TempDir()}, []string{m.srv.Address()}
	s := start(t, cfg)
	s.awaitReady(t)
	c := dial(t, s)
	for id := 1; id <= n; id++ {
		w := c.append(chunk.ID(id))
		w.send(random(100_000), nil)
		w.send(random(1000), seal)
		if err := w.failure(); err != nil && rpc.Kind(err) != 0 {
			t.Fatal(err)
		}
	}
	m.until(t, "all are sealed", func() bool {
		for id := 1; id <= n; id++ {
			if h, ok := s.store.disks[0].Held(chunk.ID(id)); !ok || h.Writing {
				return false
			}
		}
		return true
	})
	return s
}

// harm damages chunk 1 in its record's head, which no read looks at, cuts chunk 2, and removes the file of chunk 3.
func harm(t *testing.T, s *running) {
	t.Helper()
	b, err := os.ReadFile(pathOf(s, 1))
	if err != nil {
		t.Fatal(err)
	}
	b[64+5] ^= 1
	if err := errors.Join(os.WriteFile(pathOf(s, 1), b, 0o600), os.Truncate(pathOf(s, 2), 50_000), os.Remove(pathOf(s, 3))); err != nil {
		t.Fatal(err)
	}
}

// TestEndlessScrub finds what is damaged without being asked, and nothing wrong with what is being written.
func TestEndlessScrub(t *testing.T) {
	m := newMeta(t)
	s := stored(t, m, Config{scrubRest: 10 * time.Millisecond, ScrubRate: 1 << 40}, 6)
	w := dial(t, s).append(99)
	w.send(random(10), nil)
	w.acked(10, 0)
	m.until(t, "a round", func() bool { return !s.scrubs.disks[0].last().IsZero() })
	m.mu.Lock()
	if len(m.corrupt) > 0 || m.last.Scrub.GetPass() != 0 || m.last.Scrub.GetFinished() {
		t.Errorf("%v, %v", m.corrupt, m.last.Scrub)
	}
	m.mu.Unlock()
	harm(t, s)
	m.until(t, "reports", func() bool { return m.corrupt[1] && m.corrupt[2] && m.corrupt[3] })
	before := s.scrubs.disks[0].last()
	m.until(t, "another round", func() bool { return s.scrubs.disks[0].last().After(before) })
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.corrupt) != 3 {
		t.Errorf("%v", m.corrupt)
	}
	if bad, bytes := value(t, s.metrics.scrubBad), value(t, s.metrics.scrubBytes); bad != 3 || bytes < 600_000 {
		t.Errorf("%v were counted, and %v bytes", bad, bytes)
	}
}

// TestScrubPass: passes that are asked for, one after the other.
func TestScrubPass(t *testing.T) {
	m := newMeta(t)
	s := stored(t, m, Config{ScrubRate: -1}, 5)
	m.mu.Lock()
	if m.last.Scrub != nil {
		t.Errorf("%v", m.last.Scrub)
	}
	m.mu.Unlock()
	finished := func(pass, found uint64) {
		t.Helper()
		m.until(t, "the end of a pass", func() bool { return m.last.Scrub.GetPass() == pass && m.last.Scrub.Finished })
		m.mu.Lock()
		defer m.mu.Unlock()
		if p := m.last.Scrub; p.Found != found || p.Done != p.Total {
			t.Errorf("%v", p)
		}
	}
	m.order(t, s, &pb.HeartbeatReply{ScrubPass: 7})
	finished(7, 0)
	if got := value(t, s.metrics.scrubBytes); got < 5*101_000 {
		t.Errorf("%v bytes", got)
	}
	harm(t, s)
	m.order(t, s, &pb.HeartbeatReply{ScrubPass: 7})
	m.order(t, s, &pb.HeartbeatReply{ScrubPass: 6})
	m.order(t, s, &pb.HeartbeatReply{Delete: []uint64{77}})
	m.until(t, "the orders arrive", func() bool { return m.deleted[77] > 0 })
	finished(7, 0)
	m.order(t, s, &pb.HeartbeatReply{ScrubPass: 8})
	finished(8, 3)
	m.until(t, "reports", func() bool { return m.corrupt[1] && m.corrupt[2] && m.corrupt[3] && len(m.corrupt) == 3 })
	if s.scrubs.disks[0].last().IsZero() {
		t.Error("no time of a full scrub")
	}
	// What nobody has repaired is found, and reported, every time.
	m.update(func() { clear(m.corrupt) })
	m.order(t, s, &pb.HeartbeatReply{ScrubPass: 9})
	finished(9, 3)
	m.until(t, "reports", func() bool { return m.corrupt[1] && m.corrupt[2] && m.corrupt[3] && len(m.corrupt) == 3 })
	if bad := value(t, s.metrics.scrubBad); bad != 3 {
		t.Errorf("%v were counted", bad)
	}
}

// TestScrubOpen finds damage in a chunk while it is written. It takes no more appends.
func TestScrubOpen(t *testing.T) {
	m := newMeta(t)
	s := stored(t, m, Config{ScrubRate: -1}, 1)
	f := newSource(t)
	for id := chunk.ID(10); id < 14; id++ {
		w := dial(t, s).append(id)
		data := random(200_000)
		w.send(data, durable)
		w.acked(200_000, 200_000)
		w.send(random(1000), nil)
		w.acked(201_000, 200_000)
		m.order(t, s, &pb.HeartbeatReply{ScrubPass: uint64(2 * id)})
		m.until(t, "a pass", func() bool { return m.last.Scrub.GetPass() == uint64(2*id) && m.last.Scrub.Finished })
		m.mu.Lock()
		if m.last.Scrub.Done != m.last.Scrub.Total || m.corrupt[uint64(id)] {
			t.Errorf("%v", m.last.Scrub)
		}
		m.mu.Unlock()
		path := pathOf(s, id)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at := map[chunk.ID]int{10: 0, 11: 64 + 5, 12: 100_000, 13: len(b) - 1}[id]
		b[at] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		m.order(t, s, &pb.HeartbeatReply{ScrubPass: uint64(2*id + 1)})
		m.until(t, "a report", func() bool {
			return m.corrupt[uint64(id)] && m.last.Scrub.Pass == uint64(2*id+1) && m.last.Scrub.Finished
		})
		if err := w.failure(); rpc.Kind(err) != rpc.ChunkCorrupt {
			t.Errorf("a stream of appends to a damaged chunk: %v", err)
		}
		f.holdAll(id, copies2, data)
		mustCopy(t, m, s, f.order(id, copies2, len(data), copies2, 0)) // as the metaserver orders at once
		mustHold(t, s, id, data)
	}
}

// TestScrubPersists: a pass is over only when each chunk was checked, whatever the process lacked meanwhile.
func TestScrubPersists(t *testing.T) {
	m := newMeta(t)
	fs := &poorFS{FS: disk.OS}
	s := stored(t, m, Config{ScrubRate: -1, fs: fs}, 5)
	harm(t, s)
	fs.lack.Store(7)
	m.order(t, s, &pb.HeartbeatReply{ScrubPass: 1})
	m.until(t, "a pass", func() bool { return m.last.Scrub.GetFinished() })
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.last.Scrub; p.Found != 3 || p.Done != p.Total {
		t.Errorf("%v", p)
	}
}

// poorFS has no descriptors for the next files that are to be opened.
type poorFS struct {
	disk.FS
	lack atomic.Int32
}

func (f *poorFS) Open(path string) (disk.File, error) {
	if f.lack.Add(-1) >= 0 {
		return nil, syscall.EMFILE
	}
	return f.FS.Open(path)
}

// TestManyDamaged: when more is damaged at once than a heartbeat names, an inventory follows.
func TestManyDamaged(t *testing.T) {
	s := &Server{beat: make(chan struct{}, 1), relist: make(chan struct{}, 1)}
	for id := range chunk.ID(corruptPage) {
		s.reportCorrupt(id + 1)
	}
	if len(s.relist) > 0 {
		t.Error("all were to be named")
	}
	s.reportCorrupt(corruptPage + 1)
	if len(s.relist) == 0 || len(s.takeCorrupt()) != corruptPage {
		t.Error("no inventory follows")
	}
}

// TestScrubGivesWay: a round that takes for ever is put off for what somebody waits for, and a pass for a newer one.
func TestScrubGivesWay(t *testing.T) {
	for name, cfg := range map[string]Config{"endless": {ScrubRate: 1, scrubRest: time.Millisecond}, "pass": {ScrubRate: -1, ScrubNowRate: 1}} {
		t.Run(name, func(t *testing.T) {
			m := newMeta(t)
			s := stored(t, m, cfg, 5)
			if name == "endless" { // what was saved up is soon spent
				m.until(t, "it waits", func() bool { return s.scrubs.slow.limit.Tokens() < scrubSeek })
			} else if err := s.scrubs.fast.wait(t.Context(), throttleSaved); err != nil {
				t.Fatal(err)
			}
			m.order(t, s, &pb.HeartbeatReply{ScrubPass: 1})
			if name == "endless" {
				m.until(t, "the pass", func() bool { return m.last.Scrub.GetFinished() })
				harm(t, s)
				m.order(t, s, &pb.HeartbeatReply{Check: []uint64{1, 3}})
				m.until(t, "reports", func() bool { return m.corrupt[1] && m.corrupt[3] })
				return
			}
			m.until(t, "the first pass", func() bool { return m.last.Scrub.GetTotal() == 5*101_000 })
			m.order(t, s, &pb.HeartbeatReply{ScrubPass: 2})
			m.until(t, "the second pass", func() bool { return m.last.Scrub.Pass == 2 && m.last.Scrub.Total == 5*101_000 })
		})
	}
}

func TestCheck(t *testing.T) {
	m := newMeta(t)
	s := stored(t, m, Config{ScrubRate: -1}, 5)
	harm(t, s)
	m.order(t, s, &pb.HeartbeatReply{Check: []uint64{1, 2, 3, 4, 1000}})
	m.until(t, "reports", func() bool { return m.corrupt[1] && m.corrupt[2] && m.corrupt[3] && m.corrupt[1000] })
	m.update(func() { clear(m.corrupt) })
	m.order(t, s, &pb.HeartbeatReply{Check: []uint64{1, 1000}}) // as before, but asked for
	m.until(t, "reports again", func() bool { return m.corrupt[1] && m.corrupt[1000] })
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.corrupt) != 2 {
		t.Errorf("%v", m.corrupt)
	}
}

// hungFS hangs, for one directory, in everything that a disk does.
type hungFS struct {
	disk.FS
	dir  string
	mu   sync.Mutex
	gate chan struct{} // nil: it does not hang
}

func (f *hungFS) hang() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gate = make(chan struct{})
}

func (f *hungFS) goOn() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gate != nil {
		close(f.gate)
	}
	f.gate = nil
}

func (f *hungFS) wait(path string) {
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	if gate != nil && strings.HasPrefix(path, f.dir) {
		<-gate
	}
}

func (f *hungFS) Space(path string) (disk.Space, error) { f.wait(path); return f.FS.Space(path) }
func (f *hungFS) Remove(path string) error              { f.wait(path); return f.FS.Remove(path) }
func (f *hungFS) Open(path string) (disk.File, error) {
	f.wait(path)
	return f.file(path)(f.FS.Open(path))
}
func (f *hungFS) Create(path string) (disk.File, error) {
	f.wait(path)
	return f.file(path)(f.FS.Create(path))
}

func (f *hungFS) file(path string) func(disk.File, error) (disk.File, error) {
	return func(file disk.File, err error) (disk.File, error) {
		if err != nil {
			return nil, err
		}
		return &hungFile{file, f, path}, nil
	}
}

type hungFile struct {
	disk.File
	fs   *hungFS
	path string
}

func (f *hungFile) ReadAt(b []byte, off int64) (int, error) {
	f.fs.wait(f.path)
	return f.File.ReadAt(b, off)
}
func (f *hungFile) Sync() error { f.fs.wait(f.path); return f.File.Sync() }
func (f *hungFile) WriteBuffers(bufs [][]byte, off int64) error {
	f.fs.wait(f.path)
	return f.File.WriteBuffers(bufs, off)
}

// TestHungDiskBeats: when the disk answers nothing any more, whatever it is asked for, the server beats on and says so.
func TestHungDiskBeats(t *testing.T) {
	m := newMeta(t)
	fs := &hungFS{FS: disk.OS}
	cfg := Config{ScrubRate: -1, fs: fs}
	s := stored(t, m, cfg, 3)
	defer fs.goOn()
	w := dial(t, s).append(99)
	w.send(random(10), nil)
	w.acked(10, 0)
	fs.hang()
	w.send(random(10), durable)
	c := dial(t, s)
	done := make(chan error, 1)
	go func() {
		_, err := c.read(1, 0, 10)
		done <- err
	}()
	m.order(t, s, &pb.HeartbeatReply{ScrubPass: 1, Delete: []uint64{2}, Check: []uint64{3}})
	m.until(t, "it says so", func() bool {
		d := m.last.Disks[0]
		return time.Duration(d.WriteNs) > 2*time.Second && time.Duration(d.ReadNs) > 2*time.Second && d.Chunks >= 3 && d.Capacity > 0
	})
	m.mu.Lock()
	before, pages := m.beats, m.complete
	m.mu.Unlock()
	m.order(t, s, &pb.HeartbeatReply{WantInventory: true})
	m.until(t, "it beats", func() bool { return m.beats > before+20 && m.complete > pages })
	if s.Status().ID == 0 || s.Health() != nil {
		t.Error(s.Health())
	}
	fs.goOn()
	w.acked(20, 20)
	if err := <-done; err != nil {
		t.Error(err)
	}
	m.until(t, "the deletion", func() bool { return m.deleted[2] > 0 })
	m.until(t, "the pass", func() bool { return m.last.Scrub.GetFinished() })
}
