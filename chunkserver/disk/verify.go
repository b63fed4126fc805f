package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// errUnsealed is what is wrong with a file whose end was valid when the chunk was sealed.
var errUnsealed = errors.New("its index is missing or damaged")

// Verify reads the whole file of a chunk, from the disk and not from what the kernel remembers of it, and checks every byte
// that matters. pace, unless it is nil, is called before each read with the number of bytes, and may wait; when it fails so
// does Verify.
//
// What is damaged, or whose file has gone, is bad from now on, and the error an ErrCorrupt. ErrNotFound, ErrWriting, and what
// ctx or pace say, mean nothing about the chunk.
func (d *Disk) Verify(ctx context.Context, id chunk.ID, pace func(context.Context, int) error) error {
	s, err := d.verifiable(id)
	if err != nil {
		return fmt.Errorf("chunk %v: %w", id, err)
	}
	f, err := d.openChunk(d.background, id, s.file)
	if err != nil {
		return err
	}
	defer f.Close() // nothing was written through it
	v := verifier{d: d, id: id, f: f, pace: func(n int) error {
		if err := ctx.Err(); err != nil || pace == nil {
			return err
		}
		return pace(ctx, n)
	}}
	err = v.run(s)
	if err == nil {
		return nil
	}
	if v.given != nil {
		return fmt.Errorf("chunk %v: %w", id, v.given)
	}
	return d.damaged(id, s.file, err)
}

// verifiable returns what is known of a chunk that can be verified. One that is written changes under the reader's eyes; what
// is wrong with it, its readers find.
func (d *Disk) verifiable(id chunk.ID) (state, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s, ok := d.chunks[id]
	switch {
	case d.closed:
		return s, ErrClosed
	case !ok:
		return s, ErrNotFound
	case d.writers[id] != nil:
		return s, ErrWriting
	}
	return s, nil
}

// verifier checks one chunk file.
type verifier struct {
	d     *Disk
	id    chunk.ID
	f     File
	pace  func(int) error
	given error // what pace said: why nobody wants to know any more

	size     int64
	buf      []byte
	from, to int64 // range of the file that buf holds
}

// verifyStep is how much of a file is read at once where its records are small, in bytes.
const verifyStep = 512 << 10

func (v *verifier) run(s state) (err error) {
	if v.size, err = v.f.Size(); err != nil {
		return err
	}
	// What the kernel has in memory may be right where the disk is not. What it keeps for readers does not suffer: what they
	// read again will be there again.
	_ = v.f.DropCache(0, 0)
	if err := v.wait(int(min(v.size, tailRead))); err != nil {
		return err
	}
	l, err := load(v.f, v.d.cluster(), v.id)
	switch {
	case err != nil:
		return err
	case l.bad != nil:
		return l.bad
	case !l.sealed && !s.loose:
		return errUnsealed
	case l.length != uint64(s.length):
		return fmt.Errorf("it holds %d bytes, it had %d", l.length, s.length)
	case l.size == 0:
		return nil
	}
	if err := v.header(l.salt); err != nil {
		return err
	}
	records := seed(v.d.cluster(), v.id, l.salt)
	for i := range l.frames {
		if err := v.frame(&l.index, &l.frames[i], records); err != nil {
			return err
		}
	}
	_ = v.f.DropCache(0, 0)
	return nil
}

func (v *verifier) wait(n int) error {
	v.given = v.pace(n)
	return v.given
}

func (v *verifier) header(salt uint64) error {
	b, err := v.at(0, headerSize)
	if err != nil {
		return err
	}
	h, err := decodeHeader(b)
	if err == nil {
		err = h.check(v.d.cluster(), v.id)
	}
	if err == nil && h.salt != salt {
		err = errors.New("it is not that of the index")
	}
	if err != nil {
		return fmt.Errorf("its header: %w", err)
	}
	return nil
}

// frame checks the record of a frame against the index, and its payload against both.
func (v *verifier) frame(ix *index, fr *frame, seed uint32) error {
	sums := ix.sumsOf(fr)
	head := recordSize + 4*len(sums)
	b, err := v.at(int64(fr.pos)-int64(head), head+int(fr.length))
	if err != nil {
		return err
	}
	r, own, err := decodeRecord(b, seed, nil)
	if err != nil {
		return fmt.Errorf("its record of the bytes at %d: %w", fr.offset, err)
	}
	if r.kind != kindFrame || r.offset != uint64(fr.offset) || r.length != fr.length || !slices.Equal(own, sums) {
		return fmt.Errorf("its record of the bytes at %d is not what its index says", fr.offset)
	}
	return ix.verify(&piece{frame: fr, to: fr.length}, b[head:])
}

// at returns a range of the file. Ranges are asked for in order.
func (v *verifier) at(pos int64, n int) ([]byte, error) {
	end := pos + int64(n)
	if end > v.size {
		return nil, fmt.Errorf("the file ends at %d, before %d", v.size, end)
	}
	if end > v.to {
		if err := v.fill(pos, max(n, int(min(verifyStep, v.size-pos)))); err != nil {
			return nil, err
		}
	}
	return v.buf[pos-v.from:][:n], nil
}

// fill makes buf hold n bytes of the file from pos on.
func (v *verifier) fill(pos int64, n int) error {
	have := 0
	if pos < v.to {
		have = copy(v.buf, v.buf[pos-v.from:v.to-v.from])
	}
	v.buf = slices.Grow(v.buf[:have], n-have)[:n]
	if err := v.wait(n - have); err != nil {
		return err
	}
	v.from, v.to = pos, pos // should the read fail, nothing is there
	if err := readFull(v.f, v.buf[have:], pos+int64(have)); err != nil {
		return err
	}
	_ = v.f.DropCache(pos, int64(n))
	v.to = pos + int64(n)
	return nil
}
