package rewrite

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// grace is how long servers keep what was deleted.
const grace = 6 * time.Second

// world is a cluster whose state is real and whose servers are made up, but hold real bytes. Its clock is that of the bubble
// that the test runs in.
type world struct {
	t   *testing.T
	db  *kv.DB
	e   *Engine
	rng *rand.Rand // the test's alone

	log     sync.Mutex // never taken while mu is held, or in a View
	index   uint64
	mu      sync.Mutex
	chance  *rand.Rand
	seq     uint64
	session uint64
	servers map[chunk.ServerID]*fakeServer
	failing bool
	paused  bool // servers do nothing but delete
	busy    string
	changes int

	files map[uint64][]byte // what each should hold; the test's alone
	names int               // used for files and sessions
	open  map[chunk.Layout]*openChunk
}

type fakeServer struct {
	info  *pb.ServerInfo
	holds map[chunk.ID][]byte // by stored id
}

// openChunk is one that the client writes.
type openChunk struct {
	*pb.AllocatedChunk
	layout chunk.Layout
	data   []byte
}

func newWorld(t *testing.T, seed uint64, servers int, cfg Config) *world {
	db, err := kv.Open(filepath.Join(t.TempDir(), "db"), kv.Options{Buckets: namespace.Buckets(), FlushInterval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, db: db, rng: rand.New(rand.NewPCG(seed, 1)), chance: rand.New(rand.NewPCG(seed, 2)), servers: map[chunk.ServerID]*fakeServer{}, files: map[uint64][]byte{}}
	w.own(&pb.Op{Op: &pb.Op_InitCluster{InitCluster: &pb.InitCluster{Cluster: make([]byte, 16)}}})
	for i := range servers {
		uuid := make([]byte, 16)
		uuid[0] = byte(i)
		address := fmt.Sprintf("s%d:1", i)
		id := w.own(&pb.Op{Op: &pb.Op_RegisterServer{RegisterServer: &pb.RegisterServer{Uuid: uuid, Address: address}}}).Server
		w.servers[chunk.ServerID(id)] = &fakeServer{holds: map[chunk.ID][]byte{}, info: &pb.ServerInfo{
			Id: id, Address: address, State: pb.ServerState_SERVER_STATE_HEALTHY, Capacity: 1 << 40, Free: 1 << 39}}
	}
	w.openSession()
	if os.Getenv("SHOAL_TEST_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w.e = New(w, cfg)
	return w
}

// run lets engine and servers work until the test's function returns.
func (w *world) run(fn func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.e.Run(ctx) })
	for id := range w.servers {
		wg.Go(func() { w.serve(ctx, id) })
	}
	fn()
	cancel()
	wg.Wait()
	if err := w.db.Close(); err != nil {
		w.t.Error(err)
	}
}

func (w *world) apply(cmd *pb.Command) (*pb.Result, error) {
	w.log.Lock()
	defer w.log.Unlock()
	w.index++
	cmd.Version, cmd.Time = namespace.CommandVersion, time.Now().UnixNano()
	var res *pb.Result
	if err := w.db.Update(w.index, func(t kv.Txn) error { res = namespace.Apply(t, w.index, cmd); return nil }); err != nil {
		return nil, err
	}
	if res.Errno != 0 {
		return nil, fserr.New(syscall.Errno(res.Errno), "%s", res.Message)
	}
	return res, nil
}

// own applies a command of the leader, which has to succeed.
func (w *world) own(op *pb.Op) *pb.Result {
	w.t.Helper()
	res, err := w.apply(&pb.Command{Op: op})
	if err != nil {
		w.t.Fatalf("%v: %v", op, err)
	}
	return res
}

// do applies one of the client.
func (w *world) do(op *pb.Op) *pb.Result {
	w.t.Helper()
	w.seq++
	res, err := w.apply(&pb.Command{Session: w.session, Sequence: w.seq, Unanswered: w.seq, Cred: &pb.Cred{}, Op: op})
	if err != nil {
		w.t.Fatalf("%v: %v", op, err)
	}
	return res
}

func (w *world) openSession() {
	w.names++
	nonce := fmt.Appendf(nil, "%016d", w.names)
	w.session, w.seq = w.own(&pb.Op{Op: &pb.Op_OpenSession{OpenSession: &pb.OpenSession{Nonce: nonce}}}).Session, 0
	w.open = map[chunk.Layout]*openChunk{}
}

// expire ends the client's session: what it has open is sealed.
func (w *world) expire() {
	w.own(&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: []uint64{w.session}}}})
	w.openSession()
}

func (w *world) View(fn func(kv.Reader) error) error { return w.db.View(fn) }
func (w *world) Poke(chunk.ServerID)                 {}
func (w *world) Default() chunk.Layout               { return chunk.Copies(3) }

func (w *world) Propose(op *pb.Op) (*pb.Result, error) {
	w.mu.Lock()
	lost := w.failing && w.chance.IntN(10) == 0
	w.mu.Unlock()
	if lost {
		return nil, errors.New("no luck with the log")
	}
	return w.apply(&pb.Command{Op: op})
}

func (w *world) Change(ctx context.Context, inodes []uint64) (func(), error) {
	w.mu.Lock()
	w.changes += len(inodes)
	d := time.Duration(w.chance.IntN(500)) * time.Millisecond
	w.mu.Unlock()
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return func() {}, nil
}

