package main

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/metafake"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// scrubbed makes a cluster of servers 1, 2 and 3, the last of which is dead, that check 4 MiB each, 2 MiB a look.
func scrubbed(t *testing.T, found uint64) *metafake.Server {
	t.Helper()
	fake := onFake(t)
	fake.OnStatus = func() *pb.StatusReply {
		return &pb.StatusReply{Servers: []*pb.ServerInfo{{Id: 1}, {Id: 2}, {Id: 3, State: pb.ServerState_SERVER_STATE_DEAD}}, Space: &pb.StatFSReply{}}
	}
	var mu sync.Mutex
	pass, done := uint64(70), uint64(0)
	fake.OnScrub = func(r *pb.ScrubRequest) (*pb.ScrubReply, error) {
		mu.Lock()
		defer mu.Unlock()
		if r.Start {
			pass, done = pass+1, 0
		} else {
			done = min(done+2<<20, 4<<20)
		}
		out := &pb.ScrubReply{Pass: pass}
		for id := range uint32(2) {
			out.Servers = append(out.Servers, &pb.ServerScrub{Server: id + 1, Progress: &pb.ScrubProgress{Pass: pass, Done: done, Total: 4 << 20, Found: found, Finished: done == 4<<20}})
		}
		return out, nil
	}
	return fake
}

// What is found bad is reported, and no failure; a server that was not checked is one.
func TestScrub(t *testing.T) {
	scrubbed(t, 0)
	r := shoal(t, "scrub")
	want := "Server Checked Bad State\n     1    4.0M   0 done\n     2    4.0M   0 done\n     3       0   0 gone\n8.0M checked: nothing bad was found\n"
	if r.status != exitFailed || r.out != want || r.err != "shoal scrub: chunk server 3 is not there: it was not checked, or not to the end\n" {
		t.Errorf("%d %q %q", r.status, r.out, r.err)
	}
	scrubbed(t, 0).OnStatus = func() *pb.StatusReply { // of another: what it answers does not change while it may be asked
		return &pb.StatusReply{Servers: []*pb.ServerInfo{{Id: 1}, {Id: 2}}, Space: &pb.StatFSReply{}}
	}
	if j := fromJSON[jsonScrub](t, must(t, "scrub", "--json")); !j.Finished || j.Checked != 8<<20 || len(j.Servers) != 2 || !j.Servers[1].Finished {
		t.Errorf("%+v", j)
	}
	if got := must(t, "scrub", "--no-wait"); got != "started on 2 chunk servers\n" {
		t.Errorf("%q", got)
	}
	if j := fromJSON[jsonScrub](t, must(t, "scrub", "--no-wait", "--json")); j.Finished || j.Checked != 0 || j.Total != 8<<20 {
		t.Errorf("%+v", j)
	}
}

func TestScrubFindsSomething(t *testing.T) {
	scrubbed(t, 1).OnStatus = nil
	if got := must(t, "scrub"); !strings.HasSuffix(got, "8.0M checked: 2 shards found bad, to be made anew from the others: 'shoal status' says how far that is\n") {
		t.Errorf("%q", got)
	}
}

