package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// loaded is what a chunk file proves to hold.
type loaded struct {
	index
	salt   uint64
	size   int64 // of the file, bytes
	sealed bool  // it has a valid index
	dense  bool  // the frames lie one after the other from the header on: an index can list them
	bad    error // what is damaged, nil if nothing is. Frames that were found are still in the index.
}

// tailRead is how much of a file's end is read at once: the index of nearly every chunk fits.
const tailRead = 16 << 10

// load reads the index of a chunk file, or finds its records one by one where there is none. An error is one of
// reading the file; damage is no error.
func load(f File, cluster ClusterID, id chunk.ID) (*loaded, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	l := &loaded{size: size, dense: true}
	if size == 0 {
		return l, nil // the crash came between making the file and writing to it: nothing was acknowledged
	}
	t, err := readTrailer(f, cluster, id, size)
	if err != nil {
		return nil, err
	}
	floor := uint64(0)
	if t != nil {
		l.salt = t.salt
		ix, err := t.readIndex(f, seed(cluster, id, t.salt))
		if err != nil {
			return nil, err
		}
		if ix != nil {
			l.index, l.sealed = *ix, true
			return l, nil
		}
		l.bad = errors.New("its index is damaged")
		floor = t.length // an index is written when all before it is on disk
	}
	head := make([]byte, min(size, headerSize))
	if err := readFull(f, head, 0); err != nil {
		return nil, err
	}
	h, err := decodeHeader(head)
	if err == nil {
		if err := h.check(cluster, id); err != nil {
			l.bad = err
			return l, nil
		}
		l.salt = h.salt
	} else {
		l.bad = fmt.Errorf("its header: %w", err)
		if t == nil {
			return l, nil
		}
	}
	return l, l.walk(f, seed(cluster, id, l.salt), floor)
}

