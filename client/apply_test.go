package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// compacting makes a cluster give space back at once.
func compacting(c *metaserver.Config) {
	c.CompactGain, c.CompactRest = 1<<20, 500*time.Millisecond
	c.LeaseTTL = time.Second
}

// churned is files whose contents are known, that several clients read and write.
type churned struct {
	t     *testing.T
	files []*churnedFile
	reads atomic.Int64
}

type churnedFile struct {
	path string
	mu   sync.RWMutex
	data []byte
}

func newChurned(t *testing.T, p *peer, sizes ...int) *churned {
	t.Helper()
	c := &churned{t: t}
	for i, n := range sizes {
		f := &churnedFile{path: fmt.Sprintf("/dir/f%d", i), data: make([]byte, n)}
		for k := range f.data {
			f.data[k] = byte(rand.Uint32())
		}
		must(t, p.WriteFile(t.Context(), f.path, f.data, 0o644))
		c.files = append(c.files, f)
	}
	return c
}

// write overwrites a random part of a file.
func (f *churnedFile) write(ctx context.Context, p *peer, rng *rand.Rand, most int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := min(1+rng.IntN(most), len(f.data))
	at := rng.IntN(len(f.data) - n + 1)
	for i := range n {
		f.data[at+i] = byte(rng.Uint32())
	}
	file, err := p.OpenFile(ctx, f.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(f.data[at:at+n], int64(at))
	return errors.Join(err, file.Close())
}

// read compares a random part of a file.
func (f *churnedFile) read(ctx context.Context, p *peer, rng *rand.Rand) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	n := min(1+rng.IntN(1<<20), len(f.data))
	at := rng.IntN(len(f.data) - n + 1)
	file, err := p.Open(ctx, f.path)
	if err != nil {
		return err
	}
	got := make([]byte, n)
	_, err = file.ReadAt(got, int64(at))
	if err = errors.Join(err, file.Close()); err == nil && !bytes.Equal(got, f.data[at:at+n]) {
		err = fmt.Errorf("%s: other bytes than were written, in %d from %d", f.path, n, at)
	}
	return err
}

// all compares everything, read by a client without a cache.
func (c *churned) all(p *peer) {
	c.t.Helper()
	for _, f := range c.files {
		if got, err := p.ReadFile(c.t.Context(), f.path); err != nil || !bytes.Equal(got, f.data) {
			c.t.Fatalf("%s: %d bytes of %d, %v", f.path, len(got), len(f.data), err)
		}
	}
}

// loop runs fn again and again, with each file in turn, until the returned function is called, which checks that nothing failed.
func (c *churned) loop(fn func(ctx context.Context, f *churnedFile, rng *rand.Rand) error) (stop func()) {
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	go func() {
		rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
		for i := 0; ctx.Err() == nil; i++ {
			if err := fn(ctx, c.files[i%len(c.files)], rng); err != nil && ctx.Err() == nil {
				done <- err
				return
			}
			c.reads.Add(1)
			_ = pause(ctx, 5*time.Millisecond)
		}
		done <- nil
	}()
	return func() {
		c.t.Helper()
		cancel()
		if err := <-done; err != nil {
			c.t.Error(err)
		}
	}
}

func (c *cluster) status(t *testing.T) *pb.StatusReply {
	t.Helper()
	for _, m := range c.metas {
		if st, err := m.Status(t.Context()); err == nil && st.Rewriting != nil {
			return st
		}
	}
	return &pb.StatusReply{Rewriting: &pb.Rewriting{}}
}

// used is how many bytes of chunks the servers say that they hold.
func used(st *pb.StatusReply) (n uint64) {
	for _, s := range st.Servers {
		for _, d := range s.Disks {
			n += d.Used
		}
	}
	return n
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never happened that %s", what)
		}
	}
}

