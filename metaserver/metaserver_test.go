package metaserver

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/lease"
	"github.com/shoalfs/shoalfs/metaserver/repair"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestStateSurvivesRestartAndRetriesGetTheFirstResult(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "meta")
	s := start(t, Config{Dir: dir}).ready()
	c := call(t, s.Address()).open()
	first := c.must(c.do(mkdir("a")))
	s.stop()
	again := start(t, Config{Dir: dir}).ready()
	c.all, c.at = []string{again.Address()}, again.Address()
	req := &pb.MutateRequest{Session: c.session, Sequence: 1, Unanswered: 1, Cred: &pb.Cred{}, Op: mkdir("a")}
	c.connect(time.Second)
	second := c.must(c.send(req))
	if second.Leased {
		t.Fatal("an old result must not be cached")
	}
	first.Leased = false
	if !proto.Equal(first, second) {
		t.Fatalf("the retry got %v, the first got %v", second, first)
	}
	if got := c.lookup(1, "a"); got.Attr.GetInode() != first.Attr.Inode {
		t.Fatalf("looked up %v", got)
	}
	res, err := c.do(mkdir("a"))
	if err != nil || syscall.Errno(res.Errno) != syscall.EEXIST {
		t.Fatalf("%v, %v", res, err)
	}
}

