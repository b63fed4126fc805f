package robust

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoalfs/shoalfs/test/fault"
	"github.com/shoalfs/shoalfs/test/fault/private"
	"github.com/shoalfs/shoalfs/test/robust/traffic"
)

// TestMain makes this program one of the clients where it is told to be.
func TestMain(m *testing.M) {
	traffic.Main()
	private.Mounts()
	code := m.Run()
	fault.RemoveBinary()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// setting is a run as the environment asks for it.
type setting struct {
	duration    time.Duration
	seed        uint64
	metaservers int
}

func settings(t *testing.T) (s setting) {
	t.Helper()
	var err error
	if s.duration, err = time.ParseDuration(os.Getenv("SHOAL_ROBUSTNESS")); err != nil || s.duration <= 0 {
		t.Fatalf("SHOAL_ROBUSTNESS=%q is no duration such as 30m", os.Getenv("SHOAL_ROBUSTNESS"))
	}
	s.seed = rand.Uint64N(1e9)
	if text := os.Getenv("SHOAL_SEED"); text != "" {
		if s.seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SHOAL_SEED=%q is no number", text)
		}
	}
	s.metaservers = 3
	if text := os.Getenv("SHOAL_METASERVERS"); text != "" {
		if s.metaservers, err = strconv.Atoi(text); err != nil || s.metaservers != 1 && s.metaservers != 3 && s.metaservers != 5 {
			t.Fatalf("SHOAL_METASERVERS=%q is none of 1, 3 and 5", text)
		}
	}
	return s
}

func (s setting) String() string {
	return fmt.Sprintf("DURATION=%v SEED=%d METASERVERS=%d", s.duration, s.seed, s.metaservers)
}

// TestRobustness puts traffic on a cluster while a nemesis is at work, and judges what clients were told.
func TestRobustness(t *testing.T) {
	if os.Getenv("SHOAL_ROBUSTNESS") == "" {
		t.Skip("make robustness runs it, for as long as it is told")
	}
	fault.Need(t)
	s := settings(t)
	t.Logf("make robustness %v", s)
	c := fault.Start(t, fault.Options{
		Binary: fault.Binary(t), Metaservers: s.metaservers, Chunkservers: 4, OnDisk: func(string) bool { return true },
		MetaFlags: []string{"--state-check", "2s"}, // one that differs from the others ends by itself
	})
	r := &run{t: t, cluster: c, began: time.Now()}
	var err error
	if r.clients, err = startClients(c, s.seed); err != nil {
		t.Fatal(err)
	}
	r.nemesis = &nemesis{cluster: c, clients: r.clients, rng: rand.New(rand.NewPCG(s.seed, 0)), counts: map[string]int{}, logf: r.logf, wait: r.wait}
	if err := r.strike(s.duration); err != nil {
		t.Error(err)
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
	r.judge(s)
}

// run is a run of the test.
type run struct {
	t       *testing.T
	cluster *fault.Cluster
	clients []*client
	nemesis *nemesis
	began   time.Time
}

func (r *run) logf(format string, args ...any) {
	r.t.Logf("%6.1f s: "+format, append([]any{time.Since(r.began).Seconds()}, args...)...)
}

// strike lets the nemesis work until its time is over.
func (r *run) strike(duration time.Duration) error {
	for time.Since(r.began) < duration {
		if err := r.nemesis.round(); err != nil {
			return err
		}
	}
	return nil
}

// wait lets things go on for a while. It ends early when a process has ended that nobody ended.
func (r *run) wait(d time.Duration) error {
	done := time.NewTimer(d)
	defer done.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := r.nemesis.gone(); err != nil {
				return err
			}
		case <-done.C:
			return nil
		}
	}
}

// end has the clients finish, now that all is healed, and looks at what there is.
func (r *run) end() error {
	r.logf("all is healed; the clients finish")
	for _, cl := range r.clients {
		if err := cl.program.Finish(); err != nil {
			return err
		}
	}
	if err := r.cluster.Healthy(true); err != nil {
		return err
	}
	r.logf("the cluster is healthy; the auditor reads")
	auditor, err := audit(r.cluster, r.clients[0])
	if err != nil {
		return err
	}
	r.clients = append(r.clients, auditor)
	return r.cluster.Fsck()
}

// judge says what the run came to, and fails the test if something is wrong.
func (r *run) judge(s setting) {
	ops, err := load(r.clients)
	if err != nil {
		r.t.Fatal(err)
	}
	began := time.Now()
	res, err := judge(ops)
	if err != nil {
		r.t.Fatal(err)
	}
	leaders, err := leaderships(r.cluster)
	if err != nil {
		r.t.Error(err)
	}
	r.t.Logf("%v: %v\n%d leader changes; %d faults: %v\nhistories checked in %v", s, res, leaders-1, r.nemesis.total(), r.nemesis,
		time.Since(began).Round(time.Millisecond))
	for _, w := range res.wrong() {
		r.t.Error(w)
	}
	if res.acknowledged == 0 || r.nemesis.total() == 0 {
		r.t.Error("nothing happened")
	}
	if r.t.Failed() {
		dir, err := res.keep(r.cluster)
		r.t.Logf("histories, pages that show them, journals and logs are in %s (%v)", dir, err)
	}
}