func TestScrubInterrupted(t *testing.T) {
	fake := scrubbed(t, 0)
	scrub := fake.OnScrub
	fake.OnScrub = func(r *pb.ScrubRequest) (*pb.ScrubReply, error) {
		out, err := scrub(r)
		out.Servers[0].Progress.Finished = false
		return out, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(pollEvery, cancel)
	var out, errOut bytes.Buffer
	if status := run(ctx, []string{"scrub"}, strings.NewReader(""), &out, &errOut); status != exitFailed || out.Len() > 0 || errOut.String() != "shoal scrub: interrupted: the pass goes on\n" {
		t.Errorf("%d %q %q", status, out.String(), errOut.String())
	}
}

// What a pass looks like to whoever watches it, without waiting.
func TestScrubLook(t *testing.T) {
	start := time.Now()
	at := func(id uint32, pass uint64, finished bool) *pb.ServerScrub {
		return &pb.ServerScrub{Server: id, Progress: &pb.ScrubProgress{Pass: pass, Finished: finished}}
	}
	reply := func(pass uint64, servers ...*pb.ServerScrub) *pb.ScrubReply {
		return &pb.ScrubReply{Pass: pass, Servers: servers}
	}
	s := newScrubWatch(start, reply(5, at(1, 5, false), at(2, 4, true)), []*pb.ServerInfo{{Id: 1}, {Id: 2}, {Id: 3}})
	for _, c := range []struct {
		name  string
		at    time.Duration
		reply *pb.ScrubReply
		over  bool
		lost  bool
	}{
		{"what an older pass did does not count", 1, reply(5, at(1, 5, true), at(2, 4, true)), false, false},
		{"one is under way", 2, reply(5, at(1, 5, true), at(2, 5, false)), false, false},
		{"a new leader has not heard yet", passLost, reply(0), false, false},
		{"one came back", passLost + 1, reply(5, at(1, 5, true), at(2, 5, true), at(3, 5, false)), false, false},
		{"one died", passLost + 2, reply(5, at(2, 5, true), at(3, 5, false)), false, false},
		{"a newer pass counts, and what was done stays done", passLost + 3, reply(6, at(2, 5, true), at(3, 6, true)), true, false},
		{"a new leader never hears", 2*passLost + 5, reply(0), false, true},
	} {
		over, err := s.look(start.Add(c.at), c.reply)
		if over != c.over || (err != nil) != c.lost {
			t.Errorf("%s: over: %v, %v", c.name, over, err)
		}
	}
	if s = newScrubWatch(start, reply(5, at(1, 5, true)), []*pb.ServerInfo{{Id: 1}, {Id: 3}}); !s.gone[3] || s.gone[1] {
		t.Errorf("%+v", s)
	}
}

// checked makes a cluster whose check says these things, the last of them the end of it.
func checked(t *testing.T, replies ...*pb.FsckReply) *metafake.Server {
	t.Helper()
	fake := onFake(t)
	fake.OnFsck = func(r *pb.FsckRequest, s grpc.ServerStreamingServer[pb.FsckReply]) error {
		for i, reply := range replies {
			out := &pb.FsckReply{Phase: reply.Phase, Done: reply.Done, Total: reply.Total, Problems: reply.Problems, End: i == len(replies)-1}
			if r.Repair {
				out.Repaired = reply.Repaired
			}
			if out.End {
				out.Inodes, out.Chunks, out.Shards = 1, 20, 60
			}
			if err := s.Send(out); err != nil {
				return err
			}
		}
		return nil
	}
	return fake
}

func TestFsck(t *testing.T) {
	const counted = "1 inode, 20 chunks, 60 shards checked\n"
	clean := []*pb.FsckReply{{Phase: "inodes", Done: 1, Total: 2}, {}}
	two := []*pb.FsckReply{{Phase: "inodes", Problems: []string{"inode 7 has no name"}}, {Problems: []string{"chunk 9 is nowhere"}, Repaired: []string{"inode 7 has no name"}}, {}}
	for _, c := range []struct {
		args    string
		replies []*pb.FsckReply
		status  int
		out     string
	}{
		{"fsck", clean, exitOK, "clean: " + counted},
		{"fsck -q", clean, exitOK, ""},
		{"fsck", two, exitFailed, "problem: inode 7 has no name\nproblem: chunk 9 is nowhere\n2 problems: " + counted},
		{"fsck --quiet", two, exitFailed, "problem: inode 7 has no name\nproblem: chunk 9 is nowhere\n"},
		{"fsck --repair", two, exitFailed, "problem: inode 7 has no name\nproblem: chunk 9 is nowhere\nrepaired: inode 7 has no name\n2 problems, 1 repaired, 1 left: " + counted},
		{"fsck --repair", []*pb.FsckReply{{Repaired: []string{"x"}}, {}}, exitOK, "repaired: x\n1 problem, 1 repaired, 0 left: " + counted},
	} {
		checked(t, c.replies...)
		if r := shoal(t, strings.Fields(c.args)...); r.status != c.status || r.out != c.out || r.err != "" {
			t.Errorf("%s: %d %q %q, want %d %q", c.args, r.status, r.out, r.err, c.status, c.out)
		}
	}
	r := shoal(t, "fsck", "--repair", "--json")
	if j := fromJSON[jsonFsck](t, r.out); r.status != exitOK || j.Clean || j.Left != 0 || len(j.Problems) != 0 || len(j.Repaired) != 1 || j.Shards != 60 {
		t.Errorf("%d %+v", r.status, j)
	}
	if r := shoal(t, "fsck", "--json"); r.status != exitOK || !fromJSON[jsonFsck](t, r.out).Clean {
		t.Errorf("%d %s", r.status, r.out)
	}
}

// A check that does not get to its end says nothing of a clean cluster.
func TestFsckFails(t *testing.T) {
	fake := onFake(t)
	fake.OnFsck = func(_ *pb.FsckRequest, s grpc.ServerStreamingServer[pb.FsckReply]) error {
		_ = s.Send(&pb.FsckReply{Phase: "inodes"}) // the client may be gone
		return rpc.ErrNotLeader("")
	}
	fails(t, exitFailed, []string{"shoal fsck: the check was cut off"}, "fsck")
	fake.OnFsck = func(*pb.FsckRequest, grpc.ServerStreamingServer[pb.FsckReply]) error {
		return rpc.ToStatus(fserr.New(syscall.EBUSY, "another check runs"))
	}
	fails(t, exitFailed, []string{"shoal fsck: another check runs"}, "fsck", "--json")
}

// The first line answers whether the data is safe.
func TestStatusOfRedundancy(t *testing.T) {
	fake := onFake(t)
	fake.OnStatus = func() *pb.StatusReply {
		return &pb.StatusReply{Cluster: "0123", Space: &pb.StatFSReply{}, Redundancy: &pb.Redundancy{
			Known: true, Full: 1, Degraded: 2, Endangered: 3, Unreadable: 4, Moving: 5, BytesLeft: 6, BytesPerSecond: 7, EtaSeconds: 8,
			HeldBack: "no room", Drains: 9, Misplaced: 10, Summary: "safe for now",
		}}
	}
	if got := must(t, "status"); !strings.HasPrefix(got, "safe for now\n\ncluster       0123\n") {
		t.Errorf("%q", got)
	}
	out := must(t, "status", "--json")
	want := redundancy{"safe for now", true, 1, 2, 3, 4, 5, 6, 7, 8, "no room", 9, 10}
	if r := fromJSON[jsonStatus](t, out).Redundancy; r == nil || *r != want {
		t.Errorf("%+v", r)
	}
	for _, name := range []string{"known", "full", "degraded", "endangered", "unreadable", "moving", "bytes_left"} {
		if !strings.Contains(out, `"`+name+`": `) {
			t.Errorf("no %s in %s", name, out)
		}
	}
	fake = onFake(t) // another: what it answers does not change while it may be asked
	fake.OnStatus = func() *pb.StatusReply {
		return &pb.StatusReply{FileBytes: 5, Chunks: 1, Deletions: 1, Space: &pb.StatFSReply{}}
	}
	if got := must(t, "status"); !strings.Contains(got, "data          5 in 1 chunk\n") || !strings.Contains(got, "deletions     1 chunk copy to be deleted\n") {
		t.Errorf("%q", got)
	}
	onFake(t) // of a metaserver that does not lead, or is old
	if got := must(t, "status"); !strings.HasPrefix(got, "cluster ") {
		t.Errorf("%q", got)
	}
	if out := must(t, "status", "--json"); strings.Contains(out, "redundancy") {
		t.Error(out)
	}
}

// On a terminal there are bars, and lines come above them.
func TestWaitingOnATerminal(t *testing.T) {
	tty, shown := terminal(t)
	do := func(want int, args ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if status := run(ctx, args, tty, tty, tty); status != want {
			t.Errorf("%v: status %d", args, status)
		}
	}
	onMoving(t, 10, 3)
	do(exitOK, "servers", "drain", "3")
	scrubbed(t, 0).OnStatus = nil
	do(exitOK, "scrub")
	checked(t, &pb.FsckReply{Phase: "inodes", Done: 3, Total: 4}, &pb.FsckReply{Phase: "chunks", Done: 77, Problems: []string{"chunk 9\x1b[1m is nowhere"}}, &pb.FsckReply{})
	do(exitFailed, "fsck")
	out := shown()
	for _, want := range []string{
		"chunk server 3", "0 shards left", "holds nothing any more", "chunk server 1", "4.0M / 4.0M", "8.0M / 8.0M",
		"inodes", "3 / 4", "77", "problem: chunk 9?[1m is nowhere\r\n", "1 problem: ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
}
