package namespace

import (
	"fmt"
	"maps"
	"slices"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// model is a file system in memory: what the state machine should be.
type model struct {
	nodes    map[uint64]*modelNode
	chunks   map[uint64]uint64 // committed length of the session's chunks
	rewrites rewrites
}

type modelNode struct {
	typ     uint32
	names   int
	held    bool
	parent  uint64
	entries map[string]uint64
	size    uint64
	data    map[uint64]modelByte
}

// modelByte is where a byte of a file is: in a chunk, or here.
type modelByte struct {
	chunk, coff uint64
	value       byte
}

func (m *model) subdirs(dir *modelNode) (n uint32) {
	for _, num := range dir.entries {
		if m.nodes[num].typ == syscall.S_IFDIR {
			n++
		}
	}
	return n
}

func (m *model) drop(num uint64, hold bool) {
	n := m.nodes[num]
	if n.names--; n.names > 0 {
		return
	}
	if n.held = hold; !hold {
		delete(m.nodes, num)
	}
}

// below tells whether dir is top or inside of it.
func (m *model) below(dir, top uint64) bool {
	for ; dir != top; dir = m.nodes[dir].parent {
		if dir == posix.RootInode {
			return false
		}
	}
	return true
}

func (m *model) make(w *world, parent uint64, name string, typ uint32) {
	dir := m.nodes[parent]
	want := syscall.Errno(0)
	switch {
	case dir.typ != syscall.S_IFDIR:
		want = syscall.ENOTDIR
	case dir.entries[name] != 0:
		want = syscall.EEXIST
	case dir.names == 0:
		want = syscall.ENOENT
	}
	op := opMake(parent, name, typ|0o755)
	if typ == syscall.S_IFLNK {
		op = opSymlink(parent, name, "target")
	}
	res := w.want(want, w.do(root, op))
	if want != 0 {
		return
	}
	n := &modelNode{typ: typ, names: 1, parent: parent, entries: map[string]uint64{}, data: map[uint64]modelByte{}}
	if typ == syscall.S_IFLNK {
		n.size = 6
	}
	if m.nodes[res.Attr.Inode] != nil {
		w.Fatalf("inode %d was used again", res.Attr.Inode)
	}
	m.nodes[res.Attr.Inode] = n
	dir.entries[name] = res.Attr.Inode
}

func (m *model) unlink(w *world, parent uint64, name string, rmdir, hold bool) {
	dir := m.nodes[parent]
	num := dir.entries[name]
	n := m.nodes[num]
	want := syscall.Errno(0)
	switch {
	case dir.typ != syscall.S_IFDIR:
		want = syscall.ENOTDIR
	case num == 0:
		want = syscall.ENOENT
	case rmdir && n.typ != syscall.S_IFDIR:
		want = syscall.ENOTDIR
	case !rmdir && n.typ == syscall.S_IFDIR:
		want = syscall.EISDIR
	case len(n.entries) > 0:
		want = syscall.ENOTEMPTY
	}
	op := opUnlink(parent, name)
	op.GetUnlink().Directory = rmdir
	if hold {
		op.GetUnlink().Holders = []uint64{w.session}
	}
	w.want(want, w.do(root, op))
	if want == 0 {
		delete(dir.entries, name)
		m.drop(num, hold)
	}
}

func (m *model) link(w *world, num, parent uint64, name string) {
	dir, n := m.nodes[parent], m.nodes[num]
	want := syscall.Errno(0)
	switch {
	case dir.typ != syscall.S_IFDIR:
		want = syscall.ENOTDIR
	case dir.entries[name] != 0:
		want = syscall.EEXIST
	case dir.names == 0:
		want = syscall.ENOENT
	case n.typ == syscall.S_IFDIR:
		want = syscall.EPERM
	case n.names == 0:
		want = syscall.ENOENT
	}
	w.want(want, w.do(root, opLink(num, parent, name)))
	if want == 0 {
		dir.entries[name] = num
		n.names++
	}
}

type renameKind int

const (
	renamePlain renameKind = iota
	renameNoReplace
	renameExchange
)

func (m *model) renameErrno(from, to, src, dst uint64, kind renameKind) syscall.Errno {
	f, t := m.nodes[from], m.nodes[to]
	isDir := func(num uint64) bool { return m.nodes[num].typ == syscall.S_IFDIR }
	switch {
	case !isDir(from) || !isDir(to):
		return syscall.ENOTDIR
	case src == 0:
		return syscall.ENOENT
	case kind == renameNoReplace && dst != 0:
		return syscall.EEXIST
	case kind == renameExchange && dst == 0:
		return syscall.ENOENT
	case isDir(src) && t.names > 0 && m.below(to, src):
		return syscall.EINVAL
	case dst != 0 && isDir(dst) && f.names > 0 && m.below(from, dst):
		if kind == renameExchange {
			return syscall.EINVAL
		}
		return syscall.ENOTEMPTY
	case src == dst:
		return 0
	case dst == 0 && t.names == 0:
		return syscall.ENOENT
	case dst == 0 || kind == renameExchange:
		return 0
	case isDir(src) && !isDir(dst):
		return syscall.ENOTDIR
	case !isDir(src) && isDir(dst):
		return syscall.EISDIR
	case len(m.nodes[dst].entries) > 0:
		return syscall.ENOTEMPTY
	}
	return 0
}

func (m *model) rename(w *world, from uint64, name string, to uint64, newName string, kind renameKind, hold bool) {
	f, t := m.nodes[from], m.nodes[to]
	src, dst := f.entries[name], t.entries[newName]
	want := m.renameErrno(from, to, src, dst, kind)
	op := opRename(from, name, to, newName)
	op.GetRename().NoReplace, op.GetRename().Exchange = kind == renameNoReplace, kind == renameExchange
	if hold {
		op.GetRename().Holders = []uint64{w.session}
	}
	w.want(want, w.do(root, op))
	if want != 0 || src == dst {
		return
	}
	t.entries[newName] = src
	m.nodes[src].parent = to
	if kind == renameExchange {
		f.entries[name] = dst
		m.nodes[dst].parent = from
		return
	}
	delete(f.entries, name)
	if dst != 0 {
		m.drop(dst, hold)
	}
}

// commit writes extents at random places, in chunks and inline, some over each other.
func (m *model) commit(t *rapid.T, w *world, num uint64) {
	n := m.nodes[num]
	op := &pb.Commit{Inode: num, Append: rapid.Bool().Draw(t, "append")}
	lengths := maps.Clone(m.chunks)
	ids := slices.Sorted(maps.Keys(lengths))
	for range rapid.IntRange(0, min(2, len(ids))).Draw(t, "chunks") {
		id := rapid.SampledFrom(ids).Draw(t, "chunk")
		lengths[id] += rapid.Uint64Range(0, 30).Draw(t, "more")
		op.Chunks = append(op.Chunks, &pb.ChunkCommit{Chunk: id, Length: lengths[id], Servers: []uint32{1, 2, 3}})
	}
	written := slices.DeleteFunc(ids, func(id uint64) bool { return lengths[id] == 0 })
	base := uint64(0)
	if op.Append {
		base = n.size
	}
	size, data := n.size, maps.Clone(n.data)
	for i := range rapid.IntRange(0, 5).Draw(t, "extents") {
		e := &pb.Extent{Offset: rapid.Uint64Range(0, 60).Draw(t, "offset"), Length: rapid.Uint64Range(1, 30).Draw(t, "length")}
		if !op.Append {
			e.Offset += rapid.SampledFrom([]uint64{0, 0, posix.ExtentBlock - 40, 2*posix.ExtentBlock - 40}).Draw(t, "window")
		}
		if len(written) > 0 && rapid.IntRange(0, 3).Draw(t, "kind") > 0 {
			e.Chunk = rapid.SampledFrom(written).Draw(t, "chunk")
			e.Length = min(e.Length, lengths[e.Chunk])
			e.ChunkOffset = rapid.Uint64Range(0, lengths[e.Chunk]-e.Length).Draw(t, "chunk offset")
		}
		for j := range e.Length {
			b := modelByte{chunk: e.Chunk, coff: e.ChunkOffset + j}
			if e.Chunk == 0 {
				b = modelByte{value: byte(w.index) + byte(i) + byte(j)}
				e.Data = append(e.Data, b.value)
			}
			data[base+e.Offset+j] = b
		}
		size = max(size, base+e.Offset+e.Length)
		op.Extents = append(op.Extents, e)
	}
	inline := 0
	for _, b := range data {
		if b.chunk == 0 {
			inline++
		}
	}
	want := syscall.Errno(0)
	switch {
	case n.typ != syscall.S_IFREG:
		want = syscall.EINVAL
	case inline > posix.MaxInline:
		want = syscall.E2BIG
	}
	res := w.want(want, w.do(root, opCommit(op)))
	if want == 0 {
		n.size, n.data, m.chunks = size, data, lengths
		if res.Offset != base {
			w.Fatalf("appended at %d, want %d", res.Offset, base)
		}
	}
}

func (m *model) truncate(w *world, num, size uint64) {
	n := m.nodes[num]
	want := syscall.Errno(0)
	switch n.typ {
	case syscall.S_IFDIR:
		want = syscall.EISDIR
	case syscall.S_IFREG:
	default:
		want = syscall.EINVAL
	}
	w.want(want, w.do(root, opSet(&pb.SetAttr{Inode: num, Size: &size})))
	if want == 0 {
		n.size = size
		maps.DeleteFunc(n.data, func(off uint64, _ modelByte) bool { return off >= size })
	}
}

func (m *model) seal(w *world, id uint64) {
	w.want(0, w.do(root, opSeal(&pb.ChunkCommit{Chunk: id})))
	delete(m.chunks, id)
}

// endSession ends the session, by itself or by the leader, and opens another.
func (m *model) endSession(w *world, closed bool) {
	if closed {
		w.want(0, w.do(root, &pb.Op{Op: &pb.Op_CloseSession{CloseSession: &pb.CloseSession{}}}))
	} else {
		w.want(0, w.own(&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: []uint64{w.session}}}}))
	}
	w.session, w.seq = w.open(byte(w.index)), 0
	m.chunks = map[uint64]uint64{}
	m.release()
}

