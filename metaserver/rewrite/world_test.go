package rewrite

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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
	db, err := kv.Open(filepath.Join(t.TempDir(), "db"), kv.Options{Buckets: namespace.Buckets()})
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

// create makes a file.
func (w *world) create() uint64 {
	w.names++
	name := fmt.Append(nil, w.names)
	f := w.do(&pb.Op{Op: &pb.Op_MakeNode{MakeNode: &pb.MakeNode{Parent: 1, Name: name, Mode: 0o100644}}}).Attr.Inode
	w.files[f] = nil
	return f
}

// write writes random bytes as a client does: appends them to a chunk that it has open, and publishes them in one commit.
func (w *world) write(f, off uint64, n int, l chunk.Layout) bool {
	w.t.Helper()
	if l.Coded() {
		l.Cell = chunk.PackedCell
	}
	c := w.open[l]
	if c != nil && len(c.data)+n > 1<<20 {
		w.do(&pb.Op{Op: &pb.Op_SealChunks{SealChunks: &pb.SealChunks{Chunks: []*pb.ChunkCommit{{Chunk: c.Id, Length: uint64(len(c.data)), Servers: c.Servers}}}}})
		c = nil
	}
	if c == nil {
		candidates := w.candidates()
		if len(candidates) < l.Width() {
			delete(w.open, l)
			return false
		}
		res := w.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 1, Layout: l.Proto(), Candidates: candidates}}})
		c = &openChunk{AllocatedChunk: res.Chunks[0], layout: l}
		w.open[l] = c
	}
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, w.rng.Uint64())
	}
	b = b[:n]
	at := len(c.data)
	c.data = append(c.data, b...)
	c.data = append(c.data, make([]byte, l.Padded(len(c.data))-len(c.data))...)
	w.mu.Lock()
	for shard, data := range shards(l, c.data) {
		w.servers[chunk.ServerID(c.Servers[shard])].holds[chunk.ID(c.Id).Stored(l, shard)] = data
	}
	w.mu.Unlock()
	w.do(&pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: f, Extents: []*pb.Extent{{Offset: off, Length: uint64(n), Chunk: c.Id, ChunkOffset: uint64(at)}},
		Chunks: []*pb.ChunkCommit{{Chunk: c.Id, Length: uint64(len(c.data)), Servers: c.Servers}}}}})
	data := w.files[f]
	if need := int(off) + n; need > len(data) {
		data = append(data, make([]byte, need-len(data))...)
	}
	copy(data[off:], b)
	w.files[f] = data
	return true
}

func (w *world) truncate(f, size uint64) {
	w.do(&pb.Op{Op: &pb.Op_SetAttr{SetAttr: &pb.SetAttr{Inode: f, Size: &size}}})
	data := w.files[f]
	w.files[f] = append(data[:min(int(size), len(data))], make([]byte, max(0, int(size)-len(data)))...)
}

// check reads all files as clients would, and checks the state.
func (w *world) check() {
	w.t.Helper()
	for _, f := range slices.Sorted(maps.Keys(w.files)) {
		got, err := w.read(f)
		if err != nil {
			w.t.Fatalf("inode %d: %v", f, err)
		}
		if i := mismatch(got, w.files[f]); i >= 0 {
			w.t.Fatalf("inode %d: another byte at %d of %d (%d)", f, i, len(w.files[f]), len(got))
		}
	}
	_ = w.db.View(func(r kv.Reader) error {
		for _, p := range namespace.Check(r) {
			w.t.Error(p)
		}
		return nil
	})
	if w.t.Failed() {
		w.t.FailNow()
	}
}

func mismatch(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// read reads a file out of what the servers that metadata names hold.
func (w *world) read(f uint64) (out []byte, err error) {
	err = w.db.View(func(r kv.Reader) error {
		for off := uint64(0); ; {
			x, err := namespace.Extents(r, f, off, 0)
			if err != nil {
				return err
			}
			if out == nil {
				out = make([]byte, x.Attr.Size)
			}
			if err := w.readExtents(x, out); err != nil {
				return err
			}
			if off = x.End; off >= x.Attr.Size {
				return nil
			}
		}
	})
	return out, err
}

func (w *world) readExtents(x *pb.ExtentsReply, out []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	cache := map[uint64][]byte{}
	for _, c := range x.Chunks {
		var err error
		if cache[c.Id], err = w.chunk(chunk.ID(c.Id), chunk.LayoutOf(c.Layout), c.Servers); err != nil {
			return err
		}
	}
	for _, e := range x.Extents {
		from := e.Data
		if e.Chunk != 0 {
			from = cache[e.Chunk][e.ChunkOffset:]
		}
		copy(out[e.Offset:e.Offset+e.Length], from)
	}
	return nil
}

// totals are of all sealed chunks.
func (w *world) totals() (length, live uint64, chunks int) {
	_ = w.db.View(func(r kv.Reader) error {
		namespace.Chunks(r, 0, func(c *namespace.ChunkRecord) bool {
			if c.Owner == 0 {
				length, live, chunks = length+c.Length, live+c.Live, chunks+1
			}
			return true
		})
		return nil
	})
	return length, live, chunks
}
