package disk

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// acquire returns the open file of a chunk.
func (d *Disk) acquire(id chunk.ID) (handle, error) {
	h, err := d.cachedHandle(id)
	if err != nil || h.file != nil {
		return h, err
	}
	f, err := d.openChunk(d.fs, id, h.of)
	if err != nil {
		return handle{}, err
	}
	l, err := load(f, d.cluster(), id)
	if err != nil {
		return handle{}, errors.Join(d.damaged(id, h.of, err), f.Close())
	}
	if l.bad != nil {
		d.markBad(id, h.of, l.bad)
	}
	h.file, h.ix = share(f), l.index
	release(d.keep(id, h))
	return h, nil
}

// openChunk opens the file of a chunk, which should be there.
func (d *Disk) openChunk(on FS, id chunk.ID, of uint32) (File, error) {
	f, err := on.Open(d.pathOf(id))
	if err == nil {
		return f, nil
	}
	if !d.Has(id) {
		return nil, fmt.Errorf("chunk %v: %w", id, ErrNotFound) // deleted meanwhile
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("its file has gone: %w", ErrCorrupt)
	}
	return nil, d.damaged(id, of, err)
}

// keep puts a handle into the cache, unless the chunk was deleted meanwhile or got another file. It returns what had to leave.
func (d *Disk) keep(id chunk.ID, h handle) []handle {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if s, ok := d.chunks[id]; !ok || s.file != h.of || d.closed {
		return nil
	}
	h.file.ref()
	return d.cache.put(id, h)
}

// cachedHandle returns a handle without a file where one has to be opened.
func (d *Disk) cachedHandle(id chunk.ID) (handle, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return handle{}, ErrClosed
	}
	s, ok := d.chunks[id]
	if !ok {
		return handle{}, fmt.Errorf("chunk %v: %w", id, ErrNotFound)
	}
	if w := d.writers[id]; w != nil {
		if h, ok := w.snapshot(); ok {
			return h, nil
		}
		return handle{}, fmt.Errorf("chunk %v: %w", id, ErrNotFound) // just being made
	}
	if h, ok := d.cache.get(id); ok {
		return h, nil
	}
	return handle{of: s.file}, nil
}