func (m *model) release() {
	maps.DeleteFunc(m.nodes, func(_ uint64, n *modelNode) bool { return n.names == 0 })
}

// compare checks everything that can be read against the model.
func (m *model) compare(w *world) {
	w.check()
	var live, inline uint64
	for _, num := range slices.Sorted(maps.Keys(m.nodes)) {
		n, a := m.nodes[num], w.attr(num)
		nlink, size := uint32(n.names), n.size
		if n.typ == syscall.S_IFDIR {
			size = uint64(len(n.entries))
			if n.names > 0 {
				nlink = 2 + m.subdirs(n)
				if a.Parent != n.parent {
					w.Fatalf("directory %d: its parent is %d, want %d", num, a.Parent, n.parent)
				}
			}
			if got, want := w.names(num), slices.Sorted(maps.Keys(n.entries)); !slices.Equal(got, want) {
				w.Fatalf("directory %d: names %q, want %q", num, got, want)
			}
			for name, child := range n.entries {
				if got := w.lookup(num, name); got.Inode != child {
					w.Fatalf("directory %d: %q is %d, want %d", num, name, got.Inode, child)
				}
			}
		}
		if a.Mode&syscall.S_IFMT != n.typ || a.Nlink != nlink || a.Size != size || a.Allocated != uint64(len(n.data)) {
			w.Fatalf("inode %d: %v, want nlink %d size %d allocated %d", num, a, nlink, size, len(n.data))
		}
		if n.typ == syscall.S_IFREG {
			l, i := m.compareData(w, num)
			live, inline = live+l, inline+i
		}
	}
	if tot := Totals(w.s); tot.Inodes != uint64(len(m.nodes)) || tot.LiveBytes != live || tot.InlineBytes != inline {
		w.Fatalf("totals %+v, want %d inodes, %d live, %d inline", tot, len(m.nodes), live, inline)
	}
	w.s.settle(w)
}

