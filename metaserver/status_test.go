package metaserver

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// A leader that has not heard of all chunk servers yet does not say that all is well.
func TestNewLeaderSaysThatItIsNew(t *testing.T) {
	s := start(t, Config{Replicas: 2}).ready()
	var servers []*fakeServer
	for i := range 2 {
		f := &fakeServer{t: t, uuid: slices.Repeat([]byte{byte(i + 1)}, 16), holds: map[uint64]uint64{}}
		f.register(s)
		servers = append(servers, f)
	}
	s.lead.Load().since = time.Now().Add(time.Hour) // new, however long this test takes
	problems := func() string {
		st, err := s.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(st.Problems, "\n")
	}
	if got := problems(); !strings.Contains(got, "the leader is new: 0 of 2 chunk servers have reported") {
		t.Errorf("%q", got)
	}
	servers[0].beat(s, 20*time.Millisecond)
	eventually(t, "one has reported", func() bool { return strings.Contains(problems(), "the leader is new: 1 of 2") })
	servers[1].beat(s, 20*time.Millisecond)
	eventually(t, "all is well", func() bool { return problems() == "" })

	// One thing is one thing.
	one := &pb.StatusReply{Servers: []*pb.ServerInfo{{Id: 1, State: pb.ServerState_SERVER_STATE_HEALTHY}}, Layout: chunk.Copies(3).Proto(), Space: &pb.StatFSReply{}}
	if got := strings.Join(s.lead.Load().problems(one), "\n"); !strings.Contains(got, "1 chunk server is registered, replicas=3 needs 3: ") {
		t.Errorf("%q", got)
	}

	// Those that stay silent are complained about as usual.
	l := s.lead.Load()
	l.since = time.Now().Add(-time.Hour)
	silent := &pb.StatusReply{Servers: []*pb.ServerInfo{{Id: 1, State: pb.ServerState_SERVER_STATE_SUSPECT, Problem: "not heard of"}}, Space: &pb.StatFSReply{}}
	if got := strings.Join(l.problems(silent), "\n"); strings.Contains(got, "is new") || !strings.Contains(got, "not heard of") {
		t.Errorf("%q", got)
	}
}
