package rewrite

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

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
