package data

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// fakeMeta is a metadata service in memory. It checks what the real one checks: who owns a chunk, how long it is, where it
// was placed, how many servers hold it.
type fakeMeta struct {
	mu                sync.Mutex
	version           uint64
	gen               uint64
	files             map[uint64]*fakeFile
	chunks            map[chunk.ID]*fakeChunkRecord
	next              chunk.ID
	servers           map[chunk.ServerID]string // address
	down              map[chunk.ServerID]bool   // not allocated on
	leaving           map[chunk.ServerID]bool   // likewise, and being drained
	dead              []chunk.ServerID          // so it is said; allocated on all the same
	replicas          int
	minimum           int
	commits           int
	seals             int
	reports           []string
	onCommit          func(*pb.Commit) error   // before it is applied, without the lock
	onRelocate        func(*pb.Relocate) error // likewise
	relocations, cuts int
	allocErr          error
	blocked           chan struct{} // commits wait for it
}

type fakeFile struct {
	attr    *pb.Attr
	extents []*pb.Extent // sorted, disjoint
}

type fakeChunkRecord struct {
	owner   uint64 // session generation, 0: sealed
	layout  chunk.Layout
	length  uint64
	targets []uint32 // by shard
	servers []uint32 // who holds its shard; by shard, 0 for none
}

func newFakeMeta(replicas, minimum int) *fakeMeta {
	return &fakeMeta{gen: 1, next: 1, replicas: replicas, minimum: minimum, files: map[uint64]*fakeFile{}, chunks: map[chunk.ID]*fakeChunkRecord{},
		servers: map[chunk.ServerID]string{}, down: map[chunk.ServerID]bool{}, leaving: map[chunk.ServerID]bool{}}
}

func (m *fakeMeta) create(inode uint64) *pb.Attr {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.version++
	f := &fakeFile{attr: &pb.Attr{Inode: inode, Mode: syscall.S_IFREG | 0o644, Nlink: 1, Version: m.version}}
	m.files[inode] = f
	return proto.CloneOf(f.attr)
}

// setLayout is what the operation of that name does.
func (m *fakeMeta) setLayout(inode uint64, layout chunk.Layout) *pb.Attr {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.version++
	f := m.files[inode]
	f.attr = proto.CloneOf(f.attr)
	f.attr.Layout, f.attr.Version = layout.Proto(), m.version
	return proto.CloneOf(f.attr)
}

func (m *fakeMeta) attr(inode uint64) *pb.Attr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return proto.CloneOf(m.files[inode].attr)
}