func (m *model) compareData(w *world, num uint64) (live, inline uint64) {
	n, got := m.nodes[num], 0
	for off := uint64(0); off < n.size; {
		r, err := Extents(w.s, num, off, 0)
		if err != nil {
			w.Fatal(err)
		}
		for _, e := range r.Extents {
			for j := range e.Length {
				b := m.rewrites.origin(e.Chunk, e.ChunkOffset+j)
				if e.Chunk == 0 {
					b = modelByte{value: e.Data[j]}
					inline++
				} else {
					live++
				}
				if n.data[e.Offset+j] != b {
					w.Fatalf("inode %d: byte %d is %+v, want %+v", num, e.Offset+j, b, n.data[e.Offset+j])
				}
				got++
			}
		}
		off = r.End
	}
	if got != len(n.data) {
		w.Fatalf("inode %d: %d bytes have data, want %d", num, got, len(n.data))
	}
	return live, inline
}

// rapidTB lets a world fail a rapid test.
type rapidTB struct {
	testing.TB
	t *rapid.T
}

func (r rapidTB) Helper()                      {}
func (r rapidTB) Fatal(args ...any)            { r.t.Fatal(args...) }
func (r rapidTB) Fatalf(f string, args ...any) { r.t.Fatalf(f, args...) }
func (r rapidTB) Error(args ...any)            { r.t.Error(args...) }
func (r rapidTB) Errorf(f string, a ...any)    { r.t.Errorf(f, a...) }
func (r rapidTB) FailNow()                     { r.t.FailNow() }

