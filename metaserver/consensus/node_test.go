package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestOneMemberAppliesEachCommandOnceAcrossRestarts(t *testing.T) {
	g := newGroup(t, 1, false, nil)
	const rounds, each = 5, 200
	for round := range rounds {
		var wg sync.WaitGroup
		m := g.leader()
		for i := range each {
			wg.Go(func() {
				if _, err := m.Propose(t.Context(), command(fmt.Sprintf("%d/%d", round, i))); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if round%2 == 0 {
			if err := m.Snapshot(); err != nil {
				t.Fatal(err)
			}
			if m.db.Durable() != m.db.Applied() {
				t.Error("a snapshot left something in memory only")
			}
		}
		g.stop(1)
		g.start(1)
		m = g.leader()
		if got := m.count(t, totals, "all"); got != uint64(each*(round+1)) {
			t.Fatalf("%d commands were applied, want %d", got, each*(round+1))
		}
		for i := range each {
			if got := m.count(t, names, fmt.Sprintf("%d/%d", round, i)); got != 1 {
				t.Fatalf("command %d/%d was applied %d times", round, i, got)
			}
		}
	}
}

func TestSnapshotDoesNotCopyTheDatabase(t *testing.T) {
	g := newGroup(t, 1, false, nil)
	g.propose("a")
	m := g.leader()
	for range 3 {
		g.propose("b")
		if err := m.Snapshot(); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(filepath.Join(m.dir, "raft", "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != keptRecords {
		t.Errorf("%d files are left of three snapshots, want %d", len(files), keptRecords)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(f.Name(), recordSuffix) || info.Size() > 1024 {
			t.Errorf("%s of %d bytes is more than a record", f.Name(), info.Size())
		}
	}
}

// everywhere waits until all running members have applied n commands.
func (g *group) everywhere(n uint64) {
	g.t.Helper()
	for _, m := range g.members {
		if m.Node != nil {
			waitFor(g.t, fmt.Sprintf("member %d to apply %d commands", m.id, n), func() bool { return m.count(g.t, totals, "all") == n })
		}
	}
}

func TestThreeMembers(t *testing.T) {
	for _, proxied := range []bool{false, true} {
		t.Run(map[bool]string{false: "in the process", true: "over the network"}[proxied], func(t *testing.T) {
			g := newGroup(t, 3, proxied, nil)
			for i := range 20 {
				g.propose(fmt.Sprint(i))
			}
			g.everywhere(20)
			first := g.leader()
			for _, m := range g.members {
				if m == first {
					continue
				}
				if _, err := m.Propose(t.Context(), command("x")); rpc.Detail(err).GetLeader() != first.address {
					t.Errorf("a follower sends proposals to %q, the leader is %q: %v", rpc.Detail(err).GetLeader(), first.address, err)
				}
				if err := m.ReadIndex(t.Context()); rpc.Kind(err) != rpc.NotLeader {
					t.Errorf("a follower serves reads: %v", err)
				}
			}
			waitFor(t, "the leader to hear from all", func() bool {
				states := map[string]int{}
				for _, m := range first.Members() {
					states[m.State]++
				}
				return states["leader"] == 1 && states["follower"] == 2
			})
			term := first.Term()
			g.stop(first.id)
			second := g.leader()
			if second.Term() <= term {
				t.Errorf("a new leader in term %d after %d", second.Term(), term)
			}
			for i := range 20 {
				g.propose(fmt.Sprint(20 + i))
			}
			g.start(first.id)
			g.everywhere(40)
			for id := range g.members {
				g.stop(id)
			}
			for id := range g.members {
				g.start(id)
			}
			g.propose("last")
			g.everywhere(41)
			for i := range 40 {
				for _, m := range g.members {
					if n := m.count(t, names, fmt.Sprint(i)); n != 1 {
						t.Errorf("member %d applied command %d %d times", m.id, i, n)
					}
				}
			}
		})
	}
}

func smallLog(c *Config) {
	c.TrailingLogs = 2
	c.SegmentSize = 4 << 10
}

func TestFollowerFarBehindGetsACopy(t *testing.T) {
	g := newGroup(t, 3, false, smallLog)
	for i := range 10 {
		g.propose(fmt.Sprint("early", i))
	}
	leader := g.leader()
	behind := leader.id%3 + 1
	g.stop(behind)
	for i := range 300 {
		g.propose(fmt.Sprint("missed", i))
	}
	for _, m := range g.members {
		if m.Node != nil {
			if err := m.Snapshot(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if first, err := g.leader().logs.FirstIndex(); err != nil || first < 200 {
		t.Fatalf("the log still begins at %d: %v", first, err)
	}
	g.start(behind)
	g.everywhere(310)
	m := g.members[behind]
	newest := m.snapshots.newest()
	if newest == nil || newest.Database < 300 {
		t.Fatalf("no copy was received: %+v", newest)
	}
	waitFor(t, "the copy to be removed once it is in the database", func() bool {
		copies, err := filepath.Glob(filepath.Join(m.dir, "raft", "snapshots", "*"+dataSuffix))
		return err == nil && len(copies) == 0
	})
	for i := range 10 {
		g.propose(fmt.Sprint("late", i))
	}
	g.everywhere(320)
	g.stop(behind)
	g.start(behind)
	g.everywhere(320)
	for i := range 300 {
		if n := m.count(t, names, fmt.Sprint("missed", i)); n != 1 {
			t.Fatalf("command %d was applied %d times to the follower", i, n)
		}
	}
}

// A crash may come after raft recorded a received copy and before the database was replaced by it.
func TestDatabaseBehindItsSnapshotIsRestoredAtStart(t *testing.T) {
	g := newGroup(t, 3, false, smallLog)
	for i := range 10 {
		g.propose(fmt.Sprint(i))
	}
	leader := g.leader()
	behind := g.members[leader.id%3+1]
	g.stop(behind.id)
	for i := range 100 {
		g.propose(fmt.Sprint("missed", i))
	}
	if err := g.leader().Snapshot(); err != nil {
		t.Fatal(err)
	}
	// What the leader would send, put where raft would put it.
	list, err := g.leader().snapshots.List()
	if err != nil {
		t.Fatal(err)
	}
	meta, r, err := g.leader().snapshots.Open(list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := behind.openDB(); err != nil {
		t.Fatal(err)
	}
	store, err := openSnapshots(filepath.Join(behind.dir, "raft", "snapshots"), behind.db, logger(), newMetrics())
	if err != nil {
		t.Fatal(err)
	}
	to, err := store.Create(1, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(to, r); err != nil || n != meta.Size {
		t.Fatalf("%d bytes, promised %d: %v", n, meta.Size, err)
	}
	if err := errors.Join(r.Close(), to.Close(), behind.db.Close()); err != nil {
		t.Fatal(err)
	}
	g.start(behind.id)
	if behind.AppliedIndex() < 100 {
		t.Errorf("started with a database that holds %d", behind.AppliedIndex())
	}
	g.propose("after")
	g.everywhere(111)
}

func TestDirectoriesThatDoNotFitAreRefused(t *testing.T) {
	g := newGroup(t, 1, false, smallLog)
	for i := range 50 {
		g.propose(fmt.Sprint(i))
	}
	m := g.members[1]
	g.propose("more")
	if err := m.Snapshot(); err != nil {
		t.Fatal(err)
	}
	t.Run("two at once", func(t *testing.T) {
		cfg := m.config()
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "in use by another process") {
			t.Errorf("one directory, two members: %v", err)
		}
	})
	g.stop(1)
	whole := filepath.Join(m.dir, "state.db")
	current, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(name, want string, change func() error, undo func() error) {
		t.Run(name, func(t *testing.T) {
			if err := change(); err != nil {
				t.Fatal(err)
			}
			if err := g.tryStart(1); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
				if err == nil {
					g.stop(1)
				}
			}
			if err := undo(); err != nil {
				t.Fatal(err)
			}
		})
	}
	empty := filepath.Join(t.TempDir(), "empty.db")
	db, err := kv.Open(empty, kv.Options{Buckets: toyBuckets})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	fresh, err := os.ReadFile(empty)
	if err != nil {
		t.Fatal(err)
	}
	restoreDB := func() error { return os.WriteFile(whole, current, 0o600) }
	refused("an older database", "the database is older than", func() error { return os.WriteFile(whole, fresh, 0o600) }, restoreDB)
	raftDir := filepath.Join(m.dir, "raft")
	refused("no log", "the directory is not the one that belongs to the database",
		func() error { return os.Rename(raftDir, raftDir+"-away") },
		func() error { return errors.Join(os.RemoveAll(raftDir), os.Rename(raftDir+"-away", raftDir)) })
	snaps := filepath.Join(raftDir, "snapshots")
	refused("no snapshots", "there is no snapshot",
		func() error { return os.Rename(snaps, snaps+"-away") },
		func() error { return errors.Join(os.RemoveAll(snaps), os.Rename(snaps+"-away", snaps)) })
	node := filepath.Join(raftDir, "node")
	identity, err := os.ReadFile(node)
	if err != nil {
		t.Fatal(err)
	}
	restoreNode := func() error { return os.WriteFile(node, identity, 0o600) }
	refused("another member's", "belongs to metaserver 7", func() error { return os.WriteFile(node, []byte(`{"format":1,"id":7}`), 0o600) }, restoreNode)
	refused("a newer one", "has format 9", func() error { return os.WriteFile(node, []byte(`{"format":9,"id":1}`), 0o600) }, restoreNode)
	refused("garbage", "is damaged", func() error { return os.WriteFile(node, []byte("garbage"), 0o600) }, restoreNode)
	meta := filepath.Join(raftDir, "log", "wal-meta.db")
	contents, err := os.ReadFile(meta)
	if err != nil {
		t.Fatal(err)
	}
	refused("a damaged log", "cannot be opened", func() error { return os.WriteFile(meta, []byte("garbage"), 0o600) },
		func() error { return os.WriteFile(meta, contents, 0o600) })
	records, err := filepath.Glob(filepath.Join(snaps, "*"+recordSuffix))
	if err != nil || len(records) == 0 {
		t.Fatal(records, err)
	}
	record, err := os.ReadFile(records[0])
	if err != nil {
		t.Fatal(err)
	}
	refused("a damaged snapshot", "is damaged", func() error { return os.WriteFile(records[0], append([]byte("0"), record...), 0o600) },
		func() error { return os.WriteFile(records[0], record, 0o600) })
	g.start(1)
	if n := g.leader().count(t, totals, "all"); n != 51 {
		t.Errorf("%d commands are left after all this", n)
	}
}

func TestConfigurationsThatMakeNoSenseAreRefused(t *testing.T) {
	m := &member{id: 1, dir: t.TempDir(), address: "127.0.0.1:1", pool: &rpc.Pool{}}
	if err := m.openDB(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.db.Close(); err != nil {
			t.Error(err)
		}
	}()
	for name, change := range map[string]func(*Config){
		"no id":            func(c *Config) { c.ID = 0 },
		"no address":       func(c *Config) { c.Address = "" },
		"two":              func(c *Config) { c.Peers = map[uint64]string{1: c.Address, 2: "b:1"} },
		"not itself":       func(c *Config) { c.Peers = map[uint64]string{2: "b:1"} },
		"another address":  func(c *Config) { c.Peers = map[uint64]string{1: "b:1"} },
		"shared addresses": func(c *Config) { c.Peers = map[uint64]string{1: c.Address, 2: c.Address, 3: "b:1"} },
		"no database":      func(c *Config) { c.DB = nil },
	} {
		cfg := m.config()
		change(&cfg)
		if n, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
			_ = n.Close()
		}
	}
}

func TestFailedStateMachineLeavesTheGroup(t *testing.T) {
	var poison atomic.Uint64 // the member that panics
	g := newGroup(t, 3, false, func(c *Config) {
		id := c.ID
		c.Apply = func(t kv.Txn, index uint64, cmd *pb.Command) *pb.Result {
			if poison.Load() == id && cmd.Op.GetOpenSession().GetClient() == "poison" {
				panic("on purpose")
			}
			return toyApply(t, index, cmd)
		}
	})
	g.propose("before")
	first := g.leader()
	poison.Store(first.id)
	if _, err := first.Propose(t.Context(), command("poison")); status.Code(err) != codes.Unavailable || rpc.Kind(err) == rpc.NotLeader {
		t.Errorf("a command that was committed and failed here: %v", err)
	}
	<-first.Failed()
	if first.IsLeader() {
		t.Error("a member that failed leads")
	}
	if _, err := first.Propose(t.Context(), command("x")); rpc.Kind(err) != rpc.NotLeader {
		t.Errorf("a proposal to a member that failed: %v", err)
	}
	if err := first.ReadIndex(t.Context()); rpc.Kind(err) != rpc.NotLeader {
		t.Errorf("a read on a member that failed: %v", err)
	}
	second := g.leader(first.id)
	g.propose("after", first.id)
	if n := second.count(t, names, "poison"); n != 1 {
		t.Errorf("the others applied the command %d times", n)
	}
	poison.Store(0)
	g.stop(first.id)
	g.start(first.id)
	g.everywhere(3)
}

func TestFailedDatabaseLeavesTheGroup(t *testing.T) {
	g := newGroup(t, 1, false, nil)
	m := g.leader()
	g.propose("a")
	if err := m.db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Propose(t.Context(), command("b")); status.Code(err) != codes.Unavailable {
		t.Errorf("a command that the database did not take: %v", err)
	}
	<-m.Failed()
	g.stop(1)
	g.start(1)
	waitFor(t, "the command, which was in the log, to be applied", func() bool { return m.count(t, names, "b") == 1 })
}

// A leader that is cut off must not serve reads, whatever it believes.
func TestDeposedLeaderServesNoReads(t *testing.T) {
	g := newGroup(t, 3, true, nil)
	first := g.leader()
	g.propose("a")
	if err := first.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, m := range g.members {
		m.proxy.setCut(true)
	}
	if err := first.ReadIndex(t.Context()); rpc.Kind(err) != rpc.NotLeader {
		t.Fatalf("a read without a majority: %v", err)
	}
	for _, m := range g.members {
		m.proxy.setCut(false)
	}
	g.propose("b")
	if err := retryRead(t, g); err != nil {
		t.Fatal(err)
	}
}

func retryRead(t *testing.T, g *group) error {
	for {
		err := g.leader().ReadIndex(t.Context())
		if rpc.Kind(err) != rpc.NotLeader {
			return err
		}
	}
}

// Every read sees what was reported as done before it began, while leaders change.
func TestReadsAreLinearizableAcrossLeaderChanges(t *testing.T) {
	g := newGroup(t, 3, false, nil)
	var done atomic.Uint64 // commands reported as done
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.RWMutex // held for writing while members change
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			mu.RLock()
			for _, m := range g.members {
				if m.Node == nil || !m.IsLeader() {
					continue
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				if res, err := m.Propose(ctx, command(fmt.Sprint(i))); err == nil && res.Session > done.Load() {
					done.Store(res.Session)
				}
				cancel()
			}
			mu.RUnlock()
		}
	})
	var reads atomic.Int64
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				mu.RLock()
				for _, m := range g.members {
					if m.Node == nil {
						continue
					}
					before := done.Load()
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					err := m.ReadIndex(ctx)
					cancel()
					if err != nil {
						continue
					}
					reads.Add(1)
					if got := m.count(t, totals, "all"); got < before {
						t.Errorf("member %d: a read sees %d commands, %d were done before it", m.id, got, before)
					}
				}
				mu.RUnlock()
			}
		})
	}
	for range 3 {
		seen, read := done.Load(), reads.Load()
		waitFor(t, "progress", func() bool { return done.Load() > seen+50 && reads.Load() > read+50 })
		leader := g.leader()
		mu.Lock()
		g.stop(leader.id)
		mu.Unlock()
		seen = done.Load()
		waitFor(t, "progress without it", func() bool { return done.Load() > seen+20 })
		mu.Lock()
		g.start(leader.id)
		mu.Unlock()
	}
	close(stop)
	wg.Wait()
}

func TestMembersOfTwoClustersDoNotTalk(t *testing.T) {
	clusters := [][]byte{[]byte("cluster of three"), []byte("another cluster!")}
	g := newGroup(t, 3, false, func(c *Config) {
		which := clusters[c.ID/3] // the third belongs elsewhere
		c.Cluster = func() []byte { return which }
	})
	leader := g.leader()
	if leader.id == 3 {
		t.Fatal("the stranger leads")
	}
	g.propose("a")
	if _, err := leader.layer.Dial("unused", 0); err == nil {
		t.Error("a dial without time succeeded")
	}
	_, err := g.members[1].layer.Dial(raft.ServerAddress(g.members[3].address), 5*time.Second)
	if rpc.Kind(errors.Unwrap(err)) != rpc.WrongCluster {
		t.Errorf("a member of another cluster: %v", err)
	}
	if n := g.members[3].count(t, totals, "all"); n != 0 {
		t.Errorf("the stranger applied %d commands", n)
	}
}

func TestProposalsAreBounded(t *testing.T) {
	g := newGroup(t, 1, false, nil)
	m := g.leader()
	if _, err := m.Propose(t.Context(), command(strings.Repeat("x", maxCommand))); rpc.Kind(err) != rpc.TooLarge {
		t.Errorf("a huge command: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Propose(ctx, command("a")); status.Code(err) != codes.Canceled {
		t.Errorf("a proposal whose caller is gone: %v", err)
	}
	var wg sync.WaitGroup
	for i := range 4 * maxAppend {
		wg.Go(func() {
			if _, err := m.Propose(t.Context(), command(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestCloseAnswersEveryProposal(t *testing.T) {
	g := newGroup(t, 3, false, nil)
	m := g.leader()
	var wg sync.WaitGroup
	var started atomic.Int64
	for i := range 64 {
		wg.Go(func() {
			for {
				started.Add(1)
				if _, err := m.Node.Propose(context.Background(), command(fmt.Sprint(i))); err != nil {
					if status.Code(err) != codes.Unavailable {
						t.Errorf("at Close: %v", err)
					}
					return
				}
			}
		})
	}
	waitFor(t, "proposals", func() bool { return started.Load() > 500 })
	if err := m.Node.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if err := m.Node.ReadIndex(context.Background()); err == nil {
		t.Error("a closed node serves reads")
	}
}

// TestCloseHandsOver: nobody stands for election by himself for an hour, so another member leads only because the one that leaves asked it to.
func TestCloseHandsOver(t *testing.T) {
	g := newGroup(t, 3, false, nil)
	m := g.leader()
	g.propose("before")
	for _, other := range g.members {
		conf := other.raft.ReloadableConfig()
		conf.HeartbeatTimeout, conf.ElectionTimeout = time.Hour, time.Hour
		if err := other.raft.ReloadConfig(conf); err != nil {
			t.Fatal(err)
		}
	}
	g.stop(m.id)
	g.propose("after", m.id)
}

// TestStepDownAlone: there is nobody to take it, and it leads on.
func TestStepDownAlone(t *testing.T) {
	g := newGroup(t, 1, false, nil)
	m := g.leader()
	m.StepDown()
	g.propose("after")
	if !m.IsLeader() {
		t.Error("it does not lead any more")
	}
}
