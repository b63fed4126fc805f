package disk

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// errUnsealed is what is wrong with a file whose end was valid when the chunk was sealed.
var errUnsealed = errors.New("its index is missing or damaged")

// Verify reads the whole file of a chunk, from the disk and not from what the kernel remembers of it, and checks every byte
// that matters. Of a chunk that is being written that is what was appended when Verify began; the writer goes on meanwhile. pace,
// unless it is nil, is called before each read with the number of bytes, and may wait; when it fails so does Verify.
//
// What is damaged, or whose file has gone, is bad from now on, and the error an ErrCorrupt. ErrNotFound, ErrWriting (the chunk
// is just being made), and what ctx or pace say, mean nothing about the chunk.
func (d *Disk) Verify(ctx context.Context, id chunk.ID, pace func(context.Context, int) error) error {
	s, open, err := d.verifiable(id)
	if err != nil {
		return fmt.Errorf("chunk %v: %w", id, err)
	}
	f, err := d.openChunk(d.background, id, s.file)
	if err != nil {
		return err
	}
	defer f.Close() // nothing was written through it
	v := verifier{d: d, id: id, f: f, clean: math.MaxInt64, pace: func(n int) error {
		if err := ctx.Err(); err != nil || pace == nil {
			return err
		}
		return pace(ctx, n)
	}}
	if open != nil {
		err = v.runOpen(open)
	} else {
		err = v.run(s)
	}
	if err == nil {
		return nil
	}
	if v.given != nil {
		return fmt.Errorf("chunk %v: %w", id, v.given)
	}
	return d.damaged(id, s.file, err)
}

// Persist makes a chunk durable that is here, contents and name, whoever wrote it and however long ago. That it can be read says
// nothing about what a loss of power would leave of it: Verify does afterwards, as it then reads from the disk. ErrWriting where it
// has a Writer.
func (d *Disk) Persist(id chunk.ID) error {
	s, open, err := d.verifiable(id)
	if open != nil {
		err = ErrWriting
	}
	if err != nil {
		return fmt.Errorf("chunk %v: %w", id, err)
	}
	f, err := d.openChunk(d.background, id, s.file)
	if err != nil {
		return err
	}
	err = errors.Join(d.syncFile(f), f.Close())
	if err == nil {
		err = d.background.SyncDir(d.dirOf(id))
	}
	if err != nil {
		d.ioFailed(err)
		err = fmt.Errorf("chunk %v: %w: %w", id, ErrFailed, err)
		d.markBad(id, s.file, err)
	}
	return err
}

// verifiable returns what is known of a chunk that can be verified and, if it is being written, how far that is.
func (d *Disk) verifiable(id chunk.ID) (state, *progress, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s, ok := d.chunks[id]
	switch {
	case d.closed:
		return s, nil, ErrClosed
	case !ok:
		return s, nil, ErrNotFound
	}
	if w := d.writers[id]; w != nil {
		p, ok := w.progress()
		if !ok {
			return s, nil, ErrWriting
		}
		return s, &p, nil
	}
	return s, nil, nil
}

// verifier checks one chunk file.
type verifier struct {
	d     *Disk
	id    chunk.ID
	f     File
	pace  func(int) error
	given error // what pace said: why nobody wants to know any more
	clean int64 // all up to here in the file is on disk: what the kernel remembers of it is dropped before it is read

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

// runOpen checks what a writer had appended at some moment. None of that changes any more, whatever the writer does.
func (v *verifier) runOpen(p *progress) error {
	if len(p.ix.frames) == 0 {
		return nil // nor need there be a header
	}
	size, err := v.f.Size()
	if err != nil {
		return err
	}
	v.size = min(size, p.end()) // what follows changes
	if v.clean = p.onDisk(); v.clean > 0 {
		_ = v.f.DropCache(0, v.clean)
	}
	if err := v.header(p.salt); err != nil {
		return err
	}
	for i := range p.ix.frames {
		if err := v.frame(&p.ix, &p.ix.frames[i], p.seed); err != nil {
			return err
		}
	}
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
	if pos+int64(n) <= v.clean {
		_ = v.f.DropCache(pos, int64(n))
	}
	v.to = pos + int64(n)
	return nil
}
