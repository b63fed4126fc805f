package metaserver

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// The race between collection and all that refers to chunks: clients that commit and seal late, sessions that expire, moves
// and rewrites that end, deletions that are ordered, repeated, carried out and reported, inventories that find orphans, leaders
// that change. Each of these is cut into its steps, whatever is on its way takes as long as it likes, and after every step no
// server may lack what the state says it holds.

// race is a cluster whose state is real; clients, servers and the leader's memory are made up.
type race struct {
	*testing.T
	db      *kv.DB
	rng     *rand.Rand
	index   uint64
	clock   int64
	servers map[chunk.ServerID]*raceServer
	clients []*raceClient
	length  map[chunk.ID]uint64 // of all chunks, as far as anybody wrote or made them
	source  map[chunk.ID][]*pb.RewriteRange
	files   map[uint64][]raceByte
	lead    *raceLeader
	steps   map[string]int
	log     []string
}

// raceByte is where a byte of a file was first written.
type raceByte struct {
	chunk chunk.ID
	off   uint64
}

// raceLeader is what a leader has in memory.
type raceLeader struct {
	term     int
	moves    map[string]*pb.Move
	rewrites map[chunk.ID]*raceRewrite
	orphans  map[chunk.ServerID]raceOrphans
}

type raceOrphans struct {
	ids []chunk.ID
	at  int64
}

type raceRewrite struct {
	layout chunk.Layout
	op     *pb.FinishRewrite
	stored []chunk.ID
	server []uint32
	made   []bool
}

// raceServer is a chunk server as chunkserver/orders.go, copies.go and deletions.go make it.
type raceServer struct {
	id        chunk.ServerID
	holds     map[chunk.ID]uint64 // stored id -> bytes
	term      int                 // of the leader that it is connected to
	stream    int                 // number of the one that it has to the leader
	inbox     []raceOrder
	stale     []raceOrder // on older streams
	deleting  []chunk.ID
	copies    []*raceCopy
	running   []*raceCopy
	outbox    []raceReport
	inventory []chunk.ID // listed, and on its way
}

type raceOrder struct {
	stream int
	delete []chunk.ID
	copy   *pb.CopyOrder
}

type raceCopy struct {
	*pb.CopyOrder
	again bool
}

type raceReport struct {
	term    int
	deleted []chunk.ID
	made    chunk.ID
	failed  bool
}

// raceClient is a client with its session.
type raceClient struct {
	session uint64
	seq     uint64
	chunks  []*raceChunk
	flying  []func() // mutations on their way
}

type raceChunk struct {
	id      chunk.ID
	layout  chunk.Layout
	servers []uint32
	broken  []bool
	length  uint64
}

const raceGrace = 100

