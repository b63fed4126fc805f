package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// built is a chunk file whose writer has gone away.
type built struct {
	file   []byte // its bytes
	data   []byte // what was appended
	frames []int  // their lengths
	starts []int  // position of each record in the file
	synced int    // bytes that were durable when the last frame was appended
	id     chunk.ID
}

// build appends frames of these sizes. After frame number `sync` it syncs; -1: never. It seals if told to.
func build(t *testing.T, sizes []int, sync int, seal bool) built {
	t.Helper()
	b := built{id: 0x11, frames: sizes}
	d := open(t, t.TempDir(), Options{})
	w := create(t, d, b.id)
	for i, n := range sizes {
		p := random(n)
		b.data = append(b.data, p...)
		b.starts = append(b.starts, int(max(w.pos, headerSize)))
		appendTo(t, w, p)
		if i == sync {
			syncNow(t, w)
			b.synced = len(b.data)
		}
	}
	if seal {
		finish(t, w)
	}
	crash(d)
	b.file = contents(t, d.pathOf(b.id))
	return b
}

// shelf is a data directory in which one chunk file is exchanged for others.
type shelf struct {
	d    *Disk
	id   chunk.ID
	path string
}

func newShelf(t *testing.T, id chunk.ID) shelf {
	t.Helper()
	fs := newFaulty()
	fs.lazy = true
	d := openT(t, t.TempDir(), Options{FS: fs})
	return shelf{d, id, d.pathOf(id)}
}

// with puts a chunk file of that content there, and has the disk look at it as when it is opened.
func (s shelf) with(t *testing.T, file []byte) *Disk {
	t.Helper()
	put(t, s.path, file)
	s.again()
	return s.d
}

func (s shelf) again() {
	s.d.cache.drop(s.id)
	state, err := s.d.inspect(s.id)
	if err != nil {
		panic(err) // no fault is injected here
	}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	s.d.chunks[s.id] = state
}

// TestTornTail cuts the file at every byte of its last two records: what remains whole before the cut is kept, nothing
// else, and what was durable is never lost.
func TestTornTail(t *testing.T) {
	b := build(t, []int{100, 50, 70, 30}, 1, false)
	s := newShelf(t, b.id)
	for cut := b.starts[2]; cut <= len(b.file); cut++ {
		want := 150
		if cut >= b.starts[3] {
			want = 220
		}
		if cut == len(b.file) {
			want = 250
		}
		d := s.with(t, b.file[:cut])
		if r := report(t, d, b.id); r.Bad || r.Length != uint64(want) {
			t.Fatalf("cut at %d: %+v, want length %d", cut, r, want)
		}
		mustRead(t, d, b.id, 0, b.data[:want])
		if _, err := read(d, b.id, uint64(want), 1); !errors.Is(err, ErrRange) {
			t.Fatalf("cut at %d: read beyond the end: %v", cut, err)
		}
		s.again() // sealed by the first look
		mustRead(t, d, b.id, 0, b.data[:want])
		if got := contents(t, s.path); !bytes.Equal(got[:cut], b.file[:cut]) {
			t.Fatalf("cut at %d: recovery changed what was in the file", cut)
		}
	}
}

// TestLostPages blanks pages of records that were never durable, as a loss of power does, which keeps no order.
func TestLostPages(t *testing.T) {
	b := build(t, []int{100, 50, 70, 30}, 1, false)
	s := newShelf(t, b.id)
	for name, r := range map[string][2]int{
		"head of the third":    {b.starts[2], b.starts[2] + 20},
		"payload of the third": {b.starts[2] + 50, b.starts[3] - 1},
		"all of the third":     {b.starts[2], b.starts[3]},
		"all after the second": {b.starts[2], len(b.file)},
	} {
		file := bytes.Clone(b.file)
		clear(file[r[0]:r[1]])
		d := s.with(t, file)
		if r := report(t, d, b.id); r.Bad || r.Length != 150 {
			t.Errorf("%s: %+v", name, r)
		}
		mustRead(t, d, b.id, 0, b.data[:150])
	}
}