func (w *world) Servers() []*pb.ServerInfo {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*pb.ServerInfo
	for _, s := range w.servers {
		out = append(out, &pb.ServerInfo{Id: s.info.Id, Address: s.info.Address, State: s.info.State, Draining: s.info.Draining, Free: s.info.Free})
	}
	return out
}

func (w *world) Place(want chunk.Layout) (chunk.Layout, []*pb.Candidate, string) {
	out := w.candidates()
	if len(out) < want.Min {
		return want, nil, fmt.Sprintf("%v needs %d servers", want, want.Min)
	}
	return want, out, ""
}

func (w *world) candidates() []*pb.Candidate {
	var out []*pb.Candidate
	for _, s := range w.Servers() {
		if s.State == pb.ServerState_SERVER_STATE_HEALTHY && !s.Draining {
			out = append(out, &pb.Candidate{Server: s.Id, Weight: s.Free})
		}
	}
	return out
}

func (w *world) Busy() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.busy
}

// serve is a chunk server: it makes what it is told, and deletes what was deleted long enough ago.
func (w *world) serve(ctx context.Context, id chunk.ServerID) {
	for {
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
		w.mu.Lock()
		up := w.servers[id].info.State != pb.ServerState_SERVER_STATE_DEAD
		w.mu.Unlock()
		if !up {
			continue
		}
		var gone []uint64
		_ = w.db.View(func(r kv.Reader) error {
			for _, stored := range namespace.Deletions(r, id, time.Now().Add(-grace).UnixNano(), 1000) {
				gone = append(gone, uint64(stored))
			}
			return nil
		})
		w.mu.Lock()
		for _, stored := range gone {
			delete(w.servers[id].holds, chunk.ID(stored))
		}
		w.mu.Unlock()
		if _, err := w.apply(&pb.Command{Op: &pb.Op{Op: &pb.Op_FinishDeletions{FinishDeletions: &pb.FinishDeletions{Server: uint32(id), Chunks: gone}}}}); err != nil {
			w.t.Error(err)
		}
		w.mu.Lock()
		paused := w.paused
		w.mu.Unlock()
		if paused {
			continue
		}
		for _, o := range w.e.Orders(id, 64) {
			w.obey(id, o)
		}
	}
}

// obey makes a shard as chunk servers do, if it can. Some of it fails, and some answers get lost.
func (w *world) obey(id chunk.ServerID, o *pb.CopyOrder) {
	w.mu.Lock()
	res := &pb.CopyResult{Stored: o.Stored, Bytes: o.Length}
	luck := 10
	if w.failing {
		luck = w.chance.IntN(10)
	}
	shard, err := w.make(o)
	switch {
	case luck == 0:
		res.Error = "no luck"
	case err != nil:
		res.Error = err.Error()
	default:
		w.servers[id].holds[chunk.ID(o.Stored)] = shard
	}
	w.mu.Unlock()
	if luck != 1 {
		w.e.Copied(id, []*pb.CopyResult{res})
	}
}

func (w *world) make(o *pb.CopyOrder) ([]byte, error) {
	l := chunk.LayoutOf(o.Layout)
	var all []byte
	for _, r := range o.Ranges {
		src := o.Sources[r.Source]
		data, err := w.chunk(chunk.ID(src.Id), chunk.LayoutOf(src.Layout), src.Servers)
		if err != nil {
			return nil, err
		}
		all = append(all, data[r.From:r.To]...)
	}
	shard := shards(l, all)[o.Shard]
	if uint64(len(shard)) != o.Length {
		return nil, fmt.Errorf("a shard of %d bytes, told %d", len(shard), o.Length)
	}
	return shard, nil
}

// chunk puts the bytes of a chunk together from what these servers hold.
func (w *world) chunk(id chunk.ID, l chunk.Layout, servers []uint32) ([]byte, error) {
	have := make([][]byte, l.Width())
	n := 0
	for shard, s := range servers {
		f := w.servers[chunk.ServerID(s)]
		if f == nil || f.info.State == pb.ServerState_SERVER_STATE_DEAD {
			continue
		}
		if b := f.holds[id.Stored(l, shard)]; b != nil {
			have[shard] = b
			n++
		}
	}
	if n < l.Data {
		return nil, fmt.Errorf("chunk %v: %d shards of %v are there", id, n, l)
	}
	if !l.Coded() {
		for _, b := range have {
			if b != nil {
				return b, nil
			}
		}
	}
	wanted := make([]bool, l.Width())
	for i := range l.Data {
		wanted[i] = have[i] == nil
	}
	length := 0
	for _, b := range have {
		length = max(length, len(b))
	}
	for i, b := range have {
		if b != nil && len(b) != length { // one that lags: a writer's
			have[i] = nil
		}
	}
	if err := l.Rebuild(have, wanted); err != nil {
		return nil, err
	}
	out := make([]byte, length*l.Data)
	l.Runs(0, uint64(len(out)), func(r chunk.Run) { copy(out[r.Chunk:], have[r.Shard][r.Offset:r.Offset+uint64(r.Len)]) })
	return out, nil
}

// shards cuts and codes the bytes of a chunk.
func shards(l chunk.Layout, data []byte) [][]byte {
	out := make([][]byte, l.Width())
	if !l.Coded() {
		for i := range out {
			out[i] = data
		}
		return out
	}
	padded := make([]byte, l.Padded(len(data)))
	copy(padded, data)
	for i := range out {
		out[i] = make([]byte, len(padded)/l.Data)
	}
	l.Scatter(out[:l.Data], padded)
	if err := l.Encode(out); err != nil {
		panic(err)
	}
	return out
}
