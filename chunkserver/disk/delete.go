package disk

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// Delete removes a chunk; one that is not there is none the less deleted. A writer that is busy with it gets ErrNotFound
// from then on; a read that has begun may finish. Deletions are durable after SyncDeletions.
func (d *Disk) Delete(id chunk.ID) error {
	s, w, err := d.hide(id)
	if err != nil {
		return err
	}
	if s == nil {
		return nil
	}
	// Freeing the blocks of a file takes its time: no lock is held.
	if err := d.fs.Remove(d.pathOf(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.ioFailed(err)
		d.show(id, *s, w)
		return fmt.Errorf("delete chunk %v: %w", id, err)
	}
	d.cache.drop(id)
	return nil
}

// hide makes a chunk one that is not there, and stops its writer. The state is nil if there was none.
func (d *Disk) hide(id chunk.ID) (*state, *Writer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, nil, ErrClosed
	}
	if c := d.copies[id]; c != nil {
		if c.placing {
			return nil, nil, fmt.Errorf("delete chunk %v: a copy is just being put in its place: %w", id, ErrInvalid)
		}
		c.deleted = true
	}
	s, ok := d.chunks[id]
	if !ok {
		return nil, nil, nil
	}
	w := d.writers[id]
	if w != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.file == nil {
			return nil, nil, fmt.Errorf("delete chunk %v: it is just being made: %w", id, ErrInvalid)
		}
		w.gone = true
		if w.err == nil {
			close(w.stopped)
		}
		w.err = fmt.Errorf("chunk %v was deleted: %w", id, ErrNotFound)
		delete(d.writers, id)
	}
	d.removeState(id)
	return &s, w, nil
}

// show undoes hide; the writer stays stopped.
func (d *Disk) show(id chunk.ID, s state, w *Writer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w != nil {
		s.length = uint32(w.Length())
	}
	if s.bad {
		d.bad++
	}
	d.setState(id, s)
}

// SyncDeletions makes the deletions of these chunks durable.
func (d *Disk) SyncDeletions(ids []chunk.ID) error {
	done := map[uint8]bool{}
	for _, id := range ids {
		if done[uint8(id)] {
			continue
		}
		done[uint8(id)] = true
		if err := d.fs.SyncDir(d.dirOf(id)); err != nil {
			d.ioFailed(err)
			return fmt.Errorf("delete chunks: %w", err)
		}
	}
	return nil
}
