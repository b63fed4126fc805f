package client

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// A cluster of real servers finds nothing wrong with itself while files come, change and go, whoever leads; nor does it repair
// anything.
func TestFsckOfARealCluster(t *testing.T) {
	c := startCluster(t, clusterOptions{metas: 3})
	ctx := t.Context()
	f := c.dial(t)
	if err := f.MkdirAll(ctx, "/a/b/c", 0o755); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var group sync.WaitGroup
	var made atomic.Int64
	for i := range 3 {
		group.Go(func() {
			for n := 0; !stop.Load(); n++ {
				name := fmt.Sprintf("/a/b/c/%d-%d", i, n%20)
				if err := f.WriteFile(ctx, name, bytes.Repeat([]byte("x"), 1<<(n%18)), 0o644); err != nil {
					t.Errorf("write %s: %v", name, err)
					return
				}
				if n%5 == 4 {
					_ = f.Remove(ctx, fmt.Sprintf("/a/b/c/%d-%d", i, (n-2)%20)) // it may not be there
				}
				made.Add(1)
			}
		})
	}
	defer group.Wait()
	defer stop.Store(true)
	for i := range 4 {
		for before := made.Load(); made.Load() < before+50 && !t.Failed(); {
			if _, err := f.Stat(ctx, "/a"); err != nil {
				t.Fatal(err)
			}
		}
		var lines []string
		r, err := f.Fsck(ctx, i%2 == 1, func(p FsckProgress) { lines = append(append(lines, p.Problems...), p.Repaired...) })
		if err != nil || r.Found != 0 || r.Inodes < 4 {
			t.Fatalf("check %d: %+v, %v: %q", i, r, err, lines)
		}
		if i == 1 {
			st, err := f.Status(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for j, m := range st.Metaservers {
				if m.Leader {
					_ = c.metas[j].Close()
				}
			}
		}
	}
}
