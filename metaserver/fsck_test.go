package metaserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// fsckReport is all that one check said.
type fsckReport struct {
	problems, repaired []string
	phases             []string
	end                *pb.FsckReply
}

func (c *caller) fsck(ctx context.Context, repair bool) (*fsckReport, error) {
	stream, err := c.meta(c.at).Fsck(ctx, &pb.FsckRequest{Repair: repair})
	if err != nil {
		return nil, err
	}
	out := &fsckReport{}
	for {
		m, err := stream.Recv()
		if err == io.EOF && out.end != nil {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if out.end != nil {
			return out, fmt.Errorf("%v after the end", m)
		}
		out.problems = append(out.problems, m.Problems...)
		out.repaired = append(out.repaired, m.Repaired...)
		out.phases = append(out.phases, m.Phase)
		if m.End {
			out.end = m
		}
	}
}

// clean wants a check to find nothing.
func (c *caller) clean(repair bool) *fsckReport {
	c.t.Helper()
	r, err := c.fsck(c.t.Context(), repair)
	if err != nil {
		c.t.Fatal(err)
	}
	if len(r.problems)+len(r.repaired) > 0 {
		c.t.Fatalf("problems %q, repaired %q", r.problems, r.repaired)
	}
	return r
}

// A check finds nothing while the state changes at full speed.
func TestFsckWhileTheClusterWorks(t *testing.T) {
	s := start(t, Config{LeaseTTL: 200 * time.Millisecond}).ready()
	servers := chunkServers(t, s, 3)
	var stop atomic.Bool
	var group sync.WaitGroup
	var done atomic.Uint64
	for i := range 4 {
		c := call(t, s.Address()).open()
		c.connect(50 * time.Millisecond)
		group.Go(func() {
			for n := 0; !stop.Load() && !t.Failed(); n++ {
				c.churn(servers, fmt.Sprintf("%d-%d", i, n%7))
				done.Add(1)
			}
		})
	}
	defer group.Wait()
	defer stop.Store(true)
	c := call(t, s.Address())
	for range 5 {
		before := done.Load()
		r := c.clean(false)
		if r.end.Inodes == 0 || len(r.phases) < 2 {
			t.Fatalf("%+v", r)
		}
		eventually(t, "the others get on", func() bool { return done.Load() > before })
	}
}

// churn makes a directory with a file that has data, moves it about, and removes it.
func (c *caller) churn(servers []*fakeServer, name string) {
	dir := c.must(c.do(mkdir(name))).Attr.Inode
	f := c.must(c.do(&pb.Op{Op: &pb.Op_MakeNode{MakeNode: &pb.MakeNode{Parent: dir, Name: []byte("f"), Mode: syscall.S_IFREG | 0o644}}})).Attr.Inode
	id := c.must(c.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 1}}})).Chunks[0]
	for _, f := range servers {
		f.hold(id.Id, 1000)
	}
	c.must(c.do(&pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 1000, Chunk: id.Id}},
		Chunks: []*pb.ChunkCommit{{Chunk: id.Id, Length: 1000, Servers: id.Servers, Seal: true}}}}}))
	c.must(c.do(&pb.Op{Op: &pb.Op_SetXattr{SetXattr: &pb.SetXattr{Inode: f, Name: "user.a", Value: []byte(name)}}}))
	c.must(c.do(&pb.Op{Op: &pb.Op_Rename{Rename: &pb.Rename{Parent: dir, Name: []byte("f"), NewParent: 1, NewName: []byte("f" + name)}}}))
	c.must(c.do(unlink("f" + name)))
	c.must(c.do(&pb.Op{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{Parent: 1, Name: []byte(name), Directory: true}}}))
}

func (f *fakeServer) hold(id, length uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holds[id] = length
}

func TestOneFsckAtATime(t *testing.T) {
	s := start(t, Config{}).ready()
	c := call(t, s.Address())
	l := s.lead.Load()
	l.checking.Lock()
	_, err := c.fsck(t.Context(), false)
	if errnoOf(err) != syscall.EBUSY || !strings.Contains(err.Error(), "another check") {
		t.Fatalf("a second one: %v", err)
	}
	l.checking.Unlock()
	c.clean(true)
}

// A check ends when the caller leaves, and when the leadership ends.
func TestFsckEndsEarly(t *testing.T) {
	s := start(t, Config{}).ready()
	l := s.lead.Load()
	ctx, cancel := context.WithCancel(t.Context())
	err := s.fsck(ctx, &pb.FsckRequest{}, func(*pb.FsckReply) error { cancel(); return nil })
	if err == nil {
		t.Error("it came to its end without a caller")
	}
	gone := fmt.Errorf("gone")
	if err := s.fsck(t.Context(), &pb.FsckRequest{}, func(*pb.FsckReply) error { return gone }); err != gone {
		t.Errorf("a stream that failed: %v", err)
	}
	err = s.fsck(t.Context(), &pb.FsckRequest{}, func(*pb.FsckReply) error { l.end(); return nil })
	if rpc.Kind(err) != rpc.NotLeader {
		t.Errorf("the leadership ended: %v", err)
	}
	if !l.checking.TryLock() {
		t.Error("it still runs")
	} else {
		l.checking.Unlock()
	}
}