// TestModel applies random operations to the state machine and to the model, and compares the two.
func TestModel(outer *testing.T) {
	rapid.Check(outer, func(t *rapid.T) {
		w := newWorld(rapidTB{outer, t})
		m := &model{chunks: map[uint64]uint64{}, nodes: map[uint64]*modelNode{
			1: {typ: syscall.S_IFDIR, names: 1, parent: 1, entries: map[string]uint64{}, data: map[uint64]modelByte{}}}}
		name := func(what string) string { return rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, what) }
		node := func(what string, types ...uint32) uint64 {
			var list []uint64
			for num, n := range m.nodes {
				if len(types) == 0 || slices.Contains(types, n.typ) {
					list = append(list, num)
				}
			}
			if slices.Sort(list); len(list) == 0 || rapid.IntRange(0, 19).Draw(t, "any") == 0 {
				list = slices.Sorted(maps.Keys(m.nodes))
			}
			return rapid.SampledFrom(list).Draw(t, what)
		}
		dir := func(what string) uint64 { return node(what, syscall.S_IFDIR) }
		flag := func(what string) bool { return rapid.Bool().Draw(t, what) }
		mk := func(t *rapid.T) {
			m.make(w, dir("dir"), name("name"), rapid.SampledFrom([]uint32{syscall.S_IFREG, syscall.S_IFREG, syscall.S_IFDIR, syscall.S_IFDIR, syscall.S_IFLNK}).Draw(t, "type"))
		}
		commit := func(t *rapid.T) { m.commit(t, w, node("file", syscall.S_IFREG)) }
		rename := func(t *rapid.T) {
			m.rename(w, dir("from"), name("name"), dir("to"), name("new name"), renameKind(rapid.IntRange(0, 2).Draw(t, "kind")), flag("hold"))
		}
		steps := 0
		t.Repeat(map[string]func(*rapid.T){
			"make": mk, "make2": mk, "commit": commit, "commit2": commit, "rename": rename, "rename2": rename,
			"unlink": func(*rapid.T) { m.unlink(w, dir("dir"), name("name"), flag("rmdir"), flag("hold")) },
			"link":   func(*rapid.T) { m.link(w, node("inode"), dir("dir"), name("name")) },
			"truncate": func(t *rapid.T) {
				m.truncate(w, node("file", syscall.S_IFREG), rapid.SampledFrom([]uint64{0, 5, 40, posix.ExtentBlock - 10, posix.ExtentBlock, posix.ExtentBlock + 10}).Draw(t, "size"))
			},
			"alloc": func(*rapid.T) {
				if len(m.chunks) < 4 {
					m.chunks[w.want(0, w.do(root, opAlloc(1, 1, 2, 3))).Chunks[0].Id] = 0
				}
			},
			"seal": func(t *rapid.T) {
				if ids := slices.Sorted(maps.Keys(m.chunks)); len(ids) > 0 {
					m.seal(w, rapid.SampledFrom(ids).Draw(t, "chunk"))
				}
			},
			"release": func(t *rapid.T) {
				w.want(0, w.do(root, &pb.Op{Op: &pb.Op_ReleaseInodes{ReleaseInodes: &pb.ReleaseInodes{Inodes: Held(w.s, w.session)}}}))
				m.release()
			},
			"end": func(t *rapid.T) {
				if rapid.IntRange(0, 5).Draw(t, "rarely") == 0 {
					m.endSession(w, flag("closed"))
				}
			},
			"rewrite": func(t *rapid.T) { m.startRewrite(t, w) }, "rewrite2": func(t *rapid.T) { m.startRewrite(t, w) },
			"remap": func(t *rapid.T) { m.finishRewrite(t, w) }, "remap2": func(t *rapid.T) { m.finishRewrite(t, w) },
			"drop":     func(t *rapid.T) { m.dropRewrite(t, w) },
			"relocate": func(t *rapid.T) { m.relocate(t, w) },
			"cut":      func(t *rapid.T) { m.cut(t, w) },
			"retry": func(t *rapid.T) {
				if w.seq > 0 {
					first := Result(w.s, w.session, w.seq)
					if res := w.apply(w.last); !proto.Equal(first, res) {
						t.Fatalf("a retry: %v, first %v", res, first)
					}
				}
			},
			"": func(*rapid.T) {
				if steps++; steps%8 == 0 {
					m.compare(w)
				}
			},
		})
		m.compare(w)
	})
}