func newRace(t *testing.T, seed uint64) *race {
	db, err := kv.Open(filepath.Join(t.TempDir(), "db"), kv.Options{Buckets: namespace.Buckets(), FlushInterval: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	w := &race{T: t, db: db, rng: rand.New(rand.NewPCG(seed, 1)), clock: 1000, servers: map[chunk.ServerID]*raceServer{}, length: map[chunk.ID]uint64{},
		source: map[chunk.ID][]*pb.RewriteRange{}, files: map[uint64][]raceByte{}, steps: map[string]int{}}
	w.own(&pb.Op{Op: &pb.Op_InitCluster{InitCluster: &pb.InitCluster{Cluster: make([]byte, 16)}}})
	for i := range 5 {
		uuid := make([]byte, 16)
		uuid[0] = byte(i)
		id := chunk.ServerID(w.own(&pb.Op{Op: &pb.Op_RegisterServer{RegisterServer: &pb.RegisterServer{Uuid: uuid, Address: fmt.Sprint("s:", i)}}}).Server)
		w.servers[id] = &raceServer{id: id, holds: map[chunk.ID]uint64{}}
	}
	w.newLeader()
	for range 2 {
		c := &raceClient{}
		w.open(c)
		w.clients = append(w.clients, c)
	}
	return w
}

func (w *race) apply(cmd *pb.Command) *pb.Result {
	w.index++
	w.clock += int64(w.rng.IntN(10))
	cmd.Version, cmd.Time = namespace.CommandVersion, w.clock
	var res *pb.Result
	if err := w.db.Update(w.index, func(t kv.Txn) error { res = namespace.Apply(t, w.index, cmd); return nil }); err != nil {
		w.Fatal(err)
	}
	return res
}

func (w *race) own(op *pb.Op) *pb.Result {
	w.Helper()
	res := w.apply(&pb.Command{Op: op})
	if res.Errno != 0 {
		w.Fatalf("%v: %v", op, res)
	}
	return res
}

// do applies a mutation of a client, who opens another session when its own has ended.
func (w *race) do(c *raceClient, session uint64, op *pb.Op) syscall.Errno {
	c.seq++
	res := w.apply(&pb.Command{Session: session, Sequence: c.seq, Unanswered: c.seq, Cred: &pb.Cred{}, Op: op})
	if namespace.IsSessionEnded(res) && session == c.session {
		w.open(c)
	}
	return syscall.Errno(res.Errno)
}

func (w *race) open(c *raceClient) {
	nonce := fmt.Appendf(nil, "%016d", w.index)
	c.session, c.seq, c.chunks = w.own(&pb.Op{Op: &pb.Op_OpenSession{OpenSession: &pb.OpenSession{Nonce: nonce}}}).Session, 0, nil
}

func (w *race) view(fn func(r kv.Reader)) {
	if err := w.db.View(func(r kv.Reader) error { fn(r); return nil }); err != nil {
		w.Fatal(err)
	}
}

func pick[T any](w *race, list []T) (out T, ok bool) {
	if len(list) == 0 {
		return out, false
	}
	return list[w.rng.IntN(len(list))], true
}

func sorted[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func (w *race) anyServer() *raceServer {
	return w.servers[chunk.ServerID(1+w.rng.IntN(len(w.servers)))]
}

func (w *race) anyChunk(fit func(*namespace.ChunkRecord) bool) (out *namespace.ChunkRecord) {
	var all []*namespace.ChunkRecord
	w.view(func(r kv.Reader) {
		namespace.Chunks(r, 0, func(c *namespace.ChunkRecord) bool {
			if fit(c) {
				all = append(all, c)
			}
			return true
		})
	})
	out, _ = pick(w, all)
	return out
}

func (w *race) candidates() (out []*pb.Candidate) {
	for id := range w.servers {
		out = append(out, &pb.Candidate{Server: uint32(id), Weight: 1})
	}
	return out
}

// newLeader takes over: nothing of what another had in memory is known, and what it left unfinished is dropped some time.
func (w *race) newLeader() {
	term := 1
	if w.lead != nil {
		term = w.lead.term + 1
	}
	w.lead = &raceLeader{term: term, moves: map[string]*pb.Move{}, rewrites: map[chunk.ID]*raceRewrite{}, orphans: map[chunk.ServerID]raceOrphans{}}
}

// origin is where a byte of a chunk was first written.
func (w *race) origin(id chunk.ID, off uint64) raceByte {
	ranges, made := w.source[id]
	if !made {
		return raceByte{id, off}
	}
	for _, g := range ranges {
		n := uint64(g.To - g.From)
		if off < n {
			return w.origin(chunk.ID(g.Chunk), uint64(g.From)+off)
		}
		off -= n
	}
	return raceByte{} // padding
}

// check: no server lacks what the state says it holds, writers lose nothing while they may commit it, and files are what they
// should be.
func (w *race) check(what string) {
	w.Helper()
	w.log = append(w.log, what)
	fail := func(format string, args ...any) {
		w.Helper()
		for _, l := range w.log[max(0, len(w.log)-60):] {
			w.Log(l)
		}
		w.Fatalf("after %q: "+format, append([]any{what}, args...)...)
	}
	owners := map[uint64]*raceClient{}
	for _, c := range w.clients {
		owners[c.session] = c
	}
	w.view(func(r kv.Reader) {
		namespace.Chunks(r, 0, func(c *namespace.ChunkRecord) bool {
			for shard, id := range c.Servers {
				if c.Holds(shard) && w.servers[id].holds[c.Stored(shard)] < c.Layout.ShardLength(c.Length) {
					fail("server %d lacks shard %d of chunk %v: %+v", id, shard, c.ID, c)
				}
			}
			if c.Owner != 0 && c.Owner != namespace.Rewriter && owners[c.Owner] != nil {
				for _, k := range owners[c.Owner].chunks {
					for shard, s := range k.servers {
						if k.id == c.ID && s != 0 && !k.broken[shard] && w.servers[chunk.ServerID(s)].holds[k.id.Stored(k.layout, shard)] < k.layout.ShardLength(k.length) {
							fail("server %d lacks what the writer of chunk %v put there: %+v", s, c.ID, c)
						}
					}
				}
			}
			return true
		})
		for _, c := range owners {
			for _, k := range c.chunks {
				if _, ok := namespace.Chunk(r, k.id); !ok && namespace.HasSession(r, c.session) {
					fail("chunk %v is gone, though session %d has not given it up", k.id, c.session)
				}
			}
		}
		for f, want := range w.files {
			got := make([]raceByte, len(want))
			x, err := namespace.Extents(r, f, 0, 0)
			if err != nil || x.Attr.Size != uint64(len(want)) {
				fail("file %d: %v, %v, want %d bytes", f, x, err, len(want))
			}
			for _, e := range x.Extents {
				for i := range e.Length {
					got[e.Offset+i] = w.origin(chunk.ID(e.Chunk), e.ChunkOffset+i)
				}
			}
			if !slices.Equal(got, want) {
				fail("file %d is %v, want %v", f, got, want)
			}
		}
	})
}

// quiet lets everything end that is under way. Then servers have what the state says, and nothing else.
func (w *race) quiet() {
	for _, c := range w.clients {
		w.own(&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: []uint64{c.session}}}})
		w.open(c)
	}
	for range 300 {
		for _, do := range []func(*race) bool{(*race).connect, (*race).failMove, (*race).dropRewrites, (*race).orderMove, (*race).list, (*race).judge, (*race).receive,
			(*race).delete, (*race).beginCopy, (*race).endCopy, (*race).report} {
			for range 8 {
				do(w)
			}
		}
		w.clock += raceGrace
		for range 8 {
			w.orderDeletions()
		}
		w.check("all comes to rest")
	}
	w.view(func(r kv.Reader) {
		for id, s := range w.servers {
			for stored := range s.holds {
				if c, ok := namespace.Chunk(r, stored.Chunk()); !ok || !c.BelongsOn(id, stored) {
					w.Errorf("server %d still has %v: %+v", id, stored, c)
				}
			}
		}
	})
}

// TestCollection makes random steps and checks after each.
func TestCollection(t *testing.T) {
	seeds := uint64(20)
	if os.Getenv("SHOAL_LONG") != "" {
		seeds = 300
	}
	total := map[string]int{}
	for seed := range seeds {
		w := newRace(t, seed)
		for range 4000 {
			kinds := raceSteps[w.rng.IntN(len(raceSteps))]
			if kinds.do(w) {
				w.steps[kinds.name]++
				w.check(kinds.name)
			}
			w.clock += int64(w.rng.IntN(20))
		}
		w.quiet()
		w.view(func(r kv.Reader) {
			for _, p := range namespace.Check(r) {
				t.Error(p)
			}
		})
		for k, n := range w.steps {
			total[k] += n
		}
		if t.Failed() {
			return
		}
	}
	for _, s := range raceSteps {
		if total[s.name] < int(seeds) {
			t.Errorf("it hardly happens that %s: %d times", s.name, total[s.name])
		}
	}
	for _, k := range sorted(total) {
		t.Logf("%s: %d", k, total[k])
	}
}