// wants checks that there are problems that read so, in any order, and no others. That chunks lack shards may not be known yet.
func (r *fsckReport) wants(t *testing.T, lines ...string) {
	t.Helper()
	left := slices.Clone(r.problems)
	for _, want := range lines {
		i := slices.IndexFunc(left, func(l string) bool { return strings.Contains(l, want) })
		if i < 0 {
			t.Errorf("no problem %q in %q", want, r.problems)
			continue
		}
		left = slices.Delete(left, i, i+1)
	}
	left = slices.DeleteFunc(left, func(l string) bool { return strings.Contains(l, "lack") && strings.Contains(l, " shards (") })
	if len(left) > 0 {
		t.Errorf("more problems: %q", left)
	}
}

// A check compares with the state what chunk servers list. What is missing or damaged is given to repair.
func TestFsckOfInventories(t *testing.T) {
	s := start(t, Config{LeaseTTL: 200 * time.Millisecond, SuspectAfter: time.Second, DeadAfter: 2 * time.Second}).ready()
	servers := chunkServers(t, s, 3)
	c := call(t, s.Address()).open()
	c.connect(50 * time.Millisecond)
	f := c.must(c.do(create("f"))).Attr.Inode
	var ids []uint64
	commit := &pb.Commit{Inode: f}
	for i, a := range c.must(c.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 5}}})).Chunks {
		ids = append(ids, a.Id)
		commit.Extents = append(commit.Extents, &pb.Extent{Offset: uint64(i) * 1000, Length: 1000, Chunk: a.Id})
		commit.Chunks = append(commit.Chunks, &pb.ChunkCommit{Chunk: a.Id, Length: 1000, Servers: a.Servers, Seal: true})
		for _, f := range servers {
			f.hold(a.Id, 1000)
		}
	}
	c.must(c.do(&pb.Op{Op: &pb.Op_Commit{Commit: commit}}))
	if r := c.clean(false); r.end.Shards != 15 || r.end.Chunks != 5 || r.end.Inodes != 2 {
		t.Errorf("%v", r.end)
	}

	x, y, z := servers[0], servers[1], servers[2]
	x.mu.Lock()
	delete(x.holds, ids[0])
	x.holds[ids[1]] = 999
	x.bad = []uint64{ids[2]}
	x.holds[1<<39], x.holds[1<<39+1] = 5, 6
	x.mu.Unlock()
	y.hold(ids[4]+1, 1) // never given out
	r, err := c.fsck(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	r.wants(t, "has 2 shards, such as 0000000000000001: missing or too short", "has 1 shard, such as 0000000000000003: damaged",
		"has 2 shards, such as 000000800000000", "has 1 shard, such as 0000000000000006, of no id")
	if err := s.db.View(func(r kv.Reader) error {
		for i, want := range []bool{false, false, false, true, true} {
			c, ok := namespace.Chunk(r, chunk.ID(ids[i]))
			if !ok || c.Holds(c.ShardOn(chunk.ServerID(x.id))) != want {
				t.Errorf("chunk %d on server %d: %+v", ids[i], x.id, c)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it tells that chunks lack shards", func() bool {
		r, err := c.fsck(t.Context(), false)
		return err == nil && slices.ContainsFunc(r.problems, func(l string) bool { return strings.HasPrefix(l, "3 chunks lack shards (") })
	})

	// Servers that list nothing, and dead ones.
	y.mu.Lock()
	y.mute = true
	y.mu.Unlock()
	z.mu.Lock()
	z.pause = true
	z.mu.Unlock()
	eventually(t, "a server is dead", func() bool { return s.lead.Load().live.Servers()[2].State == pb.ServerState_SERVER_STATE_DEAD })
	r, err = c.fsck(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	r.wants(t, "of no id", "has 1 shard, such as 0000000000000003: damaged", "chunk server 2 at 127.0.0.1:1 did not say within 2s what it holds",
		"chunk server 3 at 127.0.0.1:1 is dead (no heartbeat for", "chunks lack shards")
}

// What a server has of chunks that are gone is no problem, unless it keeps it.
func TestFsckOfOrphans(t *testing.T) {
	for _, c := range []struct {
		what string
		set  func(*heartbeats)
		want int
	}{
		{"all were ordered", func(*heartbeats) {}, 2},
		{"some were not", func(h *heartbeats) { h.orphans = []chunk.ID{3} }, 0},
		{"not long ago", func(h *heartbeats) { h.orphansAt = time.Now() }, 0},
		{"under way", func(h *heartbeats) { h.ordered, h.orderedAt = map[chunk.ID]struct{}{2: {}}, time.Now() }, 0},
		{"never answered", func(h *heartbeats) { h.ordered = map[chunk.ID]struct{}{2: {}} }, 2},
	} {
		h := &heartbeats{l: &leader{s: &Server{}}, stray: []chunk.ID{1, 2, 3}, orphansAt: time.Now().Add(-time.Hour)}
		c.set(h)
		if got := h.kept([]chunk.ID{2, 3, 4}); len(got) != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
	s := start(t, Config{LeaseTTL: 200 * time.Millisecond}).ready()
	f := chunkServers(t, s, 1)[0]
	c := call(t, s.Address()).open()
	c.connect(50 * time.Millisecond)
	id := c.must(c.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 1}}})).Chunks[0].Id
	c.must(c.do(&pb.Op{Op: &pb.Op_SealChunks{SealChunks: &pb.SealChunks{Chunks: []*pb.ChunkCommit{{Chunk: id, Seal: true}}}}}))
	f.hold(id, 5)
	c.clean(false)
}