// randomCommand is a command that may be anything: nonsense too, of sessions that may not exist.
func randomCommand(t *rapid.T, clock int64) *pb.Command {
	num := func(what string, limit uint64) uint64 { return rapid.Uint64Range(0, limit).Draw(t, what) }
	small := func(what string) uint64 { return num(what, 12) }
	name := func() []byte { return []byte(rapid.SampledFrom([]string{"a", "b", "c", "", "x/y"}).Draw(t, "name")) }
	flag := func() bool { return rapid.Bool().Draw(t, "flag") }
	maybe32 := func() *uint32 {
		if flag() {
			return nil
		}
		return new(uint32(num("value", 0o7777)))
	}
	chunks := func() (out []*pb.ChunkCommit) {
		for range num("chunks", 3) {
			out = append(out, &pb.ChunkCommit{Chunk: small("chunk"), Length: 10 * small("length"), Servers: []uint32{1, 2, uint32(small("server"))}, Seal: flag()})
		}
		return out
	}
	sequence := num("sequence", 60)
	cmd := &pb.Command{Version: 1, Time: clock + int64(num("time", 100)) - 50, Session: num("session", 4), Sequence: sequence,
		Unanswered: sequence - min(sequence, num("unanswered", 20)), Cred: &pb.Cred{Uid: uint32(num("uid", 2)), Gid: uint32(num("gid", 2))}, Op: &pb.Op{}}
	switch rapid.IntRange(0, 21).Draw(t, "op") {
	case 20, 21:
		r := &pb.Relocate{Inode: small("inode"), Blocks: []uint64{0, small("block")}, Chunks: chunks()}
		for range num("ranges", 3) {
			from := uint32(small("from"))
			r.Ranges = append(r.Ranges, &pb.RelocatedRange{Chunk: small("chunk"), From: from, To: from + uint32(small("bytes")), Target: small("target"), At: uint32(small("at"))})
		}
		cmd.Op = opRelocate(r)
	case 17, 18, 19:
		cmd.Session, cmd.Op = 0, randomRewrite(t)
	case 0, 1, 2:
		cmd.Op = &pb.Op{Op: &pb.Op_MakeNode{MakeNode: &pb.MakeNode{Parent: num("parent", 4), Name: name(), Exclusive: flag(),
			Mode: rapid.SampledFrom([]uint32{syscall.S_IFREG, syscall.S_IFDIR, syscall.S_IFCHR, 0o120000, 0o150000}).Draw(t, "type") | uint32(num("mode", 0o7777))}}}
	case 3:
		cmd.Op = opLink(small("inode"), small("parent"), string(name()))
	case 4:
		cmd.Op = opUnlink(num("parent", 4), string(name()), small("holder"), small("holder"))
		cmd.Op.GetUnlink().Directory = flag()
	case 5:
		cmd.Op = opRename(num("parent", 4), string(name()), small("to"), string(name()))
		r := cmd.Op.GetRename()
		r.NoReplace, r.Exchange, r.Holders = flag(), flag(), []uint64{small("holder")}
	case 6:
		cmd.Op = opSet(&pb.SetAttr{Inode: small("inode"), Mode: maybe32(), Uid: maybe32(), Gid: maybe32(), MtimeNow: flag(), Opened: flag()})
		if flag() {
			cmd.Op.GetSetAttr().Size = new(10 * small("size"))
		}
	case 7:
		cmd.Op = opSetXattr(&pb.SetXattr{Inode: small("inode"), Name: rapid.SampledFrom([]string{"user.a", "trusted.b", "security.capability", "x"}).Draw(t, "name"),
			Value: rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "value"), Create: flag(), Replace: flag()})
	case 8:
		cmd.Op = opRemoveXattr(small("inode"), "user.a")
	case 9, 10:
		c := &pb.Commit{Inode: small("inode"), Append: flag(), Size: small("size"), KillPrivileges: flag(), Chunks: chunks()}
		for range num("extents", 3) {
			e := &pb.Extent{Offset: small("offset"), Length: small("length"), Chunk: small("chunk"), ChunkOffset: small("chunk offset")}
			if e.Chunk == 0 {
				e.Data = make([]byte, e.Length)
			}
			c.Extents = append(c.Extents, e)
		}
		cmd.Op = opCommit(c)
	case 11:
		cmd.Op = opAlloc(uint32(num("count", 3)), 1, 2, 3, 4)
	case 12:
		cmd.Op = opSeal(chunks()...)
	case 13:
		cmd.Op = &pb.Op{Op: &pb.Op_ReleaseInodes{ReleaseInodes: &pb.ReleaseInodes{Inodes: []uint64{small("inode"), small("inode")}}}}
	case 14:
		cmd.Session = 0
		cmd.Op = &pb.Op{Op: &pb.Op_OpenSession{OpenSession: &pb.OpenSession{Nonce: []byte(fmt.Sprintf("%016d", small("nonce")))}}}
	case 15:
		cmd.Session = 0
		cmd.Op = &pb.Op{Op: &pb.Op_FinishDeletions{FinishDeletions: &pb.FinishDeletions{Server: uint32(small("server")), Chunks: []uint64{small("chunk"), small("chunk")}}}}
	case 16:
		if rapid.IntRange(0, 3).Draw(t, "rarely") == 0 {
			cmd.Session = 0
			cmd.Op = &pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: []uint64{small("session")}}}}
		}
	}
	return cmd
}

