package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// copySuffix ends the name of a copy that is being made. Nothing takes it for a chunk; what a crash leaves is removed when the
// directory is opened.
const copySuffix = ".copy"

// Copy is a chunk that is made of what other servers hold. Its file lies beside the chunks until it is whole and on disk, and
// only then gets the chunk's name, in place of what the disk may have under it: whatever happens, what has that name is the
// old file or a whole new one. Its methods are for one goroutine at a time, and Discard must be called in the end.
type Copy struct {
	w      *Writer
	path   string
	placed bool // the file has the chunk's name

	// guarded by Disk.mu
	placing bool // its file is getting the chunk's name
	deleted bool // the chunk was deleted since the copy was begun
}

// Copy begins a copy of a chunk of that length. ErrWriting where the chunk has a Writer, ErrExists where another copy is made.
func (d *Disk) Copy(id chunk.ID, length uint64) (*Copy, error) {
	c, err := d.beginCopy(id, length)
	if err != nil {
		return nil, fmt.Errorf("copy of chunk %v: %w", id, err)
	}
	return c, nil
}

func (d *Disk) beginCopy(id chunk.ID, length uint64) (*Copy, error) {
	if d.cluster().IsZero() {
		return nil, fmt.Errorf("the data directory belongs to no cluster yet: %w", ErrInvalid)
	}
	if err := d.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFailed, err)
	}
	if err := d.admit(length + length/64 + chunk.ChecksumBlock); err != nil { // with its records and its index
		return nil, err
	}
	c := &Copy{w: &Writer{d: d, id: id, aside: true, stopped: make(chan struct{})}, path: filepath.Join(d.dirOf(id), id.String()+copySuffix)}
	if err := d.claimCopy(c); err != nil {
		return nil, err
	}
	// One that could not be removed when it was given up may still be there.
	err := d.background.Remove(c.path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = c.w.open(d.background, c.path)
	}
	if err != nil {
		c.release()
		if d.ioFailed(err); d.Err() != nil {
			err = fmt.Errorf("%w: %w", ErrFailed, err)
		}
		return nil, err
	}
	return c, nil
}

func (d *Disk) claimCopy(c *Copy) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch id := c.w.id; {
	case d.closed:
		return ErrClosed
	case d.writers[id] != nil:
		return ErrWriting
	case d.copies[id] != nil:
		return ErrExists
	default:
		d.copies[id] = c
	}
	return nil
}

// release lets another copy of the chunk be begun.
func (c *Copy) release() {
	d := c.w.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.copies[c.w.id] == c {
		delete(d.copies, c.w.id)
	}
}

// Append adds a frame to the end, as Writer.Append does.
func (c *Copy) Append(offset uint64, sums []uint32, payload mem.BufferSlice) error {
	return c.w.Append(offset, sums, payload)
}

// Disk is where the copy is made.
func (c *Copy) Disk() *Disk { return c.w.d }

// Length is how many bytes were appended.
func (c *Copy) Length() uint64 { return c.w.Length() }

// Commit makes the copy durable and puts it in the chunk's place. After an error the disk has what it had before.
func (c *Copy) Commit() error {
	w := c.w
	if w.Length() == 0 {
		return fmt.Errorf("copy of chunk %v: it holds nothing: %w", w.id, ErrInvalid)
	}
	// The index comes before the data is on disk, unlike that of a chunk that is written. It proves nothing yet: the file has
	// no name that is looked at, and gets it only when all of it is on disk.
	if err := w.seal(); err != nil {
		if isFull(err) {
			w.d.full()
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
		return w.fail(err)
	}
	if err := w.d.syncFile(w.file); err != nil {
		return w.fail(err)
	}
	return w.d.place(c)
}

// place gives the file of a copy the chunk's name.
func (d *Disk) place(c *Copy) error {
	id := c.w.id
	if err := d.beginPlacing(c); err != nil {
		return fmt.Errorf("copy of chunk %v: %w", id, err)
	}
	err := d.background.Rename(c.path, d.pathOf(id))
	c.placed = err == nil
	if c.placed {
		err = d.background.SyncDir(d.dirOf(id))
	}
	d.endPlacing(c, err != nil)
	if c.placed {
		d.cache.drop(id) // of the old file; from now on none of it comes in any more
	}
	switch {
	case err == nil:
		return nil
	case isFull(err):
		return fmt.Errorf("copy of chunk %v: %w: %w", id, ErrFull, err)
	}
	d.ioFailed(err)
	return fmt.Errorf("copy of chunk %v: %w: %w", id, ErrFailed, err)
}

func (d *Disk) beginPlacing(c *Copy) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return ErrClosed
	case c.deleted:
		return fmt.Errorf("it was deleted meanwhile: %w", ErrNotFound)
	}
	c.placing = true
	return nil
}

// endPlacing makes the copy the chunk, if it got its name. When it is not known whether that is durable the chunk counts as
// damaged, so that nobody relies on it.
func (d *Disk) endPlacing(c *Copy, doubtful bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.copies, c.w.id)
	if !c.placed {
		return
	}
	d.removeState(c.w.id)
	d.replaced++
	d.setState(c.w.id, state{length: uint32(c.w.Length()), file: d.replaced, bad: doubtful})
	if doubtful {
		d.bad++
	}
}

// Discard gives the copy up, unless it was committed, and what it holds of the system. An error is only that a file stays
// until the directory is next opened.
func (c *Copy) Discard() error {
	if c.w.done {
		return nil
	}
	c.w.done = true
	err := c.w.file.unref()
	if !c.placed {
		err = errors.Join(err, c.w.d.background.Remove(c.path))
	}
	c.release()
	return err
}