func (m *fakeMeta) Commit(ctx context.Context, c *pb.Commit) (*pb.Result, error) {
	m.mu.Lock()
	hook, blocked := m.onCommit, m.blocked
	m.mu.Unlock()
	if blocked != nil {
		select {
		case <-blocked:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if hook != nil {
		if err := hook(c); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.commit(c)
	if err != nil {
		return nil, err
	}
	m.commits++
	return r, nil
}

func (m *fakeMeta) commit(c *pb.Commit) (*pb.Result, error) {
	f := m.files[c.Inode]
	if f == nil {
		return nil, fserr.New(syscall.ENOENT, "inode %d", c.Inode)
	}
	if len(c.Extents) > 16384 {
		return nil, fserr.New(syscall.EINVAL, "%d extents", len(c.Extents))
	}
	if err := m.publish(c.Chunks, false); err != nil {
		return nil, err
	}
	res := &pb.Result{}
	var base uint64
	if c.Append {
		base = f.attr.Size
		res.Offset = base
	}
	next := slices.Clone(f.extents)
	end := c.Size
	for _, e := range c.Extents {
		if e.Length == 0 {
			return nil, fserr.New(syscall.EINVAL, "an empty extent")
		}
		e = proto.CloneOf(e)
		e.Offset += base
		if e.Chunk == 0 {
			if uint64(len(e.Data)) != e.Length {
				return nil, fserr.New(syscall.EINVAL, "inline data of another length")
			}
		} else {
			rec := m.chunks[chunk.ID(e.Chunk)]
			if rec == nil || rec.owner != m.gen || e.ChunkOffset+e.Length > rec.length {
				return nil, fserr.New(syscall.EINVAL, "an extent of chunk %v to %d", chunk.ID(e.Chunk), e.ChunkOffset+e.Length)
			}
		}
		if k := len(next); k > 0 && next[k-1].Offset+next[k-1].Length > e.Offset {
			next = append(punch(next, e.Offset, e.Offset+e.Length), e)
			slices.SortFunc(next, func(a, b *pb.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
		} else {
			next = append(next, e)
		}
		end = max(end, e.Offset+e.Length)
	}
	inline := 0
	for _, e := range next {
		inline += len(e.Data)
	}
	if inline > posix.MaxInline {
		return nil, fserr.New(syscall.E2BIG, "%d bytes inline", inline)
	}
	m.version++
	f.extents = next
	f.attr = proto.CloneOf(f.attr)
	f.attr.Size = max(f.attr.Size, end)
	f.attr.Version, f.attr.DataVersion = m.version, m.version
	f.attr.Mtime = max(f.attr.Mtime, c.Mtime)
	res.Attr = proto.CloneOf(f.attr)
	return res, nil
}

// punch removes [lo, hi).
func punch(extents []*pb.Extent, lo, hi uint64) []*pb.Extent {
	var out []*pb.Extent
	keep := func(e *pb.Extent, from, to uint64) {
		if from >= to {
			return
		}
		n := &pb.Extent{Offset: from, Length: to - from, Chunk: e.Chunk}
		if e.Chunk == 0 {
			n.Data = e.Data[from-e.Offset : to-e.Offset]
		} else {
			n.ChunkOffset = e.ChunkOffset + from - e.Offset
		}
		out = append(out, n)
	}
	for _, e := range extents {
		end := e.Offset + e.Length
		if end <= lo || e.Offset >= hi {
			out = append(out, e)
			continue
		}
		keep(e, e.Offset, min(end, lo))
		keep(e, max(e.Offset, hi), end)
	}
	return out
}

func (m *fakeMeta) publish(commits []*pb.ChunkCommit, sealing bool) error {
	for _, cc := range commits {
		rec := m.chunks[chunk.ID(cc.Chunk)]
		if sealing && (rec == nil || rec.owner == 0) {
			continue
		}
		if rec == nil || rec.owner != m.gen {
			return fserr.New(syscall.EINVAL, "chunk %v is not written by this session", chunk.ID(cc.Chunk))
		}
		length := cc.Length
		if sealing {
			length = max(length, rec.length)
		}
		if length > chunk.MaxLength || length%uint64(rec.layout.Row()) != 0 {
			return fserr.New(syscall.EINVAL, "chunk %v: %d bytes, at most %d in rows of %d", chunk.ID(cc.Chunk), length, chunk.MaxLength, rec.layout.Row())
		}
		held := make([]uint32, len(rec.targets))
		n := 0
		for _, s := range cc.Servers {
			shard := slices.Index(rec.targets, s)
			if s == 0 || shard < 0 || held[shard] != 0 {
				return fserr.New(syscall.EINVAL, "chunk %v was not placed on server %d", chunk.ID(cc.Chunk), s)
			}
			held[shard] = s
			n++
		}
		if length > rec.length {
			if n < rec.layout.Min {
				return fserr.New(syscall.EINVAL, "chunk %v is held by %d servers only", chunk.ID(cc.Chunk), n)
			}
			rec.length, rec.servers = length, held
		} else if length == rec.length && length > 0 {
			for shard, s := range held {
				rec.servers[shard] = max(rec.servers[shard], s)
			}
		}
		if cc.Seal {
			rec.owner = 0
			m.seals++
		}
	}
	return nil
}

// Relocate has no hooks but that of commits.
func (m *fakeMeta) Relocate(ctx context.Context, r *pb.Relocate) error {
	m.mu.Lock()
	hook := m.onRelocate
	m.mu.Unlock()
	if hook != nil {
		if err := hook(r); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.publish(r.Chunks, false); err != nil {
		return err
	}
	for _, a := range r.Ranges {
		if rec := m.chunks[chunk.ID(a.Target)]; rec == nil || rec.owner != m.gen || uint64(a.At+a.To-a.From) > rec.length {
			return fserr.New(syscall.EINVAL, "relocated to %d of chunk %v", a.At+a.To-a.From, chunk.ID(a.Target))
		}
	}
	m.relocations++
	f := m.files[r.Inode]
	if f == nil {
		return nil
	}
	for _, a := range r.Ranges {
		var next []*pb.Extent
		for _, e := range f.extents {
			lo, hi := max(e.ChunkOffset, uint64(a.From)), min(e.ChunkOffset+e.Length, uint64(a.To))
			if e.Chunk != a.Chunk || lo >= hi {
				next = append(next, e)
				continue
			}
			at := e.Offset + lo - e.ChunkOffset
			if blocks := r.Blocks; !slices.Contains(blocks, at/posix.ExtentBlock) || !slices.Contains(blocks, (at+hi-lo-1)/posix.ExtentBlock) {
				panic("an extent is in a block that was not named")
			}
			next = append(next, punch([]*pb.Extent{e}, at, at+hi-lo)...)
			next = append(next, &pb.Extent{Offset: at, Length: hi - lo, Chunk: a.Target, ChunkOffset: uint64(a.At) + lo - uint64(a.From)})
		}
		slices.SortFunc(next, func(a, b *pb.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
		f.extents = next
	}
	return nil
}

// cut ends a chunk where nothing refers to what lies behind.
func (m *fakeMeta) cut(cc *pb.ChunkCommit) error {
	id := chunk.ID(cc.Chunk)
	rec := m.chunks[id]
	for _, f := range m.files {
		for _, e := range f.extents {
			if e.Chunk == cc.Chunk && e.ChunkOffset+e.Length > cc.Length {
				return fserr.New(syscall.EINVAL, "chunk %v is cut at %d, and inode %d refers to %d", id, cc.Length, f.attr.Inode, e.ChunkOffset+e.Length)
			}
		}
	}
	if rec.owner != 0 {
		m.seals++
	}
	rec.owner, rec.length = 0, min(rec.length, cc.Length)
	m.cuts++
	return nil
}

// setSize is what SetAttr does.
func (m *fakeMeta) setSize(inode, size uint64) *pb.Attr {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.files[inode]
	if size < f.attr.Size {
		f.extents = punch(f.extents, size, 1<<63)
	}
	m.version++
	f.attr = proto.CloneOf(f.attr)
	f.attr.Size, f.attr.Version = size, m.version
	return proto.CloneOf(f.attr)
}

func (m *fakeMeta) AllocChunks(ctx context.Context, layout chunk.Layout, count int, avoid []chunk.ServerID) ([]*pb.AllocatedChunk, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.allocErr != nil {
		return nil, m.allocErr
	}
	var good, avoided []chunk.ServerID
	for id := range m.servers {
		switch {
		case m.down[id], m.leaving[id]:
		case slices.Contains(avoid, id):
			avoided = append(avoided, id)
		default:
			good = append(good, id)
		}
	}
	if layout.IsZero() {
		layout = chunk.Copies(m.replicas).WithMin(m.minimum)
	}
	if layout.Coded() && len(good)+len(avoided) < layout.Min {
		layout = chunk.Copies(layout.Parity + 1)
	}
	if len(good) < layout.Min {
		good = append(good, avoided...)
	}
	if err := layout.Check(true); err != nil {
		return nil, fserr.New(syscall.EINVAL, "%v", err)
	}
	if len(good) < layout.Min {
		return nil, fserr.New(syscall.EAGAIN, "%d servers", len(good))
	}
	slices.Sort(good)
	var out []*pb.AllocatedChunk
	for range count {
		a := &pb.AllocatedChunk{Id: uint64(m.next), Layout: layout.Proto(), Servers: make([]uint32, layout.Width())}
		for i := range min(layout.Width(), len(good)) {
			a.Servers[i] = uint32(good[(int(m.next)+i)%len(good)])
		}
		m.chunks[m.next] = &fakeChunkRecord{owner: m.gen, layout: layout, targets: a.Servers}
		m.next++
		out = append(out, a)
	}
	return out, nil
}

func (m *fakeMeta) SealChunks(_ context.Context, chunks []*pb.ChunkCommit) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var rest []*pb.ChunkCommit
	for _, cc := range chunks {
		if !cc.Cut {
			rest = append(rest, cc)
		} else if err := m.cut(cc); err != nil {
			m.reports = append(m.reports, err.Error())
			return err
		}
	}
	return m.publish(rest, true)
}

func (m *fakeMeta) Extents(_ context.Context, inode, off, length uint64, _ bool) (*pb.ExtentsReply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.files[inode]
	if f == nil {
		return nil, fserr.New(syscall.ENOENT, "inode %d", inode)
	}
	block := off - off%posix.ExtentBlock
	r := &pb.ExtentsReply{Attr: proto.CloneOf(f.attr), Offset: block, End: block + posix.ExtentBlock}
	seen := map[uint64]bool{}
	for _, e := range f.extents {
		lo, hi := max(e.Offset, r.Offset), min(e.Offset+e.Length, r.End)
		if lo >= hi {
			continue
		}
		cut := proto.CloneOf(e)
		cut.Offset, cut.Length = lo, hi-lo
		if e.Chunk == 0 {
			cut.Data = e.Data[lo-e.Offset : hi-e.Offset]
		} else {
			cut.ChunkOffset += lo - e.Offset
			if !seen[e.Chunk] {
				seen[e.Chunk] = true
				rec := m.chunks[chunk.ID(e.Chunk)]
				r.Chunks = append(r.Chunks, &pb.ChunkInfo{Id: e.Chunk, Length: rec.length, Servers: slices.Clone(rec.servers), Layout: rec.layout.Proto(), Open: rec.owner != 0})
			}
		}
		r.Extents = append(r.Extents, cut)
	}
	return r, nil
}

func (m *fakeMeta) Server(_ context.Context, id chunk.ServerID) (string, pb.ServerState, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.servers[id]
	if !ok {
		return "", 0, fmt.Errorf("server %d is not known", id)
	}
	return a, pb.ServerState_SERVER_STATE_HEALTHY, nil
}

func (m *fakeMeta) Leaving() (drained, dead []chunk.ServerID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, leaving := range m.leaving {
		if leaving {
			drained = append(drained, id)
		}
	}
	return drained, slices.Clone(m.dead)
}

func (m *fakeMeta) ReportServer(id chunk.ServerID, c chunk.ID, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reports = append(m.reports, fmt.Sprintf("%d %v %v", id, c, err))
}

func (m *fakeMeta) Session() uint64 { return m.SessionGen() }

func (m *fakeMeta) SessionGen() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.gen
}

func (m *fakeMeta) Cluster() []byte { return []byte("0123456789abcdef") }

// loseSession ends the session as a log command does: its chunks are sealed at their committed length.
func (m *fakeMeta) loseSession() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, rec := range m.chunks {
		if rec.owner == m.gen {
			rec.owner = 0
		}
	}
	m.gen++
}

// with changes the fake under its lock.
func (m *fakeMeta) with(fn func(*fakeMeta)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fn(m)
}
