package disk

import (
	"bytes"
	"errors"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

var testHeader = header{cluster: ClusterID{1, 2, 3}, id: 42, salt: 0x1122334455667788, created: 1234567890}

func TestHeaderRoundTrip(t *testing.T) {
	b := testHeader.append(nil)
	if len(b) != headerSize {
		t.Fatalf("%d bytes", len(b))
	}
	got, err := decodeHeader(b)
	if err != nil || got != testHeader {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range b {
		b[i] ^= 1
		if _, err := decodeHeader(b); err == nil {
			t.Errorf("a flipped bit in byte %d goes unnoticed", i)
		}
		b[i] ^= 1
	}
}

func TestHeaderOfOthers(t *testing.T) {
	if err := testHeader.check(ClusterID{3}, 42); !errors.Is(err, errCluster) {
		t.Error(err)
	}
	if err := testHeader.check(testHeader.cluster, 43); !errors.Is(err, errID) {
		t.Error(err)
	}
	b := testHeader.append(nil)
	b[8] = formatVersion + 1
	if _, err := decodeHeader(b); !errors.Is(err, errNewer) {
		t.Error(err)
	}
}

func TestRecordRoundTrip(t *testing.T) {
	for _, r := range []record{
		{kind: kindFrame, offset: 0, length: 1, sums: 1},
		{kind: kindFrame, offset: 5 << 20, durable: 3 << 20, length: chunk.MaxFrame, sums: chunk.MaxFrame / chunk.ChecksumBlock},
		{kind: kindFrame, offset: chunk.MaxLength - 10, length: 10, sums: 1},
		{kind: kindIndex, offset: 77, durable: 77, length: maxIndex, sums: uint32(chunk.Blocks(maxIndex))},
	} {
		want := make([]uint32, r.sums)
		for i := range want {
			want[i] = uint32(i) * 77777
		}
		b := r.append(nil, 99, want)
		if int64(len(b)) != r.head() || len(b) > maxRecordHead {
			t.Fatalf("%d bytes", len(b))
		}
		got, sums, err := decodeRecord(b, 99, nil)
		if err != nil || got != r || len(sums) != len(want) {
			t.Fatalf("%+v, %v", got, err)
		}
		if _, _, err := decodeRecord(b, 98, nil); err == nil {
			t.Error("a record of another file is taken")
		}
		for i := range b {
			b[i] ^= 0x80
			if _, _, err := decodeRecord(b, 99, nil); err == nil {
				t.Errorf("a flipped bit in byte %d goes unnoticed", i)
			}
			b[i] ^= 0x80
		}
	}
}

func TestTrailerRoundTrip(t *testing.T) {
	want := trailer{salt: 5, index: 1000, length: 900, size: 60}
	b := want.append(nil, 7)
	got, err := decodeTrailer(b, 7, 1000+60+trailerSize)
	if err != nil || got != want || len(b) != trailerSize {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := decodeTrailer(b, 7, 1000+61+trailerSize); err == nil {
		t.Error("a trailer that is not at the end is taken")
	}
	for i := range b {
		b[i] ^= 1
		if _, err := decodeTrailer(b, 7, 1000+60+trailerSize); err == nil {
			t.Errorf("a flipped bit in byte %d goes unnoticed", i)
		}
		b[i] ^= 1
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(testHeader.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := decodeHeader(b); err == nil && !bytes.Equal(h.append(nil)[:8], b[:8]) {
			t.Error("the header is another one when written again")
		}
	})
}

func FuzzRecord(f *testing.F) {
	r := record{kind: kindFrame, offset: 10, length: 70000, sums: 2}
	f.Add(r.append(nil, 3, []uint32{1, 2}), uint32(3))
	f.Fuzz(func(t *testing.T, b []byte, seed uint32) {
		r, sums, err := decodeRecord(b, seed, nil)
		if err != nil {
			return
		}
		if int(r.sums) != len(sums) || len(sums) > maxSums || r.offset > chunk.MaxLength {
			t.Errorf("%+v with %d checksums", r, len(sums))
		}
	})
}

func FuzzTrailer(f *testing.F) {
	tr := trailer{salt: 5, index: 1000, length: 900, size: 60}
	f.Add(tr.append(nil, 7), uint32(7), int64(1000+60+trailerSize))
	f.Fuzz(func(t *testing.T, b []byte, identity uint32, size int64) {
		if tr, err := decodeTrailer(b, identity, size); err == nil && int64(tr.index)+int64(tr.size) > size {
			t.Errorf("%+v in a file of %d bytes", tr, size)
		}
	})
}

func FuzzIndex(f *testing.F) {
	var ix index
	ix.add(0, 70000, headerSize+recordSize+8, []uint32{1, 2})
	ix.add(70000, 5, 80000, []uint32{3})
	f.Add(encodeIndex(nil, &ix), uint64(70005), int64(100000))
	f.Fuzz(func(t *testing.T, b []byte, length uint64, end int64) {
		ix, err := decodeIndex(b, length, end)
		if err != nil {
			return
		}
		if !bytes.Equal(encodeIndex(nil, ix), b) {
			t.Error("the index is another one when written again")
		}
		for i := range ix.frames {
			fr := &ix.frames[i]
			if len(ix.sumsOf(fr)) != chunk.Blocks(int(fr.length)) || int64(fr.pos)+int64(fr.length) > end {
				t.Errorf("frame %+v", fr)
			}
		}
	})
}

func FuzzIdentity(f *testing.F) {
	f.Add([]byte(`{"format":1,"cluster":"","server":0,"server_uuid":"","disk_uuid":"000102030405060708090a0b0c0d0e0f"}`))
	f.Fuzz(func(t *testing.T, b []byte) { _, _, _ = decodeIdentity(b) })
}

// smallFile is a sealed chunk file of three frames.
func smallFile() []byte {
	h := header{cluster: testIdentity.Cluster, id: 3, salt: 5}
	b := h.append(nil)
	var ix index
	for _, p := range []string{"a", "bcd", "efghijklmnop"} {
		sums := chunk.Checksums(nil, []byte(p))
		r := record{kind: kindFrame, offset: ix.length, length: uint32(len(p)), sums: 1}
		b = r.append(b, seed(h.cluster, h.id, h.salt), sums)
		ix.add(ix.length, len(p), int64(len(b)), sums)
		b = append(b, p...)
	}
	return appendSeal(b, h.cluster, h.id, h.salt, &ix, int64(len(b)))
}

// FuzzFile opens and reads whatever a file may hold.
func FuzzFile(f *testing.F) {
	sealed := smallFile()
	f.Add(sealed)
	f.Add(sealed[:len(sealed)-trailerSize])
	f.Add(sealed[:150])
	f.Fuzz(func(t *testing.T, b []byte) {
		file := memFile(b)
		l, err := load(file, testIdentity.Cluster, 3)
		if err != nil {
			t.Fatalf("load: %v", err)
		}
		h := handle{file: share(file), ix: l.index}
		for i := range l.frames {
			fr := &l.frames[i]
			if int64(fr.pos)+int64(fr.length) > int64(len(b)) {
				t.Fatalf("frame %+v in a file of %d bytes", fr, len(b))
			}
			ps, err := h.ix.pieces(uint64(fr.offset), uint64(fr.length))
			if err != nil {
				t.Fatal(err)
			}
			spans, sizes := group(ps)
			buf := make([]byte, sizes[0])
			p, err := h.readSpan(ps, &spans[0], buf)
			if err == nil && chunk.Checksum(buf[p.lo:min(p.hi, p.lo+chunk.ChecksumBlock)]) != l.sumsOf(fr)[0] {
				t.Fatal("wrong bytes were read")
			}
		}
	})
}

// memFile is a File that is only read.
type memFile []byte

func (m memFile) ReadAt(b []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(b, off) }
func (m memFile) Size() (int64, error)                    { return int64(len(m)), nil }
func (m memFile) Close() error                            { return nil }
func (m memFile) WriteBuffers([][]byte, int64) error      { return errors.ErrUnsupported }
func (m memFile) Sync() error                             { return errors.ErrUnsupported }
func (m memFile) StartWriteback(int64, int64) error       { return errors.ErrUnsupported }
func (m memFile) DropCache(int64, int64) error            { return nil }
func (m memFile) Truncate(int64) error                    { return errors.ErrUnsupported }
