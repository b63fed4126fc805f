package liveness

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	unknown = pb.ServerState_SERVER_STATE_UNKNOWN
	healthy = pb.ServerState_SERVER_STATE_HEALTHY
	suspect = pb.ServerState_SERVER_STATE_SUSPECT
	dead    = pb.ServerState_SERVER_STATE_DEAD
)

func disk(free uint64) []*pb.DiskInfo {
	return []*pb.DiskInfo{{Capacity: 1000, Free: free, Chunks: 3}}
}

func want(t *testing.T, tr *Tracker, states ...pb.ServerState) {
	t.Helper()
	for i, s := range tr.Servers() {
		if s.State != states[i] {
			t.Fatalf("server %d is %v (%s), want %v", s.Id, s.State, s.Problem, states[i])
		}
	}
}

func candidates(tr *Tracker, n int, avoid ...uint32) []uint32 {
	var ids []uint32
	for _, c := range tr.Candidates(n, avoid) {
		ids = append(ids, c.Server)
	}
	return ids
}

func TestSilenceMakesSuspectThenDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Config{})
		tr.Add(Server{ID: 1})
		tr.Add(Server{ID: 2})
		want(t, tr, unknown, unknown)
		beat := func() {
			if !tr.Heartbeat(1, disk(500), 1, 2) {
				t.Fatal("not known")
			}
		}
		beat()
		want(t, tr, healthy, unknown)
		changed := tr.Changed()
		if c := tr.Poll(); len(c) != 1 || c[0].To != healthy {
			t.Fatalf("%+v", c)
		}
		select {
		case <-changed:
		default:
			t.Fatal("a change of state was not announced")
		}
		for range 30 {
			time.Sleep(time.Second)
			beat()
		}
		want(t, tr, healthy, dead)
		if c := tr.Poll(); len(c) != 1 || c[0].Server.ID != 2 || c[0].To != dead {
			t.Fatalf("%+v", c)
		}
		time.Sleep(DefaultSuspectAfter)
		want(t, tr, suspect, dead)
		if got := candidates(tr, 1); len(got) != 0 {
			t.Fatalf("a silent server is a candidate: %v", got)
		}
		time.Sleep(DefaultDeadAfter - DefaultSuspectAfter)
		want(t, tr, dead, dead)
		beat()
		want(t, tr, healthy, dead)
		if tr.Heartbeat(9, nil, 0, 0) || tr.Report(9, "") {
			t.Fatal("an unknown server was taken")
		}
	})
}

func TestReportsSpeedSuspicionUpButNeverKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Config{})
		for id := chunk.ServerID(1); id <= 3; id++ {
			tr.Add(Server{ID: id})
			tr.Heartbeat(id, disk(500), 0, 0)
		}
		tr.Report(2, "connection refused")
		want(t, tr, healthy, suspect, healthy)
		if got := candidates(tr, 2); len(got) != 2 || got[1] != 3 {
			t.Fatalf("candidates %v", got)
		}
		if got := candidates(tr, 3); len(got) != 3 {
			t.Fatalf("one client's report stops all writing: candidates %v", got)
		}
		if got := candidates(tr, 1, 1); len(got) != 1 || got[0] != 3 {
			t.Fatalf("candidates %v", got)
		}
		for range 60 {
			time.Sleep(time.Second)
			tr.Report(2, "connection refused")
			for id := chunk.ServerID(1); id <= 3; id++ {
				tr.Heartbeat(id, disk(500), 0, 0)
			}
		}
		want(t, tr, healthy, suspect, healthy)
		for range 3 {
			time.Sleep(time.Second)
			for id := chunk.ServerID(1); id <= 3; id++ {
				tr.Heartbeat(id, disk(500), 0, 0)
			}
		}
		want(t, tr, healthy, healthy, healthy)
	})
}

func TestFullAndBrokenDisks(t *testing.T) {
	tr := New(Config{})
	tr.Add(Server{ID: 1, Domain: map[string]string{"rack": "r1"}})
	tr.Heartbeat(1, disk(0), 0, 0)
	if got := candidates(tr, 1); len(got) != 0 {
		t.Fatalf("a full server is a candidate: %v", got)
	}
	tr.Heartbeat(1, []*pb.DiskInfo{{Capacity: 1000, Free: 700}, {Capacity: 1000, Free: 1000, Error: "input/output error"}}, 0, 0)
	c := tr.Candidates(1, nil)
	if len(c) != 1 || c[0].Weight != 700 || len(c[0].Domain) != 3 || c[0].Domain[1] != "r1" {
		t.Fatalf("%+v", c)
	}
	if s := tr.Servers()[0]; s.Capacity != 1000 || s.Problem == "" {
		t.Fatalf("%+v", s)
	}
	tr.SetInventory(1, Inventory{Foreign: 2})
	changed := tr.Changed()
	tr.Add(Server{ID: 1, Address: "127.0.0.1:1"})
	select {
	case <-changed:
	default:
		t.Fatal("a new address was not announced")
	}
}
