package namespace

import (
	"bytes"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/posix"
)

// FuzzDecode gives every decoder of stored values garbage: it must refuse it, or read what it would write again.
func FuzzDecode(f *testing.F) {
	in := &inode{num: 5, mode: 0o100644, nlink: 1, size: 9, symlink: []byte("target"), inline: []piece{{off: 3, len: 2, data: []byte("ab")}, {off: 9, len: 1, data: []byte("c")}}}
	c := &ChunkRecord{ID: 9, Layout: chunk.Layout{Data: 2, Parity: 1, Min: 3, Cell: 1024}, Length: 2048, Live: 50, Servers: []chunk.ServerID{1, 2, 3}, Held: 5, Moves: []Move{{1, 4, 77}}}
	kept := &ChunkRecord{ID: 9, Layout: chunk.Copies(2), Length: 50, Servers: []chunk.ServerID{1, 2}, Held: 3, Writer: 4}
	s := &ServerRecord{ID: 1, UUID: make([]byte, idSize), Address: "host:1", Domain: map[string]string{"zone": "a", "rack": "b"}}
	ses := &SessionRecord{ID: 4, Opened: 5, Owned: 6, Nonce: make([]byte, nonceSize), Client: "client"}
	cs := counters{nextInode: 2}
	blk := block{}
	for _, v := range [][]byte{in.encode(), c.encode(), kept.encode(), s.encode(), ses.encode(), cs.encode(), encodeDentry(5, 0o40755), window(3).encode(), {1, 2},
		blk.appendPieces([]byte{formatVersion}, []piece{{off: 1, len: 2, chunk: 3, coff: 4}, {off: 5, len: 2, chunk: 3, coff: 4}}), nil} {
		f.Add(v, uint64(1))
	}
	f.Fuzz(func(t *testing.T, v []byte, n uint64) {
		again := func(what string, got []byte) {
			if !bytes.Equal(got, v) {
				t.Errorf("%s: %x is read, and written as %x", what, v, got)
			}
		}
		if in, err := decodeInode(n, v); err == nil {
			again("inode", in.encode())
			in.attr()
		}
		if c, err := decodeChunk(chunk.ID(n), v); err == nil && v[0] != 1 {
			again("chunk", c.encode())
		}
		if s, err := decodeServer(1, v); err == nil {
			again("server", s.encode())
		}
		if s, err := decodeSession(n, v); err == nil {
			again("session", s.encode())
		}
		if c, err := decodeCounters(v); err == nil {
			again("counters", c.encode())
		}
		if num, typ, err := decodeDentry(v); err == nil {
			again("dentry", encodeDentry(num, typ))
		}
		if w, err := decodeWindow(v); err == nil {
			again("window", w.encode())
		}
		_, _ = decodeXattr(v)
		fuzzBlock(t, v, n)
	})
}

// fuzzBlock uses a block in all ways in which commands and reads do.
func fuzzBlock(t *testing.T, v []byte, n uint64) {
	number := n % (posix.MaxSize/posix.ExtentBlock + 2)
	b, err := parseBlock(number, v)
	if err != nil {
		return
	}
	offset := b.base + n%posix.ExtentBlock
	if list, end, err := b.clipped(nil, offset, offset+n%4096+1); err == nil {
		last := offset
		for i := range list {
			if list[i].off < last || list[i].end() > end {
				t.Errorf("extents of %d to %d: %+v", offset, end, list)
			}
			last = list[i].end()
		}
	}
	w := newWorld(t)
	f := w.file(root, 1, "f", 0o644)
	w.s.buckets[bExtent].Set(string(extentKey(f, number)), append([]byte{}, v...))
	x := &tx{Txn: w.s, session: w.session}
	in := &inode{num: f, allocated: 1 << 40}
	_ = x.mergeBlock(in, number, []piece{{off: offset, len: n%100 + 1, chunk: 1}}, newChunkSet(x))
	_ = x.cutBlock(in, number, offset, newChunkSet(x))
}

// FuzzOverlay compares the laying of pieces over each other with bytes in an array.
func FuzzOverlay(f *testing.F) {
	f.Add([]byte{0, 10, 1, 5, 3, 0, 2, 9, 2})
	f.Fuzz(func(t *testing.T, ops []byte) {
		want := make([]modelByte, 600)
		have := make([]bool, 600)
		var list []piece
		for ; len(ops) >= 3 && len(list) < 200; ops = ops[3:] {
			p := piece{off: uint64(ops[0]) * 2, len: uint64(ops[1]%64) + 1, chunk: chunk.ID(ops[2] % 3), coff: uint64(ops[2])}
			if p.chunk == 0 {
				p.coff, p.data = 0, bytes.Repeat(ops[2:3], int(p.len))
			}
			for j := range p.len {
				b := modelByte{chunk: uint64(p.chunk)}
				if p.chunk == 0 {
					b.value = ops[2]
				} else {
					b.coff = p.coff + j
				}
				want[p.off+j], have[p.off+j] = b, true
			}
			list = append(list, p)
		}
		last := uint64(0)
		for _, p := range overlay(list) {
			if p.off < last || p.len == 0 {
				t.Fatalf("not sorted, or overlapping, at %d", p.off)
			}
			last = p.end()
			for j := range p.len {
				b := modelByte{chunk: uint64(p.chunk), coff: p.coff + j}
				if p.chunk == 0 {
					b = modelByte{value: p.data[j]}
				}
				if !have[p.off+j] || want[p.off+j] != b {
					t.Fatalf("byte %d is %+v, want %+v", p.off+j, b, want[p.off+j])
				}
				have[p.off+j] = false
			}
		}
		for i := range have {
			if have[i] {
				t.Fatalf("byte %d is missing", i)
			}
		}
	})
}
