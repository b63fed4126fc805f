package disk

import (
	"container/list"
	"sync"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// handle is an open chunk file with a snapshot of its index. Whoever gets one calls release.
type handle struct {
	file *shared
	ix   index
	of   uint32 // which file of the chunk it is, see state
}

func (h handle) release() { _ = h.file.unref() } // of a file that was only read, or synced before

// release gives handles back. Closing a file may wait for the disk: no lock is held.
func release(hs []handle) {
	for _, h := range hs {
		h.release()
	}
}

// cache keeps the handles of chunks that were used last, bounded in number (each is a file descriptor) and in memory.
type cache struct {
	maxOpen   int
	maxMemory int64

	mu     sync.Mutex
	lru    list.List // of *cached, the last used first
	byID   map[chunk.ID]*list.Element
	memory int64
}

type cached struct {
	id chunk.ID
	handle
}

func newCache(maxOpen int, maxMemory int64) *cache {
	return &cache{maxOpen: maxOpen, maxMemory: maxMemory, byID: map[chunk.ID]*list.Element{}}
}

func (c *cache) get(id chunk.ID) (handle, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byID[id]
	if e == nil {
		return handle{}, false
	}
	c.lru.MoveToFront(e)
	h := e.Value.(*cached).handle
	h.file.ref()
	return h, true
}

// put takes the caller's reference of h over. An older handle of the chunk goes, and others for which there is no room: they
// are for the caller to release.
func (c *cache) put(id chunk.ID, h handle) (out []handle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	take := func(e *list.Element) {
		if h, ok := c.take(e); ok {
			out = append(out, h)
		}
	}
	take(c.byID[id])
	c.byID[id] = c.lru.PushFront(&cached{id, h})
	c.memory += h.ix.memory()
	for c.lru.Len() > c.maxOpen || c.memory > c.maxMemory && c.lru.Len() > 1 {
		take(c.lru.Back())
	}
	return out
}

func (c *cache) drop(id chunk.ID) {
	c.mu.Lock()
	h, ok := c.take(c.byID[id])
	c.mu.Unlock()
	if ok {
		h.release() // closing a deleted file frees its blocks, which takes its time
	}
}

func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.lru.Len() > 0 {
		if h, ok := c.take(c.lru.Back()); ok {
			h.release()
		}
	}
}

// take removes an element and hands its reference over.
func (c *cache) take(e *list.Element) (handle, bool) {
	if e == nil {
		return handle{}, false
	}
	v := c.lru.Remove(e).(*cached)
	delete(c.byID, v.id)
	c.memory -= v.ix.memory()
	return v.handle, true
}

func (c *cache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lru.Len()
}
