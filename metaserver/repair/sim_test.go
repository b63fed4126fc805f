package repair

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// world is a cluster whose state is real and whose servers are made up: for each what it really holds.
type world struct {
	t       *testing.T
	db      *kv.DB
	index   uint64
	clock   int64
	session uint64
	seq     uint64
	rng     *rand.Rand
	servers map[chunk.ServerID]*fakeServer
	e       *Engine
	file    uint64
	at      uint64 // where in the file the next chunk goes
	during  func() // what happens, once, while the state is looked at
}

type fakeServer struct {
	info  *pb.ServerInfo
	holds map[chunk.ID]bool // stored id -> good
	rack  string
}

func newWorld(t *testing.T, seed uint64, servers int) *world {
	db, err := kv.Open(filepath.Join(t.TempDir(), "db"), kv.Options{Buckets: namespace.Buckets()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	w := &world{t: t, db: db, rng: rand.New(rand.NewPCG(seed, 1)), servers: map[chunk.ServerID]*fakeServer{}}
	w.own(&pb.Op{Op: &pb.Op_InitCluster{InitCluster: &pb.InitCluster{Cluster: make([]byte, 16)}}})
	w.session = w.own(&pb.Op{Op: &pb.Op_OpenSession{OpenSession: &pb.OpenSession{Nonce: make([]byte, 16)}}}).Session
	for range servers {
		w.addServer()
	}
	w.file = w.do(&pb.Op{Op: &pb.Op_MakeNode{MakeNode: &pb.MakeNode{Parent: 1, Name: []byte("f"), Mode: 0o100644}}}).Attr.Inode
	w.e = New(w, Config{StormPatience: time.Nanosecond})
	return w
}

func (w *world) addServer() *fakeServer {
	n := len(w.servers) + 1
	uuid := make([]byte, 16)
	uuid[0] = byte(n)
	address := fmt.Sprintf("s%d:1", n)
	id := w.own(&pb.Op{Op: &pb.Op_RegisterServer{RegisterServer: &pb.RegisterServer{Uuid: uuid, Address: address}}}).Server
	s := &fakeServer{holds: map[chunk.ID]bool{}, rack: fmt.Sprint(n % 4), info: &pb.ServerInfo{
		Id: id, Address: address, State: pb.ServerState_SERVER_STATE_HEALTHY, Capacity: 1 << 40, Free: 1 << 39}}
	w.servers[chunk.ServerID(id)] = s
	return s
}

func (w *world) apply(cmd *pb.Command) *pb.Result {
	w.index++
	w.clock++
	cmd.Version, cmd.Time = namespace.CommandVersion, w.clock
	var res *pb.Result
	if err := w.db.Update(w.index, func(t kv.Txn) error { res = namespace.Apply(t, w.index, cmd); return nil }); err != nil {
		w.t.Fatal(err)
	}
	return res
}

func (w *world) own(op *pb.Op) *pb.Result {
	w.t.Helper()
	res := w.apply(&pb.Command{Op: op})
	if res.Errno != 0 {
		w.t.Fatalf("%v: %v", op, res)
	}
	return res
}

func (w *world) do(op *pb.Op) *pb.Result {
	w.t.Helper()
	w.seq++
	res := w.apply(&pb.Command{Session: w.session, Sequence: w.seq, Unanswered: w.seq, Cred: &pb.Cred{}, Op: op})
	if res.Errno != 0 {
		w.t.Fatalf("%v: %v", op, res)
	}
	return res
}

func (w *world) View(fn func(kv.Reader) error) error {
	if during := w.during; during != nil {
		w.during = nil
		during()
	}
	return w.db.View(fn)
}
func (w *world) Poke(chunk.ServerID) {}
func (w *world) Domain(id chunk.ServerID) []string {
	return []string{"", w.servers[id].rack, fmt.Sprint(id)}
}
func (w *world) Propose(op *pb.Op) (*pb.Result, error) { return w.own(op), nil }
func (w *world) Servers() []*pb.ServerInfo {
	var out []*pb.ServerInfo
	for _, s := range w.servers {
		out = append(out, s.info)
	}
	return out
}

// write makes a chunk of a layout as a client does: some of its targets may not get it. The rest of the file stays as it is.
func (w *world) write(l chunk.Layout, rows int, seal bool) {
	op := &pb.AllocChunks{Count: 1, Layout: l.Proto()}
	up := 0
	for id, s := range w.servers {
		if s.info.State == pb.ServerState_SERVER_STATE_HEALTHY && !s.info.Draining {
			op.Candidates = append(op.Candidates, &pb.Candidate{Server: uint32(id), Weight: 1, Domain: w.Domain(id)})
			up++
		}
	}
	if up < l.Min {
		return
	}
	c := w.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: op}}).Chunks[0]
	n := uint64(rows * l.Row())
	var holders []uint32
	for shard, s := range c.Servers {
		if s != 0 && (w.rng.IntN(4) > 0 || len(c.Servers)-shard <= l.Min-len(holders)) {
			holders = append(holders, s)
			w.servers[chunk.ServerID(s)].holds[chunk.ID(c.Id).Stored(l, shard)] = true
		}
	}
	if len(holders) < l.Min {
		return // the client would have gone elsewhere
	}
	w.do(&pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: w.file, Size: w.at + n, Extents: []*pb.Extent{{Offset: w.at, Length: n, Chunk: c.Id}},
		Chunks: []*pb.ChunkCommit{{Chunk: c.Id, Length: n, Servers: holders, Seal: seal}}}}})
	w.at += n
}

