package namespace

import (
	"bytes"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"github.com/tidwall/btree"
	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// store is a kv.Txn in memory. What it hands out is overwritten when the command is over, so that a result which shares
// memory with the state is found out, and it notices when somebody wrote to it.
type store struct {
	buckets []btree.Map[string, []byte]
	undo    []undo
	lent    []lent
	fast    bool // lend the state itself: for benchmarks
}

type undo struct {
	b   kv.Bucket
	key string
	old []byte
	had bool
}

type lent struct{ out, want []byte }

func newStore() *store { return &store{buckets: make([]btree.Map[string, []byte], len(Buckets()))} }

func (s *store) lend(v []byte) []byte {
	if s.fast {
		return v
	}
	out := append([]byte{}, v...)
	s.lent = append(s.lent, lent{out, v})
	return out
}

func (s *store) Get(b kv.Bucket, key []byte) []byte {
	if v, ok := s.buckets[b].Get(string(key)); ok {
		return s.lend(v)
	}
	return nil
}

func (s *store) Scan(b kv.Bucket, from []byte, fn func(key, value []byte) bool) {
	s.buckets[b].Ascend(string(from), func(k string, v []byte) bool { return fn(s.lend([]byte(k)), s.lend(v)) })
}

func (s *store) remember(b kv.Bucket, key string) {
	old, had := s.buckets[b].Get(key)
	s.undo = append(s.undo, undo{b, key, old, had})
}

func (s *store) Put(b kv.Bucket, key, value []byte) {
	if len(key) == 0 {
		panic("an empty key")
	}
	s.remember(b, string(key))
	s.buckets[b].Set(string(key), append([]byte{}, value...))
}

func (s *store) Delete(b kv.Bucket, key []byte) {
	s.remember(b, string(key))
	s.buckets[b].Delete(string(key))
}

func (s *store) Reset() {
	for _, u := range slices.Backward(s.undo) {
		if u.had {
			s.buckets[u.b].Set(u.key, u.old)
		} else {
			s.buckets[u.b].Delete(u.key)
		}
	}
	s.undo = nil
}

// settle ends a command or a read.
func (s *store) settle(t testing.TB) {
	s.undo = nil
	for _, l := range s.lent {
		if !bytes.Equal(l.out, l.want) {
			t.Fatalf("a stored value was changed: %x to %x", l.want, l.out)
		}
		for i := range l.out {
			l.out[i] = 0xaa
		}
	}
	s.lent = nil
}

// dump is the whole state, a line a key.
func (s *store) dump() []string {
	var out []string
	for b := range s.buckets {
		s.buckets[b].Scan(func(k string, v []byte) bool {
			out = append(out, fmt.Sprintf("%s %x = %x", bucketName(kv.Bucket(b)), k, v))
			return true
		})
	}
	return out
}

// restored is a copy made from the serialized state.
func (s *store) restored(t testing.TB) *store {
	var stream bytes.Buffer
	for b := range s.buckets {
		s.buckets[b].Scan(func(k string, v []byte) bool {
			fmt.Fprintf(&stream, "%d %x %x\n", b, k, v)
			return true
		})
	}
	c := newStore()
	for stream.Len() > 0 {
		line, _ := stream.ReadString('\n')
		var b int
		var k, v []byte
		if _, err := fmt.Sscanf(line, "%d %x %x\n", &b, &k, &v); err != nil {
			t.Fatalf("restore %q: %v", line, err)
		}
		c.buckets[b].Set(string(k), v)
	}
	return c
}

// world is a state with a session on it.
type world struct {
	testing.TB
	s       *store
	index   uint64
	clock   int64
	session uint64
	seq     uint64
	last    *pb.Command
}

var (
	root  = posix.Cred{}
	alice = posix.Cred{UID: 1000, GID: 100, Groups: []uint32{200}}
	bob   = posix.Cred{UID: 1001, GID: 101}
)

func newWorld(t testing.TB) *world {
	w := &world{TB: t, s: newStore(), clock: 1e18}
	w.own(&pb.Op{Op: &pb.Op_InitCluster{InitCluster: &pb.InitCluster{Cluster: bytes.Repeat([]byte{7}, 16)}}})
	for i := range 4 {
		res := w.own(&pb.Op{Op: &pb.Op_RegisterServer{RegisterServer: &pb.RegisterServer{
			Uuid: bytes.Repeat([]byte{byte(i + 1)}, 16), Address: fmt.Sprint("host:", i), Domain: map[string]string{"host": fmt.Sprint(i), "zone": "a"}}}})
		if res.Server != uint32(i+1) {
			t.Fatalf("server %d: %v", i+1, res)
		}
	}
	w.session = w.open(1)
	return w
}

func (w *world) open(nonce byte) uint64 {
	res := w.own(&pb.Op{Op: &pb.Op_OpenSession{OpenSession: &pb.OpenSession{Client: "test", Nonce: bytes.Repeat([]byte{nonce}, 16)}}})
	if res.Errno != 0 || res.Session == 0 || len(res.Cluster) != 16 {
		w.Fatalf("open a session: %v", res)
	}
	return res.Session
}

func (w *world) apply(cmd *pb.Command) *pb.Result {
	w.index++
	res := Apply(w.s, w.index, cmd)
	w.s.settle(w)
	return res
}

func (w *world) command(session uint64, cred posix.Cred, op *pb.Op) *pb.Command {
	w.clock += 1000
	return &pb.Command{Version: VersionOf(op), Time: w.clock, Session: session, Cred: &pb.Cred{Uid: cred.UID, Gid: cred.GID, Groups: cred.Groups}, Op: op}
}

// own applies an operation of the leader.
func (w *world) own(op *pb.Op) *pb.Result { return w.apply(w.command(0, root, op)) }

// do prepares and applies an operation of the world's session.
func (w *world) do(cred posix.Cred, op *pb.Op) *pb.Result {
	Touched(w.s, op)
	w.s.settle(w)
	w.seq++
	cmd := w.command(w.session, cred, op)
	cmd.Sequence, cmd.Unanswered = w.seq, w.seq
	w.last = cmd
	return w.apply(cmd)
}

// want checks a result's errno.
func (w *world) want(errno syscall.Errno, res *pb.Result) *pb.Result {
	w.Helper()
	if res.Mismatch || syscall.Errno(res.Errno) != errno {
		w.Fatalf("got %q (%s), mismatch %v, want %q", syscall.Errno(res.Errno), res.Message, res.Mismatch, errno)
	}
	return res
}

func (w *world) check() {
	w.Helper()
	problems := Check(w.s)
	w.s.settle(w)
	for _, p := range problems {
		w.Error(p)
	}
	if len(problems) > 0 {
		w.FailNow()
	}
}

func opMake(parent uint64, name string, mode uint32) *pb.Op {
	return &pb.Op{Op: &pb.Op_MakeNode{MakeNode: &pb.MakeNode{Parent: parent, Name: []byte(name), Mode: mode, Exclusive: true}}}
}
func opSymlink(parent uint64, name, target string) *pb.Op {
	return &pb.Op{Op: &pb.Op_MakeNode{MakeNode: &pb.MakeNode{Parent: parent, Name: []byte(name), Mode: syscall.S_IFLNK, Symlink: []byte(target), Exclusive: true}}}
}
func opLink(inode, parent uint64, name string) *pb.Op {
	return &pb.Op{Op: &pb.Op_Link{Link: &pb.Link{Inode: inode, Parent: parent, Name: []byte(name)}}}
}
func opUnlink(parent uint64, name string, holders ...uint64) *pb.Op {
	return &pb.Op{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{Parent: parent, Name: []byte(name), Holders: holders}}}
}
func opRmdir(parent uint64, name string, holders ...uint64) *pb.Op {
	return &pb.Op{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{Parent: parent, Name: []byte(name), Directory: true, Holders: holders}}}
}
func opRename(parent uint64, name string, newParent uint64, newName string) *pb.Op {
	return &pb.Op{Op: &pb.Op_Rename{Rename: &pb.Rename{Parent: parent, Name: []byte(name), NewParent: newParent, NewName: []byte(newName)}}}
}
func opNoReplace(parent uint64, name string, newParent uint64, newName string) *pb.Op {
	op := opRename(parent, name, newParent, newName)
	op.GetRename().NoReplace = true
	return op
}
func opExchange(parent uint64, name string, newParent uint64, newName string) *pb.Op {
	op := opRename(parent, name, newParent, newName)
	op.GetRename().Exchange = true
	return op
}
func opSet(s *pb.SetAttr) *pb.Op       { return &pb.Op{Op: &pb.Op_SetAttr{SetAttr: s}} }
func opSetXattr(s *pb.SetXattr) *pb.Op { return &pb.Op{Op: &pb.Op_SetXattr{SetXattr: s}} }
func opRemoveXattr(inode uint64, name string) *pb.Op {
	return &pb.Op{Op: &pb.Op_RemoveXattr{RemoveXattr: &pb.RemoveXattr{Inode: inode, Name: name}}}
}
func opCommit(c *pb.Commit) *pb.Op { return &pb.Op{Op: &pb.Op_Commit{Commit: c}} }
func opSeal(c ...*pb.ChunkCommit) *pb.Op {
	return &pb.Op{Op: &pb.Op_SealChunks{SealChunks: &pb.SealChunks{Chunks: c}}}
}
func opAlloc(count uint32, servers ...uint32) *pb.Op {
	a := &pb.AllocChunks{Count: count, Layout: chunk.Copies(3).Proto()}
	for _, s := range servers {
		a.Candidates = append(a.Candidates, &pb.Candidate{Server: s, Weight: 1 << 40, Domain: []string{"a", fmt.Sprint(s)}})
	}
	return &pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: a}}
}

