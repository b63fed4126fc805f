package faultfs

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
)

// blockSize is what a disk writes as a whole, and what a page of the kernel's cache holds.
const blockSize = 4096

// content is the bytes of a file. They are in an object, a file of the backing directory, as programs see them now. Beside it
// is kept what those blocks had that differ from what would survive a loss of power.
type content struct {
	path  string // of the object
	space *space

	mu    sync.RWMutex
	opens int
	f     *os.File // while it is open

	size    int64
	durable int64 // the size that would survive
	// undo has the blocks below the durable size that were changed since, as they would survive; zeros at the end are left out.
	undo map[int64][]byte
	// lost are blocks that a failed fsync was to write. As on Linux the next one takes them for written: they survive only
	// if they are written again.
	lost map[int64]bool
}

func newContent(path string, s *space) (*content, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &content{path: path, space: s, undo: map[int64][]byte{}, lost: map[int64]bool{}}, f.Close()
}

// retain keeps the object open until release.
func (c *content) retain() (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opens == 0 {
		if c.f, err = os.OpenFile(c.path, os.O_RDWR, 0); err != nil {
			return err
		}
	}
	c.opens++
	return nil
}

func (c *content) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opens--; c.opens == 0 {
		_ = c.f.Close() // nothing depends on its being on the real disk
		c.f = nil
	}
}

// forget drops those opens of which no release will come.
func (c *content) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.f != nil {
		_ = c.f.Close() // as in release
	}
	c.opens, c.f = 0, nil
}

// with calls do with the object open.
func (c *content) with(do func() error) error {
	if err := c.retain(); err != nil {
		return err
	}
	defer c.release()
	return do()
}

func (c *content) length() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.size
}

// read is of a retained content, as are all that follow.
func (c *content) read(p []byte, off int64) (int, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n, err := c.f.ReadAt(p, off)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

func (c *content) write(p []byte, off int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	end := off + int64(len(p))
	if err := c.space.change(c.size, max(c.size, end)); err != nil {
		return err
	}
	if err := c.save(off, end); err != nil {
		return err
	}
	for b := off / blockSize; b*blockSize < end; b++ {
		delete(c.lost, b)
	}
	if _, err := c.f.WriteAt(p, off); err != nil {
		return err
	}
	c.size = max(c.size, end)
	return nil
}

func (c *content) truncate(size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.space.change(c.size, size); err != nil {
		return err
	}
	if err := c.save(size, c.size); err != nil {
		return err
	}
	for b := range c.lost {
		if b*blockSize >= size {
			delete(c.lost, b)
		}
	}
	if err := c.f.Truncate(size); err != nil {
		return err
	}
	c.size = size
	return nil
}

// beyond is the first block that has nothing of a size.
func beyond(size int64) int64 { return (size + blockSize - 1) / blockSize }

// save keeps the blocks of a range that is about to change as they would survive.
func (c *content) save(from, to int64) error {
	for b := from / blockSize; b*blockSize < min(to, c.durable); b++ {
		if _, ok := c.undo[b]; ok {
			continue
		}
		old := make([]byte, min(blockSize, c.durable-b*blockSize))
		if n, err := c.f.ReadAt(old, b*blockSize); err != nil && err != io.EOF {
			return err
		} else if n < len(old) {
			return errors.New("faultfs: a file is shorter than it was synced, and nothing is kept of its end")
		}
		c.undo[b] = old
	}
	return nil
}

// sync makes everything durable but what an fsync failed to write.
func (c *content) sync() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.durable = c.size
	for b := range c.undo {
		if !c.lost[b] {
			delete(c.undo, b)
		}
	}
	for b := range c.lost {
		old := c.undo[b] // nil: it was beyond the end
		c.undo[b] = append([]byte{}, old[:min(int64(len(old)), c.size-b*blockSize)]...)
	}
}

// failSync is an fsync that fails.
func (c *content) failSync() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for b := range c.undo {
		if b*blockSize < c.size {
			c.lost[b] = true
		}
	}
	for b := beyond(c.durable); b*blockSize < c.size; b++ {
		c.lost[b] = true
	}
}

// losePower makes the content what is durable of it. With random numbers, some of the rest survives.
func (c *content) losePower(rng *rand.Rand) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := c.durable
	if rng != nil && c.size != c.durable && rng.IntN(2) == 0 {
		if size = c.size; c.size > c.durable && rng.IntN(2) == 0 {
			size = c.durable + rng.Int64N(c.size-c.durable)
		}
	}
	for b, old := range c.undo {
		if rng == nil || rng.IntN(2) == 0 {
			if err := c.restore(b, old, size); err != nil {
				return err
			}
		}
	}
	for b := beyond(c.durable); b*blockSize < min(c.size, size); b++ {
		if rng.IntN(2) == 0 {
			if err := c.restore(b, nil, size); err != nil {
				return err
			}
		}
	}
	if err := c.f.Truncate(size); err != nil {
		return err
	}
	if err := c.space.force(c.size, size); err != nil {
		return err
	}
	c.size, c.durable = size, size
	clear(c.undo)
	clear(c.lost)
	return nil
}

// restore writes a block as it was, so far as it is below the size.
func (c *content) restore(b int64, old []byte, size int64) error {
	n := min(blockSize, size-b*blockSize)
	if n <= 0 {
		return nil
	}
	block := make([]byte, blockSize)
	copy(block, old)
	_, err := c.f.WriteAt(block[:n], b*blockSize)
	return err
}

// flip changes a bit of the byte at off, now and for ever: the disk itself is damaged.
func (c *content) flip(off int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b [1]byte
	if _, err := c.f.ReadAt(b[:], off); err != nil {
		return err
	}
	b[0] ^= 1
	if old := c.undo[off/blockSize]; off%blockSize < int64(len(old)) {
		old[off%blockSize] ^= 1
	}
	_, err := c.f.WriteAt(b[:], off)
	return err
}