// Damage of a record is no reason to delete the data that it was of.
func TestDamagedChunkIsNoOrphan(t *testing.T) {
	s := start(t, Config{}).ready()
	servers := chunkServers(t, s, 3)
	c := call(t, s.Address()).open()
	f := c.must(c.do(create("f"))).Attr.Inode
	a := c.must(c.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 1}}})).Chunks[0]
	c.must(c.do(&pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 10, Chunk: a.Id}},
		Chunks: []*pb.ChunkCommit{{Chunk: a.Id, Length: 10, Servers: a.Servers, Seal: true}}}}}))
	dir := s.cfg.Dir
	s.stop()
	damage(t, dir, func(w *damager) { w.drop("chunk", key(a.Id, "")) })
	s = start(t, Config{Dir: dir, Listen: s.cfg.Listen}).ready()
	if err := s.db.View(func(r kv.Reader) error {
		if isOrphan(r, chunk.ServerID(servers[0].id), chunk.ID(a.Id)) || !isOrphan(r, 9, chunk.ID(a.Id)) {
			t.Error("what the index of copies has is an orphan, or all else is not")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// damager changes the database of a metaserver that does not run.
type damager struct {
	t  *testing.T
	tx *bolt.Tx
}

func damage(t *testing.T, dir string, f func(*damager)) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(dir, stateFile), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { f(&damager{t, tx}); return nil })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

func (w *damager) put(bucket string, key, value []byte) {
	if err := w.tx.Bucket([]byte(bucket)).Put(key, value); err != nil {
		w.t.Fatal(err)
	}
}

func (w *damager) drop(bucket string, key []byte) {
	if err := w.tx.Bucket([]byte(bucket)).Delete(key); err != nil {
		w.t.Fatal(err)
	}
}

// key is of a number and what follows it.
func key(n uint64, rest string) []byte { return append(binary.BigEndian.AppendUint64(nil, n), rest...) }

// A check that repairs tells what is gone in the words in which it told of it, and clients see the new state at once.
func TestFsckRepairs(t *testing.T) {
	s := start(t, Config{}).ready()
	c := call(t, s.Address()).open()
	dir := c.must(c.do(mkdir("a"))).Attr.Inode
	c.must(c.do(mkdir("b")))
	c.must(c.do(create("f")))
	data := s.cfg.Dir
	s.stop()
	damage(t, data, func(w *damager) {
		w.drop("dentry", key(1, "a"))
		w.put("dentry", key(1, "x"), append([]byte{0x18}, key(999, "")...))
		w.put("xattr", key(999, "user.x"), []byte{1}) // which nothing can be done about
		for i := range uint64(5000) {
			w.put("degraded-chunk", key(1000+i, ""), []byte{1})
		}
	})
	s = start(t, Config{Dir: data, Listen: s.cfg.Listen}).ready()
	c.at = s.Address()
	k := c.connect(50 * time.Millisecond)
	c.lookup(1, "f")
	found, err := c.fsck(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.fsck(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range found.problems {
		if !slices.Contains(r.problems, line) {
			t.Errorf("it did not find again: %s", line)
		}
		if hopeless := strings.HasSuffix(line, "cannot be repaired"); slices.Contains(r.repaired, line) == hopeless {
			t.Errorf("repaired %v: %s", !hopeless, line)
		}
	}
	if !k.wasRevoked(1) {
		t.Error("a client may use what it knows of the root still")
	}
	lost := c.lookup(1, "lost+found")
	if a := c.lookup(lost.Attr.GetInode(), fmt.Sprint(dir)); a.Attr.GetInode() != dir {
		t.Errorf("the directory is %v", a)
	}
	left, err := c.fsck(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	left.wants(t, "an xattr of an inode that does not exist")
	c.must(c.do(mkdir("c")))
}
