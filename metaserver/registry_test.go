package metaserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// fakeServer is a chunk server that holds lengths only.
type fakeServer struct {
	t       *testing.T
	id      uint32
	cluster []byte
	uuid    []byte
	beats   grpc.BidiStreamingClient[pb.HeartbeatRequest, pb.HeartbeatReply]

	mu    sync.Mutex
	holds map[uint64]uint64
	gone  []uint64 // deleted as told, ever
	bad   []uint64 // of what it holds
	asked []uint64 // to check, ever
	// stubborn: it deletes nothing, but says so; mute: it lists nothing.
	stubborn, mute bool
	pause          bool
	full           bool // its disk is
}

func chunkServers(t *testing.T, s *running, n int) []*fakeServer {
	t.Helper()
	var out []*fakeServer
	for range n {
		f := &fakeServer{t: t, uuid: make([]byte, 16), holds: map[uint64]uint64{}}
		_, _ = rand.Read(f.uuid)
		f.register(s)
		f.beat(s, 20*time.Millisecond)
		out = append(out, f)
	}
	eventually(t, "all are healthy", func() bool {
		st, err := s.Status(t.Context())
		healthy := 0
		for _, info := range st.GetServers() {
			if info.State == pb.ServerState_SERVER_STATE_HEALTHY {
				healthy++
			}
		}
		return err == nil && healthy == n
	})
	return out
}

func (f *fakeServer) register(s *running) {
	f.t.Helper()
	r, err := call(f.t, s.Address()).registry().Register(f.t.Context(), &pb.RegisterRequest{Cluster: f.cluster, Uuid: f.uuid, Server: f.id, Address: "127.0.0.1:1"})
	if err != nil {
		f.t.Fatal(err)
	}
	if f.id != 0 && f.id != r.Server || len(r.Cluster) != 16 {
		f.t.Fatalf("registered %v", r)
	}
	f.id, f.cluster = r.Server, r.Cluster
}

// beat heartbeats until the test ends.
func (f *fakeServer) beat(s *running, interval time.Duration) {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	conn, err := rpc.Dial(s.Address())
	if err != nil {
		f.t.Fatal(err)
	}
	f.beats, err = pb.NewRegistryClient(conn).Heartbeat(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() { f.run(ctx, interval) })
	f.t.Cleanup(func() { cancel(); group.Wait(); _ = conn.Close() })
}

func (f *fakeServer) run(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	req := &pb.HeartbeatRequest{Cluster: f.cluster, Server: f.id}
	for first := true; ; first = false {
		f.mu.Lock()
		req.Disks = []*pb.DiskInfo{{Uuid: "d", Path: "/d", Capacity: 1 << 30, Free: 1 << 29}}
		if f.full {
			req.Disks[0].Free = 1 << 20
		}
		f.mu.Unlock()
		if f.beats.Send(req) != nil {
			return
		}
		reply, err := f.beats.Recv()
		if err != nil {
			return
		}
		req = &pb.HeartbeatRequest{}
		f.mu.Lock()
		for _, id := range reply.Delete {
			if !f.stubborn {
				delete(f.holds, id)
			}
			f.gone = append(f.gone, id)
		}
		req.Deleted = reply.Delete
		f.asked = append(f.asked, reply.Check...)
		for _, id := range reply.Check {
			if slices.Contains(f.bad, id) {
				req.Corrupt = append(req.Corrupt, id)
			}
		}
		if (reply.WantInventory || first) && !f.mute {
			for id, length := range f.holds {
				req.Inventory = append(req.Inventory, &pb.ChunkReport{Id: id, Length: length, Bad: slices.Contains(f.bad, id)})
			}
			req.InventoryEnd = true
		}
		f.mu.Unlock()
		for waiting := true; waiting; {
			select {
			case <-tick.C:
				f.mu.Lock()
				waiting = f.pause
				f.mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	}
}

func (f *fakeServer) deleted() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.gone)
}

