package fault

import (
	"strings"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/test/fault/faultfs"
	"github.com/shoalfs/shoalfs/test/fault/workload"
)

// loaded is a cluster under some load.
func loaded(t *testing.T, o Options) (*Cluster, *Load) {
	t.Helper()
	Need(t)
	o.Binary, o.Metaservers, o.Chunkservers = Binary(t), 1, 3
	c := Start(t, o)
	for _, s := range c.Chunks {
		if s.Disk != nil {
			s.Disk.SetFaults(faultfs.Faults{IgnoreSync: true})
		}
	}
	l, err := c.StartLoad(LoadOptions{Seed: 5, Rate: 1 << 20, Large: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Run(time.Second / 2); err != nil {
		t.Fatal(err)
	}
	return c, l
}

func report(t *testing.T, l *Load) *workload.Report {
	t.Helper()
	r, err := l.Check()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestHarnessFindsDamage flips bits in all copies of everything that was written.
func TestHarnessFindsDamage(t *testing.T) {
	c, l := loaded(t, Options{})
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
	if r := report(t, l); len(r.Problems) > 0 || r.Files == 0 {
		t.Fatalf("nothing is broken in %d files, and the checker found %v", r.Files, r.Problems)
	}
	for _, s := range c.Chunks {
		if n, err := s.Damage(1); err != nil || n == 0 {
			t.Fatalf("damaged %d chunks of %s: %v", n, s.Name, err)
		}
	}
	r := report(t, l)
	if len(r.Problems) == 0 {
		t.Error("every copy is damaged, and the checker finds nothing")
	}
	for _, p := range r.Problems {
		if !strings.Contains(p.What, "cannot be read") {
			t.Errorf("checksums hold what is damaged back, but the checker says %s", p)
		}
	}
}

// TestHarnessFindsDisksThatLie has the disks of all chunk servers only say that they sync, and cuts their power.
func TestHarnessFindsDisksThatLie(t *testing.T) {
	c, l := loaded(t, Options{OnDisk: onDisk("chunk-")})
	if err := c.LosePower(0, c.Chunks...); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAll(c.Chunks...); err != nil {
		t.Fatal(err)
	}
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
	if r := report(t, l); len(r.Problems) == 0 {
		t.Error("what was synced is lost, and the checker does not notice")
	}
}