func TestFollowersSendReadersToTheLeader(t *testing.T) {
	all := group(t, 3, Config{})
	leader := find(t, all)
	for _, r := range all {
		c := call(t, r.Address())
		_, err := c.meta(r.Address()).Lookup(t.Context(), &pb.LookupRequest{Parent: 1, Name: []byte("x")})
		if r == leader {
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		if d := rpc.Detail(err); d.GetKind() != rpc.NotLeader || d.GetLeader() != leader.Address() {
			t.Fatalf("a follower answered %v", err)
		}
		_, err = c.meta(r.Address()).Mutate(t.Context(), &pb.MutateRequest{Session: 1, Sequence: 1, Op: mkdir("x")})
		if rpc.Kind(err) != rpc.NotLeader {
			t.Fatalf("a follower answered %v", err)
		}
		st, err := c.meta(r.Address()).Status(t.Context(), &pb.StatusRequest{})
		if err != nil || len(st.Problems) == 0 || !strings.Contains(st.Problems[0], leader.Address()) {
			t.Fatalf("a follower's status: %v, %v", st, err)
		}
	}
}

func find(t *testing.T, all map[uint64]*running) (leader *running) {
	t.Helper()
	eventually(t, "one leads", func() bool {
		for _, r := range all {
			if r.lead.Load() != nil {
				leader = r
				return true
			}
		}
		return false
	})
	return leader
}

func TestMutationsAreDoneOnceAcrossALossOfTheLeader(t *testing.T) {
	all := group(t, 3, Config{LeaseTTL: time.Second})
	var addrs []string
	for _, r := range all {
		addrs = append(addrs, r.Address())
	}
	const clients, dirs = 4, 60
	var group sync.WaitGroup
	half := make(chan struct{}, clients)
	for i := range clients {
		c := call(t, addrs...).open()
		name := func(n int) string { return string(rune('a'+i)) + strings.Repeat("x", n) }
		group.Go(func() {
			for n := range dirs {
				if n == dirs/3 {
					half <- struct{}{}
				}
				res, err := c.do(mkdir(name(n)))
				if err != nil || res.Errno != 0 {
					t.Errorf("mkdir %d: %v, %v", n, res, err)
					return
				}
			}
		})
	}
	for range clients {
		<-half
	}
	find(t, all).stop()
	group.Wait()
	c := call(t, addrs...).open()
	var count int
	after := []byte(nil)
	for eof := false; !eof; {
		if err := c.try(func(ctx context.Context, m pb.MetaClient) error {
			out, err := m.ReadDir(ctx, &pb.ReadDirRequest{Ctx: c.read(), Inode: 1, After: after, Limit: 50})
			if err != nil {
				return err
			}
			count += len(out.Entries)
			eof = out.Eof
			if len(out.Entries) > 0 {
				after = out.Entries[len(out.Entries)-1].Name
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if count != clients*dirs {
		t.Fatalf("%d directories, want %d", count, clients*dirs)
	}
}

func TestRevocationBetweenSessions(t *testing.T) {
	s := start(t, Config{}).ready()
	a, b := call(t, s.Address()).open(), call(t, s.Address()).open()
	ka, kb := a.connect(time.Second), b.connect(time.Second)
	got := b.lookup(1, "f")
	if !got.ParentLeased || got.Attr != nil {
		t.Fatalf("the negative answer may be cached: %v", got)
	}
	res := a.must(a.do(create("f")))
	if !kb.wasRevoked(1) {
		t.Fatal("the mutation returned before the other client dropped what it cached")
	}
	if ka.wasRevoked(1) {
		t.Fatal("the client that makes the file was asked, too")
	}
	if got = b.lookup(1, "f"); !got.Leased || !got.ParentLeased || got.Attr.GetInode() != res.Attr.Inode {
		t.Fatalf("looked up %v", got)
	}
	// B has it open; the file stays for B when A removes its name.
	kb.mu.Lock()
	kb.opened = []uint64{res.Attr.Inode}
	kb.mu.Unlock()
	op := unlink("f")
	op.GetUnlink().Hint = res.Attr.Inode
	a.must(a.do(op))
	attr, err := b.meta(b.at).GetAttr(t.Context(), &pb.GetAttrRequest{Ctx: b.read(), Inode: res.Attr.Inode})
	if err != nil || attr.Attr.Nlink != 0 {
		t.Fatalf("the open file: %v, %v", attr, err)
	}
	b.must(b.do(&pb.Op{Op: &pb.Op_ReleaseInodes{ReleaseInodes: &pb.ReleaseInodes{Inodes: []uint64{res.Attr.Inode}}}}))
	if _, err = b.meta(b.at).GetAttr(t.Context(), &pb.GetAttrRequest{Ctx: b.read(), Inode: res.Attr.Inode}); errnoOf(err) != syscall.ESTALE {
		t.Fatalf("the released file: %v", err)
	}
}

// A file without a name lives only for the sessions that had it open when its last name went. Another one, whose open was
// overtaken by the unlink, must look the name up again: nothing would keep the file for it.
func TestOnlyHoldersOpenAFileWithoutAName(t *testing.T) {
	s := start(t, Config{}).ready()
	a, b := call(t, s.Address()).open(), call(t, s.Address()).open()
	a.connect(time.Second)
	f := b.must(b.do(create("f"))).Attr.Inode
	b.connect(time.Second, f)
	a.must(a.do(unlink("f")))
	open := func(c *caller) error {
		_, err := c.meta(c.at).Open(t.Context(), &pb.OpenRequest{Ctx: c.read(), Inode: f, Access: 4})
		return err
	}
	if err := open(a); errnoOf(err) != syscall.ESTALE {
		t.Errorf("open of a file that is kept for another session: %v", err)
	}
	if err := open(b); err != nil {
		t.Errorf("open of a file that is kept for this session: %v", err)
	}
}

// Whether a creation was done already, when it is asked for again, does not depend on how many files the session has open by
// then: an errno would say that it was not.
func TestCreationOfAnExistingFileWithTooManyOpen(t *testing.T) {
	s := start(t, Config{}).ready()
	c := call(t, s.Address()).open()
	f := c.must(c.do(create("f"))).Attr.Inode
	now := s.lead.Load()
	table := lease.New(lease.Config{MaxPerSession: 1})
	defer table.Close()
	table.Start(nil)
	table.Opened(c.session)
	if _, err := table.Connect(c.session, 1, []uint64{101, 102}); err != nil {
		t.Fatal(err)
	}
	full := &leader{s: now.s, log: now.log, term: now.term, ctx: now.ctx, table: table, live: now.live}
	res, err := (&mutation{l: full, req: c.next(create("f")), op: create("f")}).attempt(t.Context())
	if c.must(res, err); !res.Existed || res.Attr.Inode != f {
		t.Fatalf("created %v", res)
	}
}

// A mutation that was prepared in an earlier leadership has waited for the leases of that one only: another leader, between
// the two, may have granted more. It is not logged.
func TestNothingIsLoggedForAnEarlierLeadership(t *testing.T) {
	s := start(t, Config{}).ready()
	c := call(t, s.Address()).open()
	now := s.lead.Load()
	earlier := &leader{s: now.s, log: now.log, term: now.term - 1, ctx: now.ctx, table: now.table, live: now.live}
	m := &mutation{l: earlier, req: c.next(mkdir("d")), op: mkdir("d")}
	if _, err := m.propose(t.Context()); rpc.Kind(err) != rpc.NotLeader {
		t.Errorf("proposed: %v", err)
	}
	if c.lookup(1, "d").Attr != nil {
		t.Error("the mutation was applied")
	}
	// Nor is what repair or rewriting remember of one: what they wait for may have been given up, and begun anew, by another
	// leader.
	for what, cluster := range map[string]repair.Cluster{"repair": repairCluster{earlier}, "rewriting": rewriteCluster{repairCluster{earlier}}} {
		before := s.node.LastIndex()
		if _, err := cluster.Propose(&pb.Op{Op: &pb.Op_FinishMoves{FinishMoves: &pb.FinishMoves{}}}); rpc.Kind(err) != rpc.NotLeader || s.node.LastIndex() != before {
			t.Errorf("%s proposed: %v", what, err)
		}
	}
}

// Two clients that change one directory wait for each other's answers, never for a lease to run out.
func TestTwoClientsInOneDirectory(t *testing.T) {
	s := start(t, Config{}).ready()
	var group sync.WaitGroup
	for i := range 2 {
		c := call(t, s.Address()).open()
		c.connect(time.Second)
		group.Go(func() {
			own := string(rune('a' + i))
			for range 100 {
				c.lookup(1, "shared")
				for _, op := range []*pb.Op{
					create("shared"),
					create(own),
					{Op: &pb.Op_Rename{Rename: &pb.Rename{Parent: 1, Name: []byte(own), NewParent: 1, NewName: []byte("shared")}}},
					unlink("shared"),
				} {
					if res, err := c.do(op); err != nil || res.Errno != 0 && syscall.Errno(res.Errno) != syscall.ENOENT {
						t.Errorf("%v, %v", res, err)
						return
					}
				}
			}
		})
	}
	group.Wait()
	if st := s.lead.Load().table.Stats(); st.Lapses > 0 || st.Waits == 0 {
		t.Fatalf("%+v", st)
	}
}

func TestSoleClientMayCacheItsOwnResults(t *testing.T) {
	s := start(t, Config{}).ready()
	c := call(t, s.Address()).open()
	c.connect(time.Second)
	f := c.must(c.do(create("f")))
	if !f.Leased {
		t.Fatal("not leased")
	}
	op := unlink("f")
	op.GetUnlink().Hint = f.Attr.Inode
	if res := c.must(c.do(op)); !res.Leased {
		t.Fatal("not leased")
	}
}

func TestASilentHolderDelaysAMutationOnlyForALease(t *testing.T) {
	s := start(t, Config{LeaseTTL: 300 * time.Millisecond, SessionTTL: 30 * time.Second}).ready()
	a, b := call(t, s.Address()).open(), call(t, s.Address()).open()
	a.connect(50 * time.Millisecond)
	kb := b.connect(50 * time.Millisecond)
	kb.mu.Lock()
	kb.mute = true
	kb.mu.Unlock()
	b.lookup(1, "f")
	a.must(a.do(create("f")))
	if err := <-kb.done; status.Code(err) != codes.Aborted {
		t.Fatalf("the stream of the silent client ended with %v", err)
	}
}

func TestSessionExpirySealsChunksAndFreesOrphans(t *testing.T) {
	s := start(t, Config{LeaseTTL: 200 * time.Millisecond, SessionTTL: time.Second}).ready()
	servers := chunkServers(t, s, 2)
	a, b := call(t, s.Address()).open(), call(t, s.Address()).open()
	a.connect(50 * time.Millisecond)
	f := b.must(b.do(create("f"))).Attr
	kb := b.connect(50*time.Millisecond, f.Inode)
	alloc := b.must(b.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 2}}}))
	used := alloc.Chunks[0]
	if len(used.Servers) != 3 || used.Servers[2] != 0 || used.Layout.GetMinShards() != 1 {
		t.Fatalf("allocated %v", used)
	}
	b.must(b.do(&pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: f.Inode, Size: 10000,
		Extents: []*pb.Extent{{Length: 10000, Chunk: used.Id}},
		Chunks:  []*pb.ChunkCommit{{Chunk: used.Id, Length: 10000, Servers: used.Servers}}}}}))
	a.must(a.do(unlink("f")))
	if st, err := s.Status(t.Context()); err != nil || st.Inodes != 2 {
		t.Fatalf("the open file went: %v, %v", st, err)
	}
	kb.cancel() // the client dies
	eventually(t, "the dead client's session, file and chunks are gone", func() bool {
		st, err := s.Status(t.Context())
		return err == nil && st.Sessions == 1 && st.Inodes == 1 && st.Chunks == 0
	})
	if _, err := b.do(mkdir("late")); rpc.Kind(err) != rpc.SessionEnded {
		t.Fatalf("a mutation of a dead session: %v", err)
	}
	eventually(t, "the servers were told to delete the chunks", func() bool {
		st, err := s.Status(t.Context())
		return err == nil && st.Deletions == 0 && servers[0].deleted() > 0 && servers[1].deleted() > 0
	})
}

