package main

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/metafake"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// onFake makes the test's commands go to a metaserver that says what the test wants.
func onFake(t *testing.T) *metafake.Server {
	t.Helper()
	m := metafake.Start(t)
	t.Setenv("SHOAL_CLUSTER", m.Address())
	return m
}

// moving is a cluster whose chunk server 3, once it is drained, loses some of its shards each time that anybody looks.
type moving struct {
	mu       sync.Mutex
	server   *pb.ServerInfo
	each     uint64 // shards that leave at a time
	removed  bool
	heldBack string
}

func (m *moving) status() *pb.StatusReply {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := &pb.StatusReply{Space: &pb.StatFSReply{}, Redundancy: &pb.Redundancy{Known: true, HeldBack: m.heldBack}}
	if m.removed {
		return st
	}
	if m.server.Draining {
		m.server.Shards -= min(m.server.Shards, m.each)
	}
	st.Servers = []*pb.ServerInfo{{Id: 3, Address: "h:3", State: m.server.State, Draining: m.server.Draining, Shards: m.server.Shards, Progress: m.server.Progress}}
	return st
}

func (m *moving) manage(r *pb.ManageServerRequest) (*pb.ManageServerReply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case r.Server != 3:
		return nil, rpc.ToStatus(fserr.New(syscall.ENOENT, "there is no chunk server %d", r.Server))
	case r.Action == pb.ManageServerRequest_DRAIN:
		m.server.Draining = true
	case r.Action == pb.ManageServerRequest_UNDRAIN:
		m.server.Draining = false
	case m.server.Shards > 0 && !r.Force:
		return nil, rpc.ToStatus(fserr.New(syscall.EBUSY, "it holds %d shards: drain it first", m.server.Shards))
	default:
		m.removed = true
	}
	return &pb.ManageServerReply{Shards: m.server.Shards}, nil
}

func onMoving(t *testing.T, shards, each uint64) *moving {
	t.Helper()
	m, fake := &moving{server: &pb.ServerInfo{State: pb.ServerState_SERVER_STATE_HEALTHY, Shards: shards}, each: each}, onFake(t)
	fake.OnStatus, fake.OnManage = m.status, m.manage
	return m
}

func TestDrainAndRemove(t *testing.T) {
	onMoving(t, 10, 3)
	fails(t, exitFailed, []string{"shoal servers remove: chunk server 3: it holds 10 shards: drain it first\n"}, "servers", "remove", "3")
	fails(t, exitFailed, []string{"shoal servers drain: chunk server 4: there is no chunk server 4\n"}, "servers", "drain", "4")
	if got := must(t, "servers", "drain", "3", "--no-wait"); got != "chunk server 3 is being drained; it holds 10 shards\n" {
		t.Errorf("%q", got)
	}
	if got := must(t, "servers", "ls"); !strings.Contains(got, "draining") {
		t.Errorf("%q", got)
	}
	if got := must(t, "servers", "undrain", "3"); !strings.HasPrefix(got, "chunk server 3 is not being drained any more; it holds ") {
		t.Errorf("%q", got)
	}
	if got := must(t, "servers", "drain", "3"); !strings.HasPrefix(got, "chunk server 3 at h:3 holds nothing any more: it can be stopped; ") || strings.Count(got, "\n") != 1 {
		t.Errorf("%q", got)
	}
	if got := must(t, "servers", "remove", "3"); got != "chunk server 3 is removed\n" {
		t.Errorf("%q", got)
	}
}

func TestRemoveByForce(t *testing.T) {
	onMoving(t, 1, 0)
	if got := must(t, "servers", "remove", "3", "--force"); got != "chunk server 3 is removed; 'shoal status' says how safe the data is without it\n" {
		t.Errorf("%q", got)
	}
}

// An interrupt ends the waiting, not the drain.
func TestDrainInterrupted(t *testing.T) {
	m := onMoving(t, 10, 0)
	ctx, cancel := context.WithCancel(t.Context())
	var out, errOut bytes.Buffer
	time.AfterFunc(2*pollEvery, cancel)
	status := run(ctx, []string{"servers", "drain", "3"}, strings.NewReader(""), &out, &errOut)
	if status != exitFailed || out.Len() > 0 || errOut.String() != "shoal servers drain: interrupted: the drain of chunk server 3 goes on; 'shoal servers undrain 3' takes it back\n" {
		t.Errorf("%d %q %q", status, out.String(), errOut.String())
	}
	if !m.status().Servers[0].Draining {
		t.Error("the drain was taken back")
	}
}