// TestSpaceIsGivenBack: what was overwritten is given back while files are read.
func TestSpaceIsGivenBack(t *testing.T) {
	c := startCluster(t, clusterOptions{tune: compacting})
	reader := c.dial(t, WithCache(1))
	writer := c.dial(t)
	must(t, writer.Mkdir(t.Context(), "/dir", 0o755))
	files := newChurned(t, writer, 6<<20, 3<<20, 100000, 2000)
	stop := files.loop(func(ctx context.Context, f *churnedFile, rng *rand.Rand) error { return f.read(ctx, reader, rng) })
	rng := rand.New(rand.NewPCG(1, 1))
	total := 0
	for _, f := range files.files {
		total += len(f.data)
	}
	for range 300 {
		must(t, files.files[rng.IntN(3)].write(t.Context(), writer, rng, 200000))
	}
	must(t, writer.Close()) // what it has open is sealed
	waitFor(t, "there is as little garbage as may be", func() bool {
		r := c.status(t).Rewriting
		return r.Moved > 0 && r.Reclaimable == 0 && r.Running == 0
	})
	st := c.status(t)
	if g := st.Rewriting.Garbage; g > uint64(total) {
		t.Errorf("%d bytes of garbage, %d of files: %v", g, total, st.Rewriting)
	}
	waitFor(t, "the servers have deleted what was garbage", func() bool { return used(c.status(t)) < uint64(3*3*total/2) })
	stop()
	t.Logf("%d reads; %v; %d bytes used for %d of files", files.reads.Load(), st.Rewriting, used(c.status(t)), total)
	files.all(reader)
	files.all(c.dial(t))
	sound(t, c)
}