// TestDeterminism applies a random log to two replicas, one of which is restored from a snapshot half-way, and compares the
// two key by key. Refused commands change nothing but results, and every invariant holds.
func TestDeterminism(outer *testing.T) {
	rapid.Check(outer, func(t *rapid.T) {
		tb := rapidTB{outer, t}
		a, b := newWorld(tb), newWorld(tb)
		a.open(2)
		b.open(2)
		half := rapid.IntRange(0, 60).Draw(t, "half")
		for i := range 60 {
			if i == half {
				b.s = b.s.restored(tb)
			}
			cmd := randomCommand(t, a.clock+int64(i))
			if rapid.Bool().Draw(t, "prepared") {
				Touched(a.s, cmd.Op)
				a.s.settle(tb)
			}
			before := a.s.dump()
			ra := a.apply(proto.Clone(cmd).(*pb.Command))
			rb := b.apply(proto.Clone(cmd).(*pb.Command))
			sameResult(tb, "the replicas' results", ra, rb)
			if ra.Errno != 0 || ra.Mismatch {
				onlyRecorded(tb, cmd.String(), before, a.s.dump())
			}
			if cmd.Session != 0 && !ra.Mismatch && Result(a.s, cmd.Session, cmd.Sequence) != nil {
				before := a.s.dump()
				sameResult(tb, "a retry", ra, a.apply(cmd))
				b.apply(cmd)
				if !slices.Equal(before, a.s.dump()) {
					t.Fatalf("a retry changed the state: %v", cmd)
				}
			}
			a.check()
		}
		da, db := a.s.dump(), b.s.dump()
		for i := range max(len(da), len(db)) {
			if i >= len(da) || i >= len(db) || da[i] != db[i] {
				t.Fatalf("the replicas differ:\n%s\n%s", da[min(i, len(da)-1)], db[min(i, len(db)-1)])
			}
		}
	})
}