func TestDrainHeldUp(t *testing.T) {
	m := onMoving(t, 5, 0)
	m.heldBack = "no other server has room"
	go func() {
		time.Sleep(stallAfter + 4*pollEvery)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.each = 5
	}()
	r := shoal(t, "servers", "drain", "3")
	if r.status != exitOK || r.err != "shoal servers drain: chunk server 3, 5 shards left: no other server has room\n" {
		t.Errorf("%d %q", r.status, r.err)
	}
}

// What a drain says to what it sees, without waiting.
func TestDrainLook(t *testing.T) {
	start := time.Now()
	d := &drain{id: 3, total: 10}
	server := &pb.ServerInfo{Id: 3, Address: "h:3", Draining: true, Shards: 12}
	known := &pb.Redundancy{Known: true}
	for _, c := range []struct {
		at      time.Duration
		shards  uint64
		r       *pb.Redundancy
		problem string
		over    bool
		says    string
	}{
		{0, 12, known, "", false, ""},
		{stallAfter / 2, 12, known, "", false, ""},
		{stallAfter, 12, known, "", false, "nothing moves"},
		{stallAfter + 1, 12, known, "", false, ""}, // once
		{stallAfter + 2, 12, known, "its disk failed", false, "12 shards left: its disk failed"},
		{stallAfter + 3, 1, known, "its disk failed", false, ""}, // it gets on
		{2 * stallAfter, 0, &pb.Redundancy{}, "", false, ""},
		{3 * stallAfter, 0, &pb.Redundancy{}, "", false, "0 shards left: the leading metaserver is new"},
		{3 * stallAfter, 0, known, "", true, "chunk server 3 at h:3 holds nothing any more"},
		{3 * stallAfter, 0, nil, "", true, "holds nothing any more"},
	} {
		server.Shards, server.Problem = c.shards, c.problem
		over, say, err := d.look(start.Add(c.at), []*pb.ServerInfo{{Id: 1}, server}, c.r)
		if over != c.over || err != nil || (c.says == "") != (say == "") || !strings.Contains(say, c.says) {
			t.Errorf("%+v: %v %q %v", c, over, say, err)
		}
	}
	if d.total != 12 || d.left != 0 {
		t.Errorf("%+v", d)
	}
	if over, say, err := d.look(start, []*pb.ServerInfo{{Id: 1}}, known); !over || !strings.Contains(say, "removed") || err != nil {
		t.Error(over, say, err)
	}
	server.Draining = false
	if _, _, err := d.look(start, []*pb.ServerInfo{server}, known); err == nil || !strings.Contains(err.Error(), "taken back") {
		t.Error(err)
	}
}

func TestServersTable(t *testing.T) {
	fake := onFake(t)
	fake.OnStatus = func() *pb.StatusReply {
		return &pb.StatusReply{Space: &pb.StatFSReply{}, Servers: []*pb.ServerInfo{
			{Id: 2, Address: "h:2", State: pb.ServerState_SERVER_STATE_DEAD, LastSeenMs: 61_000, Draining: true, Problem: "silent", Progress: "waits for room", Shards: 7},
			{Id: 1, Address: "h:1", State: pb.ServerState_SERVER_STATE_HEALTHY, Capacity: 4 << 30, Free: 1 << 30, Shards: 99, Domain: map[string]string{"rack": "r1"}},
		}}
	}
	want := `ID Address State         Seen     Shards Capacity Free Use% Where   Problem or progress
 1 h:1     healthy       now          99     4.0G 1.0G  75% rack=r1 
 2 h:2     dead,draining 1m1s ago      7        0    0    - -       silent; waits for room
`
	if got := must(t, "servers"); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	list := fromJSON[[]jsonServer](t, must(t, "servers", "ls", "--json"))
	if len(list) != 2 || list[0].Shards != 99 || list[1].State != "dead" || !list[1].Draining || list[1].Progress != "waits for room" {
		t.Errorf("%+v", list)
	}
}

// A metaserver that is older than a command is said to be.
func TestMetaserverTooOld(t *testing.T) {
	onFake(t)
	for _, args := range []string{"servers drain 1", "servers undrain 1", "servers remove 1", "scrub", "fsck"} {
		r := shoal(t, strings.Fields(args)...)
		if r.status != exitFailed || !strings.Contains(r.err, "the metaserver does not know how to; its shoal is older than this one") || strings.Contains(r.err, "rpc") {
			t.Errorf("%s: %d %q", args, r.status, r.err)
		}
	}
}