func TestRegistration(t *testing.T) {
	s := start(t, Config{}).ready()
	f := chunkServers(t, s, 1)[0]
	f.register(s) // comes back
	reg := call(t, s.Address()).registry()
	_, err := reg.Register(t.Context(), &pb.RegisterRequest{Cluster: bytes.Repeat([]byte{7}, 16), Uuid: bytes.Repeat([]byte{8}, 16), Address: "a:1"})
	if rpc.Kind(err) != rpc.WrongCluster {
		t.Errorf("another cluster's server: %v", err)
	}
	_, err = reg.Register(t.Context(), &pb.RegisterRequest{Uuid: []byte("short"), Address: "a:1"})
	if errnoOf(err) == 0 {
		t.Errorf("a bad uuid: %v", err)
	}
	beat := func(req *pb.HeartbeatRequest) error {
		h, err := reg.Heartbeat(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Send(req); err != nil {
			t.Fatal(err)
		}
		_, err = h.Recv()
		return err
	}
	if err := beat(&pb.HeartbeatRequest{Cluster: []byte("no"), Server: 1}); rpc.Kind(err) != rpc.WrongCluster {
		t.Errorf("a heartbeat of another cluster: %v", err)
	}
	if err := beat(&pb.HeartbeatRequest{Cluster: f.cluster, Server: 99}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a heartbeat of an unknown server: %v", err)
	}
}

// A server that is removed hears so, and when it comes back again.
func TestRemovedServerIsToldSo(t *testing.T) {
	s := start(t, Config{}).ready()
	f := &fakeServer{t: t, uuid: bytes.Repeat([]byte{1}, 16)}
	f.register(s)
	reg := call(t, s.Address()).registry()
	h, err := reg.Heartbeat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Send(&pb.HeartbeatRequest{Cluster: f.cluster, Server: f.id}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := s.lead.Load().remove(t.Context(), chunk.ServerID(f.id), false); err != nil {
		t.Fatal(err)
	}
	for err = nil; err == nil; {
		_, err = h.Recv()
	}
	if rpc.Kind(err) != rpc.Removed {
		t.Errorf("its stream ended with %v", err)
	}
	_, err = reg.Register(t.Context(), &pb.RegisterRequest{Cluster: f.cluster, Uuid: f.uuid, Server: f.id, Address: "127.0.0.1:1"})
	if rpc.Kind(err) != rpc.Removed || !strings.Contains(err.Error(), "chunk server 1 was removed from the cluster") {
		t.Errorf("%v", err)
	}
	other := &fakeServer{t: t, uuid: bytes.Repeat([]byte{2}, 16)}
	other.register(s)
	if _, err = reg.Register(t.Context(), &pb.RegisterRequest{Cluster: f.cluster, Uuid: other.uuid, Server: f.id, Address: "127.0.0.1:1"}); errnoOf(err) != syscall.EINVAL {
		t.Errorf("two identities in one: %v", err)
	}
}

// A server that is removed while its stream begins, too late to be refused and too early to be cut off, hears so with its next heartbeat.
func TestServerRemovedWhileItComesBack(t *testing.T) {
	s := start(t, Config{}).ready()
	f := &fakeServer{t: t, uuid: bytes.Repeat([]byte{1}, 16)}
	f.register(s)
	h, err := call(t, s.Address()).registry().Heartbeat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	beat := func() {
		if err := h.Send(&pb.HeartbeatRequest{Cluster: f.cluster, Server: f.id}); err != nil {
			t.Fatal(err)
		}
	}
	beat()
	if _, err := h.Recv(); err != nil {
		t.Fatal(err)
	}
	s.lead.Load().live.Remove(chunk.ServerID(f.id)) // and the stream is not there yet to be cut off
	beat()
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := h.Recv(); err != nil {
				ended <- err
				return
			}
		}
	}()
	select {
	case err := <-ended:
		if rpc.Kind(err) != rpc.Removed {
			t.Errorf("its stream ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on as if it belonged to the cluster")
	}
}

// A metaserver that cannot say whether a server it does not know was removed, as it leads no more, does not say so.
func TestUnansweredServerIsNotCalledRemoved(t *testing.T) {
	s := start(t, Config{}).ready()
	f := &fakeServer{t: t, uuid: bytes.Repeat([]byte{1}, 16)}
	f.register(s)
	s.lead.Load().end()
	_, err := call(t, s.Address()).registry().Register(t.Context(), &pb.RegisterRequest{Cluster: f.cluster, Uuid: bytes.Repeat([]byte{2}, 16), Server: 2, Address: "127.0.0.1:1"})
	if err == nil || rpc.Kind(err) == rpc.Removed {
		t.Errorf("a server that a later leader took in: %v", err)
	}
}

func TestSilentServerIsSuspectThenDeadAndClientsHearOfIt(t *testing.T) {
	s := start(t, Config{SuspectAfter: 300 * time.Millisecond, DeadAfter: time.Second}).ready()
	servers := chunkServers(t, s, 3)
	c := call(t, s.Address()).open()
	k := c.connect(time.Second)
	state := func(want pb.ServerState) func() bool {
		return func() bool {
			k.mu.Lock()
			defer k.mu.Unlock()
			i := slices.IndexFunc(k.servers, func(i *pb.ServerInfo) bool { return i.Id == servers[1].id })
			return i >= 0 && k.servers[i].State == want
		}
	}
	eventually(t, "the client hears of a healthy server", state(pb.ServerState_SERVER_STATE_HEALTHY))
	pause := func(p bool) {
		servers[1].mu.Lock()
		servers[1].pause = p
		servers[1].mu.Unlock()
	}
	pause(true)
	eventually(t, "the client hears of its suspicion", state(pb.ServerState_SERVER_STATE_SUSPECT))
	alloc := c.must(c.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 5}}}))
	for _, a := range alloc.Chunks {
		if len(a.Servers) != 3 || a.Servers[2] != 0 || slices.Contains(a.Servers, servers[1].id) {
			t.Fatalf("allocated %v", a)
		}
	}
	eventually(t, "the client hears of its death", state(pb.ServerState_SERVER_STATE_DEAD))
	st, err := s.Status(t.Context())
	if err != nil || !strings.Contains(strings.Join(st.Problems, "\n"), "fewer than 3 copies") && time.Since(s.lead.Load().since) > settling {
		t.Fatalf("%v, %v", st, err)
	}
	pause(false)
	eventually(t, "the client hears of its return", state(pb.ServerState_SERVER_STATE_HEALTHY))
	if _, err := c.meta(c.at).ReportServer(t.Context(), &pb.ReportServerRequest{Session: c.session, Server: servers[1].id, Error: "timeout"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a report makes it suspect", state(pb.ServerState_SERVER_STATE_SUSPECT))
	space, err := c.meta(c.at).StatFS(t.Context(), &pb.StatFSRequest{})
	if err != nil || space.Capacity != 3<<30 || space.Total != 1<<30 || space.Available != 1<<29 {
		t.Fatalf("%v, %v", space, err)
	}
}

func TestInventory(t *testing.T) {
	s := start(t, Config{LeaseTTL: 200 * time.Millisecond, SessionTTL: time.Minute}).ready()
	servers := chunkServers(t, s, 3)
	c := call(t, s.Address()).open()
	c.connect(50 * time.Millisecond)
	f := c.must(c.do(create("f"))).Attr
	alloc := c.must(c.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 4}}})).Chunks
	pending, sealed, dropped, short := alloc[0].Id, alloc[1].Id, alloc[2].Id, alloc[3].Id
	x := servers[0]
	others := []uint32{servers[1].id, servers[2].id}
	all := append([]uint32{x.id}, others...)
	c.must(c.do(&pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: f.Inode, Size: 30000,
		Extents: []*pb.Extent{{Length: 10000, Chunk: sealed}, {Offset: 10000, Length: 10000, Chunk: short}},
		Chunks: []*pb.ChunkCommit{
			{Chunk: sealed, Length: 10000, Servers: others, Seal: true}, // X has it not: its copy is garbage
			{Chunk: short, Length: 10000, Servers: all, Seal: true},
		}}}}))
	c.must(c.do(&pb.Op{Op: &pb.Op_SealChunks{SealChunks: &pb.SealChunks{Chunks: []*pb.ChunkCommit{{Chunk: dropped, Seal: true}}}}}))
	const foreign = 1 << 39
	// A server that lost its disk's newest state, and found some things.
	f2 := &fakeServer{t: t, uuid: x.uuid, id: x.id, cluster: x.cluster, holds: map[uint64]uint64{
		pending: 5, sealed: 10000, dropped: 0, short: 9999, foreign: 1,
	}}
	f2.beat(s, 20*time.Millisecond)
	eventually(t, "the orphans were deleted", func() bool {
		f2.mu.Lock()
		defer f2.mu.Unlock()
		return len(f2.holds) == 3
	})
	f2.mu.Lock()
	for _, id := range []uint64{pending, short, foreign} {
		if _, ok := f2.holds[id]; !ok {
			t.Errorf("chunk %v was deleted", chunk.ID(id))
		}
	}
	f2.mu.Unlock()
	eventually(t, "the short copy does not count", func() bool {
		counts := true
		if err := s.db.View(func(r kv.Reader) error {
			c, ok := namespace.Chunk(r, chunk.ID(short))
			shard := c.ShardOn(chunk.ServerID(x.id))
			counts = !ok || shard < 0 || c.Holds(shard)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return !counts
	})
}

// An inventory that does not end is given up, whatever it lists.
func TestEndlessInventory(t *testing.T) {
	h := &heartbeats{inventory: &inventory{good: map[chunk.ID]uint32{}, reports: maxInventory}}
	if err := h.take(&pb.HeartbeatRequest{Inventory: []*pb.ChunkReport{{Id: 1}}}); status.Code(err) != codes.InvalidArgument {
		t.Fatalf("one report too many: %v", err)
	}
}

func TestHorizonTrustsNoClock(t *testing.T) {
	var h horizon
	t0 := time.Now()
	if h.before(t0, time.Second, 5) != 0 {
		t.Fatal("something is old at once")
	}
	h.note(t0, 1000, 5)
	h.note(t0.Add(time.Second), 1000, 5) // nothing happened
	if got := h.before(t0.Add(900*time.Millisecond), time.Second, 5); got != 0 {
		t.Fatalf("before %d", got)
	}
	if got := h.before(t0.Add(time.Second), time.Second, 5); got != 1001 {
		t.Fatalf("before %d, all is old enough", got)
	}
	if got := h.before(t0.Add(time.Second), time.Second, 6); got != 1000 {
		t.Fatalf("before %d, the newest command may have the same time", got)
	}
	for i := range 2 * maxSamples {
		h.note(t0.Add(time.Duration(i)*time.Second), int64(2000+i), uint64(10+i))
	}
	if len(h.samples) > maxSamples {
		t.Fatal("unbounded")
	}
}