func TestAbsurdRequests(t *testing.T) {
	s := start(t, Config{}).ready()
	c := call(t, s.Address()).open()
	c.connect(time.Second)
	big := strings.Repeat("n", 300)
	for name, tc := range map[string]struct {
		op   *pb.Op
		want syscall.Errno
	}{
		"long name":     {mkdir(big), syscall.ENAMETOOLONG},
		"NUL in name":   {mkdir("a\x00b"), syscall.EINVAL},
		"slash in name": {mkdir("a/b"), syscall.EINVAL},
		"dots":          {mkdir(".."), syscall.EINVAL},
		"empty":         {mkdir(""), syscall.EINVAL},
		"no op":         {&pb.Op{}, syscall.EOPNOTSUPP},
		"nil op":        {nil, syscall.EOPNOTSUPP},
		"leader's op":   {&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: []uint64{1}}}}, syscall.EOPNOTSUPP},
		"many chunks":   {&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 1 << 31}}}, syscall.EINVAL},
		"many extents":  {&pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: 1, Extents: make([]*pb.Extent, maxExtents+1)}}}, syscall.EINVAL},
		"inline":        {&pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: 1, Extents: []*pb.Extent{{Length: 5000, Data: make([]byte, 5000)}}}}}, syscall.E2BIG},
		"xattr":         {&pb.Op{Op: &pb.Op_SetXattr{SetXattr: &pb.SetXattr{Inode: 1, Name: "user." + big, Value: nil}}}, syscall.ERANGE},
		"rename":        {&pb.Op{Op: &pb.Op_Rename{Rename: &pb.Rename{Parent: 1, NewParent: 1, Name: []byte("x"), NewName: []byte("y/")}}}, syscall.EINVAL},
		"no inode":      {&pb.Op{Op: &pb.Op_SetAttr{SetAttr: &pb.SetAttr{Inode: 1 << 60, Size: proto.Uint64(1 << 63)}}}, 0},
		"empty rename":  {&pb.Op{Op: &pb.Op_Rename{}}, syscall.EINVAL},
		"empty commit":  {&pb.Op{Op: &pb.Op_Commit{}}, 0},
	} {
		req := c.next(tc.op)
		for i := range req.GetOp().GetCommit().GetExtents() {
			if req.Op.GetCommit().Extents[i] == nil {
				req.Op.GetCommit().Extents[i] = &pb.Extent{Length: 1}
			}
		}
		res, err := c.send(req)
		if err != nil || res.Errno == 0 || tc.want != 0 && syscall.Errno(res.Errno) != tc.want {
			t.Errorf("%s: %v, %v", name, res, err)
		}
	}
	m := c.meta(c.at)
	ctx := t.Context()
	if _, err := m.Mutate(ctx, &pb.MutateRequest{Session: 1, Sequence: 1, Op: mkdir(strings.Repeat("x", rpc.MaxMessage))}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a name of many MB: %v", err)
	}
	if _, err := m.Mutate(ctx, &pb.MutateRequest{Session: 99, Sequence: 1, Op: mkdir("x")}); rpc.Kind(err) != rpc.SessionEnded {
		t.Errorf("an unknown session: %v", err)
	}
	if res, err := m.Mutate(ctx, &pb.MutateRequest{Op: mkdir("x")}); err != nil || res.Errno == 0 {
		t.Errorf("no session: %v, %v", res, err)
	}
	if _, err := m.Lookup(ctx, &pb.LookupRequest{Parent: 1, Name: []byte(big)}); errnoOf(err) != syscall.ENAMETOOLONG {
		t.Errorf("lookup of a long name: %v", err)
	}
	if _, err := m.Lookup(ctx, &pb.LookupRequest{Ctx: &pb.ReadContext{Session: 77, Cred: &pb.Cred{Groups: make([]uint32, 70000)}}, Parent: 1, Name: []byte("x")}); errnoOf(err) != syscall.EINVAL {
		t.Errorf("lookup with many groups: %v", err)
	}
	if _, err := m.ReadDir(ctx, &pb.ReadDirRequest{Inode: 1, Limit: 1<<32 - 1}); err != nil {
		t.Errorf("readdir of all: %v", err)
	}
	if _, err := m.Open(ctx, &pb.OpenRequest{Ctx: &pb.ReadContext{Session: 99}, Inode: 1}); rpc.Kind(err) != rpc.SessionEnded {
		t.Errorf("open in an unknown session: %v", err)
	}
	stream, err := m.Session(ctx)
	if err == nil {
		if err = stream.Send(&pb.SessionPing{Session: 99, Ping: 1}); err == nil {
			_, err = stream.Recv()
		}
	}
	if rpc.Kind(err) != rpc.SessionEnded {
		t.Errorf("a stream of an unknown session: %v", err)
	}
}

