package metaserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

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

// A repair reaches every replica: the next leader finds nothing.
func TestFsckRepairsAllReplicas(t *testing.T) {
	peers := group(t, 3, Config{})
	var all []string
	for _, s := range peers {
		all = append(all, s.Address())
	}
	c := call(t, all...).open()
	c.must(c.do(mkdir("a")))
	index := c.must(c.do(mkdir("b"))).Index
	for _, s := range peers {
		eventually(t, "all have applied it", func() bool { return s.db.Applied() >= index })
	}
	for _, s := range peers {
		s.stop()
		damage(t, s.cfg.Dir, func(w *damager) {
			w.drop("dentry", key(1, "a"))
			w.put("degraded-chunk", key(999, ""), []byte{1})
		})
	}
	for id, s := range peers {
		peers[id] = start(t, Config{ID: id, Listen: s.cfg.Listen, Peers: s.cfg.Peers, Dir: s.cfg.Dir})
	}
	for _, s := range peers {
		s.ready()
	}
	check := func(repair bool) (r *fsckReport) {
		t.Helper()
		if err := c.try(func(ctx context.Context, _ pb.MetaClient) (err error) {
			r, err = c.fsck(ctx, repair)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := check(true); len(r.problems) == 0 || !slices.Equal(slices.Sorted(slices.Values(r.problems)), slices.Sorted(slices.Values(r.repaired))) {
		t.Fatalf("problems %q, repaired %q", r.problems, r.repaired)
	}
	for _, s := range peers {
		if s.lead.Load() != nil {
			s.stop()
			break // the next one leads
		}
	}
	if r := check(true); len(r.problems)+len(r.repaired) > 0 {
		t.Fatalf("the next leader: problems %q, repaired %q", r.problems, r.repaired)
	}
}