// mk makes a node that must succeed, and returns its inode.
func (w *world) mk(cred posix.Cred, parent uint64, name string, mode uint32) uint64 {
	w.Helper()
	return w.want(0, w.do(cred, opMake(parent, name, mode))).Attr.Inode
}

func (w *world) mkdir(cred posix.Cred, parent uint64, name string, mode uint32) uint64 {
	w.Helper()
	return w.mk(cred, parent, name, syscall.S_IFDIR|mode)
}

func (w *world) file(cred posix.Cred, parent uint64, name string, mode uint32) uint64 {
	w.Helper()
	return w.mk(cred, parent, name, syscall.S_IFREG|mode)
}

func (w *world) attr(num uint64) *pb.Attr {
	w.Helper()
	a, err := GetAttr(w.s, num)
	w.s.settle(w)
	if err != nil {
		w.Fatalf("inode %d: %v", num, err)
	}
	return a
}

func (w *world) lookup(parent uint64, name string) *pb.Attr {
	w.Helper()
	a, _, err := Lookup(w.s, root, parent, []byte(name))
	w.s.settle(w)
	if err != nil {
		w.Fatalf("look up %q in %d: %v", name, parent, err)
	}
	return a
}

func (w *world) names(dir uint64) []string {
	w.Helper()
	entries, eof, _, err := ReadDir(w.s, root, dir, nil, 4096)
	w.s.settle(w)
	if err != nil || !eof {
		w.Fatalf("read directory %d: %v, eof %v", dir, err, eof)
	}
	var out []string
	for _, e := range entries {
		out = append(out, string(e.Name))
	}
	return out
}

func (w *world) gone(num uint64) {
	w.Helper()
	_, err := GetAttr(w.s, num)
	w.s.settle(w)
	if fserr.Errno(err) != syscall.ESTALE {
		w.Fatalf("inode %d: %v, want it gone", num, err)
	}
}

func sameResult(t testing.TB, what string, a, b *pb.Result) {
	t.Helper()
	if !proto.Equal(a, b) {
		t.Fatalf("%s: %v, first %v", what, b, a)
	}
}