// serve has the servers that are up do what they were told. Some of it fails.
func (w *world) serve(failing bool) {
	for id, s := range w.servers {
		if s.info.State != pb.ServerState_SERVER_STATE_HEALTHY {
			continue
		}
		var deleted []uint64
		_ = w.db.View(func(r kv.Reader) error {
			for _, stored := range namespace.Deletions(r, id, w.clock, 1000) {
				delete(s.holds, stored)
				deleted = append(deleted, uint64(stored))
			}
			return nil
		})
		w.own(&pb.Op{Op: &pb.Op_FinishDeletions{FinishDeletions: &pb.FinishDeletions{Server: uint32(id), Chunks: deleted}}})
		w.e.Deleted(id, deleted)
		w.e.forgetOrders() // as if the server asked every time
		for _, o := range w.e.Orders(id, 1000) {
			if failing && w.rng.IntN(5) == 0 {
				w.e.Copied(id, []*pb.CopyResult{{Stored: o.Stored, Error: "no luck"}})
				continue
			}
			if failing && w.rng.IntN(5) == 0 {
				continue // lost
			}
			w.obey(id, s, o)
		}
	}
}

// obey makes a shard if the sources named really have what it takes.
func (w *world) obey(id chunk.ServerID, s *fakeServer, o *pb.CopyOrder) {
	l := chunk.LayoutOf(o.Layout)
	good := 0
	for shard, src := range o.Source.Servers {
		if src == 0 {
			continue
		}
		f := w.servers[chunk.ServerID(src)]
		if f.info.State != pb.ServerState_SERVER_STATE_DEAD && f.holds[chunk.ID(o.Source.Id).Stored(l, shard)] {
			good++
		}
	}
	res := &pb.CopyResult{Stored: o.Stored, Bytes: o.Length}
	if good < l.Data && !s.holds[chunk.ID(o.Stored)] {
		res.Error = "too few sources"
	} else {
		s.holds[chunk.ID(o.Stored)] = true
	}
	w.e.Copied(id, []*pb.CopyResult{res})
}

// step lets the engine work as if time had gone by.
func (w *world) step() {
	w.t.Helper()
	w.e.surveyed = time.Time{}
	clear(w.e.retries)
	w.e.stale = true
	if err := w.e.step(context.Background()); err != nil {
		w.t.Fatal(err)
	}
}

