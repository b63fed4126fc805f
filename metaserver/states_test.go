package metaserver

import (
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/shoalfs/shoalfs/metaserver/namespace"
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
	for i := range 20 {
		c.must(c.do(create("g" + string(rune('a'+i)))))
	}
	for _, id := range []uint64{1, 3} {
		if err := all[id].node.Failure(); err != nil {
			t.Errorf("metaserver %d: %v", id, err)
		}
	}
}