// TestLostBelowFloor damages what was durable: the chunk is bad, and its other frames can still be read.
func TestLostBelowFloor(t *testing.T) {
	b := build(t, []int{100, 50, 70, 30}, 2, false)
	s := newShelf(t, b.id)
	file := bytes.Clone(b.file)
	clear(file[b.starts[1] : b.starts[1]+10])
	d := s.with(t, file)
	if r := report(t, d, b.id); !r.Bad {
		t.Errorf("%+v", r)
	}
	mustRead(t, d, b.id, 0, b.data[:100])
	mustRead(t, d, b.id, 150, b.data[150:250])
	if _, err := read(d, b.id, 90, 20); !errors.Is(err, ErrCorrupt) {
		t.Errorf("read over the gap: %v", err)
	}
	if !bytes.Equal(contents(t, s.path), file) {
		t.Error("the file of a bad chunk was changed")
	}
	d = s.with(t, b.file[:b.starts[1]+3]) // a cut leaves no later record that proves anything
	if r := report(t, d, b.id); r.Bad || r.Length != 100 {
		t.Errorf("cut below the floor: %+v", r)
	}
}

// TestEveryByte flips every byte of a chunk file in turn, sealed or not: a read returns the right bytes or an error.
func TestEveryByte(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		for _, sync := range []int{-1, 0, 2} {
			t.Run(fmt.Sprintf("sealed=%v,sync=%d", sealed, sync), func(t *testing.T) {
				b := build(t, []int{60, 1, 90}, sync, sealed)
				s := newShelf(t, b.id)
				for i := range b.file {
					file := bytes.Clone(b.file)
					file[i] ^= byte(1 << (i % 8))
					d := s.with(t, file)
					checkReads(t, d, b)
					if got := contents(t, s.path); !bytes.Equal(got[:len(file)], file) {
						t.Fatalf("byte %d: what was in the file was changed", i)
					}
				}
			})
		}
	}
}

// checkReads reads all ranges that begin or end at a frame, and none of them may return wrong bytes.
func checkReads(t *testing.T, d *Disk, b built) {
	t.Helper()
	edges := []int{0}
	for _, n := range b.frames {
		edges = append(edges, edges[len(edges)-1]+n)
	}
	right := 0
	for i, from := range edges {
		for _, to := range edges[i+1:] {
			got, err := read(d, b.id, uint64(from), to-from)
			switch {
			case err == nil && !bytes.Equal(got, b.data[from:to]):
				t.Fatalf("wrong bytes from %d to %d", from, to)
			case err == nil:
				right++
			case !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrRange):
				t.Fatalf("read from %d to %d: %v", from, to, err)
			}
		}
	}
	if r := report(t, d, b.id); right == 0 && !r.Bad && r.Length == uint64(len(b.data)) {
		t.Fatal("nothing can be read and the chunk is not bad")
	}
}

// TestFlipsInLargeFrames does the same at chosen places of frames of several checksum blocks.
func TestFlipsInLargeFrames(t *testing.T) {
	b := build(t, []int{3*chunk.ChecksumBlock + 100, chunk.ChecksumBlock}, 0, true)
	s := newShelf(t, b.id)
	first := b.starts[0] + recordSize + 4*4
	for block := range 4 {
		at := first + block*chunk.ChecksumBlock + 50
		file := bytes.Clone(b.file)
		file[at] ^= 4
		d := s.with(t, file)
		for i := range 5 { // the fifth is the second frame
			from := min(i*chunk.ChecksumBlock, 3*chunk.ChecksumBlock+100*(i/4))
			got, err := read(d, b.id, uint64(from), 90)
			if i == block && !errors.Is(err, ErrCorrupt) {
				t.Errorf("damage in block %d: read in block %d: %v", block, i, err)
			}
			if i != block && (err != nil || !bytes.Equal(got, b.data[from:from+90])) {
				t.Errorf("damage in block %d: read in block %d: %v", block, i, err)
			}
		}
		// Bytes of the damaged block that are right themselves are not handed out either: nothing proves them.
		if _, err := read(d, b.id, uint64(block*chunk.ChecksumBlock+60), 10); !errors.Is(err, ErrCorrupt) {
			t.Errorf("damage in block %d: %v", block, err)
		}
		if !report(t, d, b.id).Bad {
			t.Error("the chunk is not bad")
		}
	}
}

// TestPayloadLikeRecord stores a chunk file in a chunk and then damages the record that holds it: what it contains must not
// be taken for records of the chunk.
func TestPayloadLikeRecord(t *testing.T) {
	inner := build(t, []int{60, 1, 90}, 1, false)
	d := open(t, t.TempDir(), Options{})
	w := create(t, d, inner.id)
	appendTo(t, w, inner.file)
	appendTo(t, w, random(10))
	crash(d)
	file := contents(t, d.pathOf(inner.id))
	file[headerSize] ^= 1
	s := newShelf(t, inner.id)
	d = s.with(t, file)
	for off := range 150 {
		if _, err := read(d, inner.id, uint64(off), 1); err == nil {
			t.Fatalf("byte %d of a payload's payload was read", off)
		}
	}
}

