package liveness

import (
	"testing"
	"testing/synctest"
	"time"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

func timed(write, read time.Duration) []*pb.DiskInfo {
	return []*pb.DiskInfo{{Capacity: 1000, Free: 500, WriteNs: uint64(write), ReadNs: uint64(read)}}
}

// beatAll has servers heartbeat every second for d.
func beatAll(tr *Tracker, d time.Duration, disks ...[]*pb.DiskInfo) {
	for range int(d / time.Second) {
		for i, k := range disks {
			if k != nil {
				tr.Heartbeat(chunk.ServerID(i+1), k, 0, 0)
			}
		}
		tr.Poll()
		time.Sleep(time.Second)
	}
	tr.Poll()
}

func TestSlowDiskMakesSuspectForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Config{})
		for id := range chunk.ServerID(4) {
			tr.Add(Server{ID: id + 1})
		}
		ok, slow := timed(5*time.Millisecond, time.Millisecond), timed(500*time.Millisecond, 0)
		beatAll(tr, time.Second, ok, ok, ok, slow)
		want(t, tr, healthy, healthy, healthy, healthy) // once is no rule
		beatAll(tr, 2*time.Second, ok, ok, ok, slow)
		want(t, tr, healthy, healthy, healthy, suspect)
		if got := candidates(tr, 3); len(got) != 3 {
			t.Errorf("candidates %v", got)
		}
		if got := candidates(tr, 4); len(got) != 4 {
			t.Errorf("a slow server is better than none: %v", got)
		}
		// It gets nothing to do, and is given another chance; found slow again it is spared longer.
		beatAll(tr, slowFirst, ok, ok, ok, timed(0, 0))
		want(t, tr, healthy, healthy, healthy, healthy)
		beatAll(tr, 4*time.Second, ok, ok, ok, slow)
		want(t, tr, healthy, healthy, healthy, suspect)
		beatAll(tr, slowFirst, ok, ok, ok, timed(0, 0))
		want(t, tr, healthy, healthy, healthy, suspect)
		beatAll(tr, slowFirst, ok, ok, ok, timed(0, 0))
		want(t, tr, healthy, healthy, healthy, healthy)
		// Reads count too. All slow together are only busy.
		beatAll(tr, 4*time.Second, ok, timed(0, time.Second), ok, ok)
		want(t, tr, healthy, suspect, healthy, healthy)
		beatAll(tr, time.Minute, slow, timed(0, 0), slow, slow)
		want(t, tr, healthy, healthy, healthy, healthy)
	})
}

func TestFewServersAreNotCompared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Config{})
		tr.Add(Server{ID: 1})
		tr.Add(Server{ID: 2})
		beatAll(tr, 10*time.Second, timed(time.Millisecond, 0), timed(time.Second, 0))
		want(t, tr, healthy, healthy)
	})
}

func TestFlappingServerIsOnProbation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Config{})
		tr.Add(Server{ID: 1})
		tr.Add(Server{ID: 2})
		ok := timed(0, 0)
		for i := range flapLimit {
			beatAll(tr, 2*time.Second, ok, ok)
			want(t, tr, healthy, healthy)
			beatAll(tr, 5*time.Second, nil, ok)
			want(t, tr, suspect, healthy)
			_ = i
		}
		beatAll(tr, 2*time.Second, ok, ok)
		want(t, tr, suspect, healthy)
		if got := candidates(tr, 1); len(got) != 1 || got[0] != 2 {
			t.Errorf("candidates %v", got)
		}
		beatAll(tr, flapProbation, ok, ok)
		want(t, tr, healthy, healthy)
	})
}

func TestDrainingServersTakeNothingNew(t *testing.T) {
	tr := New(Config{})
	tr.Add(Server{ID: 1})
	tr.Add(Server{ID: 2, Draining: true})
	tr.Heartbeat(1, timed(0, 0), 0, 0)
	tr.Heartbeat(2, timed(0, 0), 0, 0)
	if got := candidates(tr, 2); len(got) != 1 || got[0] != 1 {
		t.Errorf("candidates %v", got)
	}
	changed := tr.Changed()
	tr.SetDraining(2, false)
	<-changed
	if got := candidates(tr, 2); len(got) != 2 {
		t.Errorf("candidates %v", got)
	}
	changed = tr.Changed()
	tr.Remove(2)
	<-changed
	if tr.Len() != 1 || tr.Heartbeat(2, nil, 0, 0) || tr.Draining(2) {
		t.Error("a removed server is known")
	}
}