// check: the state is sound, and every chunk can be read from what its record names, were all servers up.
func (w *world) check() {
	w.t.Helper()
	if err := w.db.View(func(r kv.Reader) error {
		for _, p := range namespace.Check(r) {
			w.t.Error(p)
		}
		namespace.Chunks(r, 0, func(c *namespace.ChunkRecord) bool {
			good := 0
			for shard, id := range c.Servers {
				if id != 0 && w.servers[id].holds[c.Stored(shard)] {
					good++
				}
			}
			if good < c.Layout.Data && c.Length > 0 {
				w.t.Errorf("chunk %v: %d of %d shards are left where the record says: %+v", c.ID, good, c.Layout.Data, c)
			}
			return true
		})
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// ruin damages shards on a server, never so many that a chunk is lost, and has the server find them.
func (w *world) ruin(id chunk.ServerID) {
	s := w.servers[id]
	var lost []uint64
	_ = w.db.View(func(r kv.Reader) error {
		for stored := range s.holds {
			c, ok := namespace.Chunk(r, stored.Chunk())
			if !ok || w.rng.IntN(2) == 0 {
				continue
			}
			good := 0
			for shard, o := range c.Servers {
				if o != 0 && w.servers[o].holds[c.Stored(shard)] {
					good++
				}
			}
			if shard := c.ShardOn(id); shard >= 0 && c.Stored(shard) == stored && good > c.Layout.Data+1 {
				lost = append(lost, uint64(stored))
			}
		}
		return nil
	})
	for _, stored := range lost {
		s.holds[chunk.ID(stored)] = false
	}
	w.own(&pb.Op{Op: &pb.Op_LoseShards{LoseShards: &pb.LoseShards{Server: uint32(id), Stored: lost}}})
}

// TestHeals: whatever comes and goes, no chunk loses what it needs, and when all is quiet every chunk is whole, drained servers
// are empty, and nothing is on the move.
func TestHeals(t *testing.T) {
	layouts := []chunk.Layout{chunk.Copies(3), chunk.Copies(2), {Data: 4, Parity: 2, Min: 5, Cell: 1024}, {Data: 2, Parity: 2, Min: 3, Cell: 512}}
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t, seed, 9)
			ids := func() []chunk.ServerID {
				var out []chunk.ServerID
				for id := range w.servers {
					out = append(out, id)
				}
				slices.Sort(out)
				return out
			}
			for range 150 {
				id := ids()[w.rng.IntN(len(w.servers))]
				s := w.servers[id]
				dead := 0
				for _, s := range w.servers {
					if s.info.State == pb.ServerState_SERVER_STATE_DEAD {
						dead++
					}
				}
				switch w.rng.IntN(10) {
				case 0, 1, 2:
					w.write(layouts[w.rng.IntN(len(layouts))], 1+w.rng.IntN(20), w.rng.IntN(3) > 0)
				case 3:
					s.info.State = pb.ServerState_SERVER_STATE_HEALTHY
				case 4:
					if dead < 3 {
						s.info.State = pb.ServerState_SERVER_STATE_DEAD
					}
				case 5:
					if s.info.State == pb.ServerState_SERVER_STATE_HEALTHY {
						w.ruin(id)
					}
				case 6:
					s.info.Draining = !s.info.Draining && w.rng.IntN(3) == 0
					w.own(&pb.Op{Op: &pb.Op_SetServer{SetServer: &pb.SetServer{Server: uint32(id), Draining: s.info.Draining}}})
				default:
					w.step()
					w.serve(true)
				}
				if w.rng.IntN(20) == 0 { // another leads
					w.e = New(w, Config{StormPatience: time.Nanosecond})
				}
				w.check()
			}
			drained := ids()[w.rng.IntN(9)]
			for id, s := range w.servers {
				s.info.State, s.info.Draining = pb.ServerState_SERVER_STATE_HEALTHY, id == drained
				w.own(&pb.Op{Op: &pb.Op_SetServer{SetServer: &pb.SetServer{Server: uint32(id), Draining: s.info.Draining}}})
			}
			w.own(&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: []uint64{w.session}}}})
			for range 30 {
				w.step()
				w.serve(false)
				w.check()
			}
			w.step()
			r := w.e.Report()
			if !r.Known || r.Degraded+r.Endangered+r.Unreadable+r.Moving+r.Drains > 0 || r.Full == 0 || r.HeldBack != "" {
				t.Errorf("%+v", r)
			}
			_ = w.db.View(func(rd kv.Reader) error {
				namespace.Chunks(rd, 0, func(c *namespace.ChunkRecord) bool {
					for shard, id := range c.Servers {
						if !c.Holds(shard) || !w.servers[id].holds[c.Stored(shard)] {
							t.Errorf("chunk %v is not whole: %+v", c.ID, c)
						}
					}
					return true
				})
				namespace.Copies(rd, drained, func(id chunk.ID) bool { t.Errorf("%v is still on the drained server", id); return true })
				return nil
			})
			w.own(&pb.Op{Op: &pb.Op_RemoveServer{RemoveServer: &pb.RemoveServer{Server: uint32(drained)}}})
			w.check()
		})
	}
}

// forgetOrders has all orders given again.
func (e *Engine) forgetOrders() {
	for _, m := range e.moves {
		m.ordered = time.Time{}
	}
}