func TestDirectoryAndPortAreOnesOwn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "meta")
	s := start(t, Config{Dir: dir}).ready()
	refuse := func(what, want string, cfg Config) {
		t.Helper()
		x, err := New(cfg)
		if err == nil {
			_ = x.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refuse("two on one directory", "another process", Config{ID: 1, Listen: "127.0.0.1:0", Dir: dir})
	refuse("port in use", "address already in use", Config{ID: 1, Listen: s.Address(), Dir: filepath.Join(t.TempDir(), "x")})
	s.stop()
	refuse("another's directory", "belongs to metaserver 1", Config{ID: 2, Listen: "127.0.0.1:0", Dir: dir})
	write := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, metaFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"format":2,"node":1,"service":"shoalfs metaserver"}`)
	refuse("a newer format", "newer version", Config{ID: 1, Listen: "127.0.0.1:0", Dir: dir})
	write(`{"format":1,"node":1,"service":"shoalfs chunk server"}`)
	refuse("a chunk server's directory", "belongs to", Config{ID: 1, Listen: "127.0.0.1:0", Dir: dir})
	write(`{`)
	refuse("a damaged file", "damaged", Config{ID: 1, Listen: "127.0.0.1:0", Dir: dir})
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refuse("somebody's directory", "precious", Config{ID: 1, Listen: "127.0.0.1:0", Dir: other})
	for _, cfg := range []Config{{}, {ID: 1}, {ID: 1, Dir: other}, {ID: 1, Dir: other, Listen: "127.0.0.1:0", Peers: map[uint64]string{2: "127.0.0.1:1"}},
		{ID: 1, Dir: other, Listen: "127.0.0.1:0", Peers: map[uint64]string{1: "nonsense"}}, {ID: 1, Dir: other, Listen: "nonsense"}} {
		if x, err := New(cfg); err == nil {
			_ = x.Close()
			t.Errorf("accepted %+v", cfg)
		}
	}
}

func TestMetricsAndHealth(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := start(t, Config{Registerer: reg}).ready()
	c := call(t, s.Address()).open()
	c.connect(time.Second)
	c.must(c.do(mkdir("a")))
	_, _ = c.do(mkdir("a"))
	c.lookup(1, "a")
	if err := s.Health(); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, f := range families {
		seen[f.GetName()] = true
		for _, m := range f.Metric {
			for _, l := range m.Label {
				seen[f.GetName()+"/"+l.GetValue()] = true
			}
		}
	}
	for _, want := range []string{"shoal_meta_mutations_total/make_node", "shoal_meta_mutations_total/EEXIST", "shoal_meta_reads_total/Lookup",
		"shoal_meta_mutation_seconds", "shoal_meta_leases", "shoal_meta_applied_index", "shoal_meta_kv_buffered_keys", "shoal_meta_chunkservers/healthy"} {
		if !seen[want] {
			t.Errorf("no metric %s", want)
		}
	}
}

func TestLonelyMetaserverSaysSo(t *testing.T) {
	peers := addresses(t, 3)
	s := start(t, Config{ID: 1, Listen: peers[1], Peers: peers, LeaderlessAfter: time.Millisecond})
	eventually(t, "it complains", func() bool { return s.Health() != nil })
	st, err := s.Status(t.Context())
	if err != nil || len(st.Problems) < 2 {
		t.Fatalf("%v, %v", st, err)
	}
	_, err = call(t, s.Address()).meta(s.Address()).GetAttr(t.Context(), &pb.GetAttrRequest{Inode: 1})
	if rpc.Kind(err) != rpc.NotLeader {
		t.Fatal(err)
	}
}

func TestStopWithoutRun(t *testing.T) {
	s, err := New(Config{ID: 1, Listen: "127.0.0.1:0", Dir: filepath.Join(t.TempDir(), "meta")})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(context.Background()); err == nil {
		t.Fatal("a closed server runs")
	}
	l, err := net.Listen("tcp", s.Address())
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}