// readFull reads all of b. A file that ends before is an error of the file system: its size was asked first.
func readFull(f File, b []byte, off int64) error {
	_, err := f.ReadAt(b, off)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// sealedEnd is a trailer together with the end of the file that it was found in.
type sealedEnd struct {
	trailer
	tail []byte
	from int64 // position of tail in the file
}

// readTrailer returns nil if the file has no valid trailer.
func readTrailer(f File, cluster ClusterID, id chunk.ID, size int64) (*sealedEnd, error) {
	if size < headerSize+recordSize+trailerSize {
		return nil, nil
	}
	e := &sealedEnd{tail: make([]byte, min(size, tailRead))}
	e.from = size - int64(len(e.tail))
	if err := readFull(f, e.tail, e.from); err != nil {
		return nil, err
	}
	var err error
	if e.trailer, err = decodeTrailer(e.tail, identity(cluster, id), size); err != nil {
		return nil, nil
	}
	return e, nil
}

// readIndex returns nil if the index is damaged.
func (e *sealedEnd) readIndex(f File, seed uint32) (*index, error) {
	b := e.tail
	if at := int64(e.index) - e.from; at >= 0 {
		b = b[at : at+int64(e.size)]
	} else {
		b = make([]byte, e.size)
		if err := readFull(f, b, int64(e.index)); err != nil {
			return nil, err
		}
	}
	r, sums, err := decodeRecord(b, seed, nil)
	if err != nil || r.kind != kindIndex || r.offset != e.length || r.head()+int64(r.length) != int64(e.size) {
		return nil, nil
	}
	payload := b[r.head():]
	for i, s := range sums {
		if chunk.Checksum(payload[i*chunk.ChecksumBlock:min(len(payload), (i+1)*chunk.ChecksumBlock)]) != s {
			return nil, nil
		}
	}
	ix, err := decodeIndex(payload, e.length, int64(e.index))
	if err != nil {
		return nil, nil
	}
	return ix, nil
}

// walk finds the records of a file without an index. The chunk ends at the first frame that is not whole beyond the floor,
// the length that some record proves to have been on disk. A frame below that is missing or damaged makes the chunk bad.
func (l *loaded) walk(f File, seed uint32, floor uint64) error {
	w := walker{f: f, seed: seed, size: min(l.size, maxFile), floor: floor}
	if err := w.run(); err != nil {
		return err
	}
	floor = w.floor
	end := uint64(0)
	keep := 0
	next := int64(headerSize)
	var buf []byte
	for ; keep < len(w.ix.frames); keep++ {
		fr := &w.ix.frames[keep]
		if uint64(fr.offset) != end {
			break
		}
		if fr.end() > floor {
			buf = slices.Grow(buf[:0], int(fr.length))
			ok, err := wholeFrame(f, fr, w.ix.sumsOf(fr), buf)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
		}
		end = fr.end()
		next += recordSize + 4*int64(chunk.Blocks(int(fr.length)))
		l.dense = l.dense && int64(fr.pos) == next
		next += int64(fr.length)
	}
	if end < floor {
		if l.bad == nil {
			l.bad = fmt.Errorf("%d bytes were on disk, of which only the first %d can be found", floor, end)
		}
		l.index = w.ix
		return nil
	}
	l.frames, l.sums, l.length = w.ix.frames[:keep:keep], w.ix.sums, end
	return nil
}

// wholeFrame says whether the bytes of a frame have its checksums.
func wholeFrame(f File, fr *frame, sums []uint32, buf []byte) (bool, error) {
	buf = buf[:fr.length]
	if err := readFull(f, buf, int64(fr.pos)); err != nil {
		return false, err
	}
	for i, s := range sums {
		if chunk.Checksum(buf[i*chunk.ChecksumBlock:min(len(buf), (i+1)*chunk.ChecksumBlock)]) != s {
			return false, nil
		}
	}
	return true, nil
}

// walker goes from record to record, and past damage to the next valid one.
type walker struct {
	f     File
	seed  uint32
	size  int64
	ix    index
	floor uint64
}

func (w *walker) run() error {
	var sums []uint32
	head := make([]byte, maxRecordHead)
	for pos := int64(headerSize); pos+recordSize <= w.size; {
		b := head[:min(int64(len(head)), w.size-pos)]
		if err := readFull(w.f, b, pos); err != nil {
			return err
		}
		r, s, err := decodeRecord(b, w.seed, sums[:0])
		sums = s
		if err != nil {
			if pos, err = w.search(pos + 1); err != nil {
				return err
			}
			continue
		}
		w.floor = max(w.floor, r.durable)
		payload := pos + r.head()
		if payload+int64(r.length) > w.size {
			pos++ // torn: nothing whole can follow, unless what claims to be this record lies
			if pos, err = w.search(pos); err != nil {
				return err
			}
			continue
		}
		if r.kind == kindFrame && r.offset >= w.ix.length && len(w.ix.frames) < chunk.MaxFrames {
			w.ix.add(r.offset, int(r.length), payload, sums)
		}
		pos = payload + int64(r.length)
	}
	return nil
}

var magicBytes = le.AppendUint32(nil, recordMagic)

// search returns the position of the next valid record at or after pos, or the size of the file. A record's checksum
// covers a random number that is only in this file's header, so that no payload can look like one.
func (w *walker) search(pos int64) (int64, error) {
	const window = 1 << 20
	buf := make([]byte, min(window+maxRecordHead, w.size-pos))
	for pos+recordSize <= w.size { // buf is made for the first, largest one
		b := buf[:min(int64(len(buf)), w.size-pos)]
		if err := readFull(w.f, b, pos); err != nil {
			return 0, err
		}
		for at := 0; at < window; at++ {
			i := bytes.Index(b[at:], magicBytes)
			if i < 0 || at+i >= window {
				break
			}
			at += i
			if _, _, err := decodeRecord(b[at:], w.seed, nil); err == nil {
				return pos + int64(at), nil
			}
		}
		pos += window
	}
	return w.size, nil
}