func TestSealedTwice(t *testing.T) {
	b := build(t, []int{60, 1, 90}, 1, true)
	file := bytes.Clone(b.file)
	file[len(file)-1] ^= 1 // the trailer: records are found one by one, and a new index is written behind
	s := newShelf(t, b.id)
	d := s.with(t, file)
	mustRead(t, d, b.id, 0, b.data)
	s.again()
	mustRead(t, d, b.id, 0, b.data)
	f, err := OS.Open(s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if l, err := load(f, testIdentity.Cluster, b.id); err != nil || !l.sealed || l.bad != nil {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestEmptyFile(t *testing.T) {
	s := newShelf(t, 0x11)
	d := s.with(t, nil)
	if r := report(t, d, 0x11); r.Bad || r.Length != 0 {
		t.Errorf("%+v", r)
	}
	if _, err := d.Create(0x11); !errors.Is(err, ErrExists) {
		t.Errorf("create: %v", err)
	}
	if err := d.Delete(0x11); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.path); !errors.Is(err, os.ErrNotExist) {
		t.Error("the file is still there")
	}
}

func TestFileVanishes(t *testing.T) {
	dir := t.TempDir()
	d := openT(t, dir, Options{MaxOpen: 1})
	for id := range chunk.ID(2) {
		w := create(t, d, id)
		appendTo(t, w, []byte("abc"))
		finish(t, w)
	}
	if err := os.Remove(filepath.Join(dir, chunksName, "00", "0000000000000000.chunk")); err != nil {
		t.Fatal(err)
	}
	if _, err := read(d, 0, 0, 3); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
	if !report(t, d, 0).Bad {
		t.Error("the chunk is not bad")
	}
	if err := d.Delete(0); err != nil {
		t.Error(err)
	}
}

// TestWrittenAhead: a chunk that is synced after every small append grows in steps, with zeros behind its last record. They
// change nothing for readers, for recovery at whatever byte a crash cuts the last record off, or for sealing.
func TestWrittenAhead(t *testing.T) {
	d := open(t, t.TempDir(), Options{})
	w := create(t, d, 0x11)
	var data []byte
	var starts []int64
	for range smallSyncs + 3 {
		p := random(70)
		data = append(data, p...)
		starts = append(starts, max(w.pos, headerSize))
		appendTo(t, w, p)
		syncNow(t, w)
	}
	mustRead(t, d, w.id, 0, data)
	end := w.pos
	crash(d)
	file := contents(t, d.pathOf(w.id))
	if int64(len(file)) <= end || !bytes.Equal(file[end:], make([]byte, int64(len(file))-end)) {
		t.Fatalf("the file has %d bytes, its records end at %d: no zeros follow", len(file), end)
	}
	s := newShelf(t, w.id)
	whole := report(t, s.with(t, file), w.id)
	if size := len(contents(t, s.path)); whole.Length != uint64(len(data)) || size > int(end)+1000 {
		t.Fatalf("recovered %+v, the file has %d bytes", whole, size)
	}
	last := starts[len(starts)-1]
	for cut := last; cut <= end; cut++ { // bytes of the last record that came to the disk
		torn := bytes.Clone(file)
		clear(torn[cut:])
		want := len(data)
		if !bytes.Equal(torn[last:end], file[last:end]) { // its last bytes may be zeros themselves
			want -= 70
		}
		if r := report(t, s.with(t, torn), w.id); r.Bad || r.Length != uint64(want) {
			t.Fatalf("cut at %d of %d: %+v, want length %d", cut, end, r, want)
		}
		mustRead(t, s.d, w.id, 0, data[:want])
	}

	again := openT(t, t.TempDir(), Options{})
	w = create(t, again, 0x12)
	for i := range smallSyncs + 3 {
		appendTo(t, w, data[70*i:70*(i+1)])
		syncNow(t, w)
	}
	finish(t, w)
	if size := len(contents(t, again.pathOf(w.id))); size > aheadSize {
		t.Fatalf("the sealed file still has %d bytes", size)
	}
	again.cache.drop(w.id)
	mustRead(t, again, w.id, 0, data)
}
