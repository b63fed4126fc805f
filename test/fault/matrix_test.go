package fault

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/test/fault/faultfs"
	"github.com/shoalfs/shoalfs/test/fault/workload"
)

// faultCase is a row of the matrix.
type faultCase struct {
	name    string
	short   bool // it is part of the short matrix, too
	options Options
	// strike does the fault, lets the load go on as long as it lasts, and undoes it.
	strike func(*scene) error
}

var matrix = []faultCase{
	{name: "kill -9 of a chunk server", strike: killed(1)},
	{name: "kill -9 of two chunk servers", short: true, strike: killed(2)},
	{name: "kill -9 of the leading metaserver", options: Options{Metaservers: 3}, strike: killLeader},
	{name: "SIGSTOP for 5 s", strike: stopped(5*time.Second, (*scene).victim)},
	{name: "SIGSTOP for 60 s", strike: stopped(60*time.Second, (*scene).victim)},
	{name: "SIGSTOP of the leading metaserver for 5 s", options: Options{Metaservers: 3}, strike: stopped(5*time.Second, (*scene).leader)},
	{name: "cut off from the metaserver", strike: network(4, func(s *scene) error { return s.CutFromMetas(s.victim()) })},
	{name: "cut off from clients", short: true, strike: network(3, func(s *scene) error { return s.CutFromClients(s.victim()) })},
	{name: "chunk servers cut off from each other", strike: network(3, func(s *scene) error {
		return each(s.Chunks, s.CutFromChunks)
	})},
	{name: "cut off from everybody", strike: network(4, func(s *scene) error { return s.Net.CutOff(s.victim().Host) })},
	{name: "the leading metaserver cut off from the others", options: Options{Metaservers: 3}, strike: network(4, func(s *scene) error {
		return s.CutFromMetas(s.leader())
	})},
	{name: "the leading metaserver cut off from everybody", options: Options{Metaservers: 3}, strike: network(4, func(s *scene) error {
		return s.Net.CutOff(s.leader().Host)
	})},
	{name: "20% packet loss at a chunk server", options: Options{SmallPackets: true}, strike: network(3, func(s *scene) error {
		return s.Net.Lose(s.victim().Host, 20)
	})},
	{name: "20% packet loss at the metaserver", options: Options{SmallPackets: true}, strike: network(3, func(s *scene) error {
		return s.Net.Lose(s.Metas[0].Host, 20)
	})},
	{name: "a slow network at a chunk server", strike: network(3, func(s *scene) error { return s.Net.Throttle(s.victim().Host, 1<<20) })},
	{name: "disk full", options: Options{OnDisk: onDisk("chunk-")}, strike: full},
	{name: "EIO from a disk", short: true, options: Options{OnDisk: onDisk("chunk-")}, strike: sick(2, broken)},
	{name: "a disk that only reads", options: Options{OnDisk: onDisk("chunk-")}, strike: sick(2, unable)},
	{name: "a disk 100 times slower", options: Options{OnDisk: onDisk("chunk-")}, strike: sick(4, slow)},
	{name: "disk full at the leading metaserver", options: Options{Metaservers: 3, OnDisk: onDisk("meta-")}, strike: sickLeader(
		func(d *faultfs.Disk) { d.SetCapacity(d.Used()) }, func(d *faultfs.Disk) { d.SetCapacity(0) })},
	{name: "EIO from the disk of the leading metaserver", options: Options{Metaservers: 3, OnDisk: onDisk("meta-")}, strike: sickLeader(
		func(d *faultfs.Disk) { d.SetFaults(broken) }, func(d *faultfs.Disk) { d.SetFaults(faultfs.Faults{}) })},
	{name: "damaged chunk files", strike: damaged},
	{name: "restart of every server", options: Options{Metaservers: 3}, strike: restarts},
	{name: "power loss of a chunk server", short: true, options: Options{OnDisk: onDisk("chunk-")}, strike: powerLossOfOne},
	{name: "power loss of a metaserver of three", options: Options{Metaservers: 3, OnDisk: onDisk("meta-")}, strike: powerLossOfMeta},
	{name: "power loss of everything", short: true, options: Options{OnDisk: onDisk("chunk-", "meta-")}, strike: powerLossOfAll},
	{name: "power loss of everything with three metaservers", options: Options{Metaservers: 3, OnDisk: onDisk("chunk-", "meta-")}, strike: powerLossOfAll},
	{name: "kill -9 of clients", short: true, strike: killClients},
	{name: "back after it was thought dead", options: Options{QuickDeath: true}, strike: backFromTheDead},
}

// policies are those that the matrix is run with: SHOAL_POLICIES, separated by spaces, or what the binary knows of the usual ones.
func policies(t *testing.T) []string {
	if list := strings.Fields(os.Getenv("SHOAL_POLICIES")); len(list) > 0 {
		return list
	}
	list := []string{DefaultPolicy}
	if Has(Binary(t), "policy", "set") {
		list = append(list, "ec=4+2")
	}
	return list
}

// TestFaults runs each fault against a cluster of its own, under load, and checks that no program notices: there are no errors,
// reads are right, and everything that was acknowledged is there in the end.
//
// SHOAL_LONG=1 runs all of them, with longer load; SHOAL_FAULTS=all runs all with the load of the short matrix. SHOAL_SEED makes
// another load.
func TestFaults(t *testing.T) {
	Need(t)
	long := os.Getenv("SHOAL_LONG") != ""
	all := long || os.Getenv("SHOAL_FAULTS") == "all"
	for _, policy := range policies(t) {
		for i, f := range matrix {
			if all || f.short {
				t.Run(policy+"/"+f.name, func(t *testing.T) { f.test(t, policy, seed(t)+uint64(1000*i), long) })
			}
		}
	}
}

func seed(t *testing.T) uint64 {
	n := uint64(1)
	if s := os.Getenv("SHOAL_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &n); err != nil {
			t.Fatalf("SHOAL_SEED=%q: %v", s, err)
		}
	}
	return n
}

func (f *faultCase) test(t *testing.T, policy string, seed uint64, long bool) {
	o := f.options
	o.Binary, o.Policy, o.Metaservers = Binary(t), policy, max(1, o.Metaservers)
	c := Start(t, o)
	l, err := c.StartLoad(LoadOptions{Seed: seed, Rate: 2 << 20, Large: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{c, l, long, t}
	for _, step := range []func() error{
		func() error { return s.run(1) },
		func() error { return f.strike(s) },
		func() error { return s.run(1) },
		l.Stop,
		func() error { return c.Healthy(true) },
		c.Scrub, // what is damaged and was not read since is found by this, not in the middle of the check
		func() error { return c.Healthy(true) },
		c.Fsck,
	} {
		if err := step(); err != nil {
			t.Error(err)
			break
		}
	}
	var report *workload.Report
	if !t.Failed() {
		if report, err = l.Check(); err != nil {
			t.Error(err)
		}
	}
	f.judge(t, l, report)
}

// judge shows what happened, and fails the test if it must not.
func (f *faultCase) judge(t *testing.T, l *Load, report *workload.Report) {
	res, err := l.Results(report)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%v", res)
	var errors []string
	for i := range l.Clients {
		errors = append(errors, res.Clients[i].errors()...)
	}
	if len(errors) > 0 {
		t.Errorf("programs saw errors:\n%s", some(errors))
	}
	if wrong := res.Wrong(); len(wrong) > 0 {
		t.Errorf("lost or wrong:\n%s", some(wrong))
	}
	if res.Operations() == 0 {
		t.Error("no operation was acknowledged")
	}
}