// sound: the state passes the check.
func sound(t *testing.T, c *cluster) {
	t.Helper()
	p := c.dial(t)
	r, err := p.Fsck(t.Context(), false, func(p FsckProgress) {
		for _, s := range p.Problems {
			t.Error(s)
		}
	})
	if err != nil || r.Chunks == 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestApplyPolicy: files go from copies to a code and back while they are read and written.
func TestApplyPolicy(t *testing.T) {
	c := startCluster(t, clusterOptions{tune: compacting})
	idle := func(o *config) { o.idle = time.Second } // or conversion waits half a minute for the writer's chunks
	reader, writer, operator := c.dial(t), c.dial(t, idle), c.dial(t)
	ctx := t.Context()
	must(t, operator.MkdirAll(ctx, "/dir/sub", 0o755))
	must(t, operator.Symlink(ctx, "/dir", "/link"))
	must(t, operator.Symlink(ctx, "/dir", "/dir/sub/loop"))
	first := c.dial(t)
	files := newChurned(t, first, 5<<20, 2<<20, 300000, 5000, 100)
	must(t, first.Link(ctx, files.files[0].path, "/dir/sub/again"))
	must(t, first.WriteFile(ctx, "/dir/sub/empty", nil, 0o644))
	must(t, first.Close())
	stops := []func(){
		files.loop(func(ctx context.Context, f *churnedFile, rng *rand.Rand) error { return f.read(ctx, reader, rng) }),
		files.loop(func(ctx context.Context, f *churnedFile, rng *rand.Rand) error {
			if rng.IntN(4) > 0 {
				return nil
			}
			return f.write(ctx, writer, rng, 20000)
		}),
	}
	for _, policy := range []string{"ec=2+1", "replicas=3", "ec=2+1", DefaultPolicy} {
		must(t, operator.SetPolicy(ctx, "/link", policy))
		var last ApplyProgress
		calls := 0
		p, err := operator.ApplyPolicy(ctx, "/link", ApplyOptions{Inherit: true, Progress: func(p ApplyProgress) {
			if calls++; p.Done < last.Done || p.Total < last.Total || p.Left > p.Total || p.Done > p.Files {
				t.Errorf("%+v after %+v", p, last)
			}
			last = p
		}})
		if err != nil || p.Files != 6 || p.Done != 6 || p.Left != 0 || !p.All || p.Waiting != "" || calls == 0 || last != p {
			t.Fatalf("%s: %+v, %v", policy, p, err)
		}
		// What was written with the policy before and was not sealed yet is converted too; there is nothing left to do.
		want := map[string]string{DefaultPolicy: "replicas=3"}[policy]
		if want == "" {
			want = policy
		}
		for _, f := range files.files[:3] {
			f.mu.RLock()
			for _, l := range layoutsOf(t, operator, f.path) {
				if l != want {
					t.Errorf("%s: %s has data in %s", policy, f.path, l)
				}
			}
			f.mu.RUnlock()
		}
		t.Logf("%s: %+v, %v", policy, p, c.status(t).Rewriting)
	}
	for _, stop := range stops {
		stop()
	}
	files.all(reader)
	files.all(c.dial(t))
	again, err := operator.ApplyPolicy(ctx, "/", ApplyOptions{})
	if err != nil || again.Total != 0 || again.Done != 6 {
		t.Errorf("again: %+v, %v", again, err)
	}
	sound(t, c)
}

// layoutsOf is how the chunks of a file are stored.
func layoutsOf(t *testing.T, p *peer, name string) (out []string) {
	t.Helper()
	fi, err := p.Stat(t.Context(), name)
	must(t, err)
	for off := uint64(0); off < uint64(fi.Size()); {
		r, err := p.meta.Extents(t.Context(), uint64(fi.Sys().(*Attr).Ino), off, 0, true)
		must(t, err)
		for _, x := range r.Chunks {
			out = append(out, strings.Split(policyOf(chunk.LayoutOf(x.Layout), true).String(), ",")[0])
		}
		off = r.End
	}
	return out
}

func TestApplyPolicyErrors(t *testing.T) {
	c := startCluster(t, clusterOptions{tune: compacting})
	a, other := c.dial(t), c.dial(t, WithCred(Cred{UID: 7, GID: 7}))
	ctx := t.Context()
	must(t, a.MkdirAll(ctx, "/dir/closed", 0o700))
	must(t, a.Chmod(ctx, "/dir", 0o755))
	must(t, a.WriteFile(ctx, "/dir/f", make([]byte, 100000), 0o644))
	for _, name := range []string{"/nothing", "/dir"} {
		want := map[string]error{"/nothing": syscall.ENOENT, "/dir": syscall.EACCES}[name]
		p, err := other.ApplyPolicy(ctx, name, ApplyOptions{})
		if !errors.Is(err, want) || !strings.HasPrefix(err.Error(), "applypolicy /") {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	var failed []string
	p, err := other.ApplyPolicy(ctx, "/dir", ApplyOptions{Inherit: true, Failed: func(err error) { failed = append(failed, err.Error()) }})
	if err != nil || len(failed) != 2 || p.Files != 0 {
		t.Errorf("%+v, %q, %v", p, failed, err)
	}
	failed = nil
	p, err = other.ApplyPolicy(ctx, "/dir", ApplyOptions{Failed: func(err error) { failed = append(failed, err.Error()) }})
	if err != nil || len(failed) != 2 || p.Files != 1 || p.Done != 0 || !strings.Contains(strings.Join(failed, "\n"), "/dir/f: operation not permitted") {
		t.Errorf("%+v, %q, %v", p, failed, err)
	}
	// Nobody waits: the cluster goes on alone, when the writer has closed.
	must(t, a.SetPolicy(ctx, "/dir/f", "ec=2+1"))
	if p, err := a.ApplyPolicy(ctx, "/dir/f", ApplyOptions{NoWait: true}); err != nil || p.Files != 1 || p.Done != 0 {
		t.Errorf("%+v, %v", p, err)
	}
	cancelled, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if p, err := a.ApplyPolicy(cancelled, "/dir", ApplyOptions{}); !errors.Is(err, context.DeadlineExceeded) || p.Left == 0 || p.Waiting == "" || p.WaitingFor != "/dir/f" {
		t.Errorf("%+v, %v", p, err)
	}
	must(t, a.Close())
	b := c.dial(t)
	waitFor(t, "the file is coded", func() bool {
		l := layoutsOf(t, b, "/dir/f")
		return len(l) == 1 && l[0] == "ec=2+1"
	})
	f, err := b.Open(ctx, "/dir/f")
	must(t, err)
	if data, err := io.ReadAll(f); err != nil || !bytes.Equal(data, make([]byte, 100000)) {
		t.Error(len(data), err)
	}
	must(t, f.Close())
}

// TestApplyPolicySurvivesTheLeader: another metaserver takes the lead, and the work goes on there.
func TestApplyPolicySurvivesTheLeader(t *testing.T) {
	c := startCluster(t, clusterOptions{metas: 3, tune: func(cfg *metaserver.Config) {
		compacting(cfg)
		cfg.HeartbeatTimeout, cfg.RepairRate = 300*time.Millisecond, 4<<20
	}})
	a := c.dial(t)
	ctx := t.Context()
	must(t, a.Mkdir(ctx, "/dir", 0o755))
	w := c.dial(t)
	files := newChurned(t, w, 40<<20)
	must(t, w.Close())
	must(t, a.SetPolicy(ctx, "/dir", "ec=2+1"))
	closed := false
	p, err := a.ApplyPolicy(ctx, "/dir", ApplyOptions{Inherit: true, Progress: func(p ApplyProgress) {
		if p.Total == 0 || closed {
			return
		}
		closed = true
		for _, m := range c.metas {
			if st, err := m.Status(ctx); err == nil && st.Rewriting != nil {
				must(t, m.Close())
				return
			}
		}
	}})
	if err != nil || p.Done != 1 || p.Left != 0 || !closed {
		t.Fatalf("%+v, %v, closed: %v", p, err, closed)
	}
	for _, l := range layoutsOf(t, a, files.files[0].path) {
		if l != "ec=2+1" {
			t.Errorf("there is data in %s", l)
		}
	}
	files.all(c.dial(t))
}
