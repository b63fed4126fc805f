package metaserver

import (
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// TestSpoiledStateIsFound: a metaserver whose database was changed by something else than the log stops, says why, and the others go on.
func TestSpoiledStateIsFound(t *testing.T) {
	cfg := Config{StateCheckEvery: 50 * time.Millisecond, SessionTTL: time.Minute, LeaseTTL: 100 * time.Millisecond}
	all := group(t, 3, cfg)
	c := call(t, all[1].Address(), all[2].Address(), all[3].Address()).open()
	for i := range 20 {
		c.must(c.do(create("f" + string(rune('a'+i)))))
	}
	spoiled := all[2]
	spoiled.stop()
	db, err := bolt.Open(spoiled.dir.file(stateFile), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	bucket := []byte(namespace.Buckets()[len(namespace.Buckets())-1])
	if err := db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucket).Put([]byte("stray"), []byte("x")) }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.ID, cfg.Listen, cfg.Peers, cfg.Dir = 2, spoiled.cfg.Listen, spoiled.cfg.Peers, spoiled.cfg.Dir
	again, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := again.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "is not that of most") || !strings.Contains(err.Error(), cfg.Dir) {
		t.Errorf("it ended with %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "is of no use any more") || !strings.Contains(err.Error(), "is not that of most") {
		t.Errorf("it starts again: %v", err)
	}
	for i := range 20 {
		c.must(c.do(create("g" + string(rune('a'+i)))))
	}
	for _, id := range []uint64{1, 3} {
		if err := all[id].node.Failure(); err != nil {
			t.Errorf("metaserver %d: %v", id, err)
		}
	}
}

// TestFailedComparison: that states could not be compared is no problem with the states, and does not hide one that was found.
func TestFailedComparison(t *testing.T) {
	s := start(t, Config{}).ready()
	l := s.lead.Load()
	if l == nil {
		t.Fatal("it does not lead")
	}
	if err := l.compareStates(1); err == nil {
		t.Error("a state that was not marked was compared")
	}
	if p := l.differs.Load(); p != nil {
		t.Errorf("a problem: %s", *p)
	}
	found := "they differ"
	l.differs.Store(&found)
	if err := l.compareStates(1); err == nil || l.differs.Load() != &found {
		t.Error("a problem that was found is forgotten")
	}
}

// TestTooFewToCompare: a difference that was found is not over when nobody else answers.
func TestTooFewToCompare(t *testing.T) {
	all := group(t, 3, Config{StateCheckEvery: time.Hour})
	var l *leader
	var index uint64
	eventually(t, "a mark is in the log", func() bool {
		for _, s := range all {
			if l = s.lead.Load(); l != nil {
				res, err := l.own(&pb.Op{Op: &pb.Op_MarkState{MarkState: &pb.MarkState{}}})
				index = res.GetIndex()
				return err == nil
			}
		}
		return false
	})
	again, other := l.s.cfg.ID%3+1, (l.s.cfg.ID+1)%3+1
	eventually(t, "the mark is applied", func() bool { return all[again].db.Applied() >= index })
	all[again].stop()
	cfg := all[again].cfg
	start(t, Config{ID: again, Listen: cfg.Listen, Peers: cfg.Peers, Dir: cfg.Dir}).ready()
	all[other].stop()
	found := "they differ"
	l.differs.Store(&found)
	if err := l.compareStates(index); err != nil {
		t.Log(err)
	}
	if l.differs.Load() != &found {
		t.Error("the difference is forgotten")
	}
}
