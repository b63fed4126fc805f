package data

import (
	"hash/maphash"
	"sync"

	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

const (
	// cacheBlock is the granularity of the cache, in bytes: that of checksums. An entry may have a part of a block only.
	cacheBlock    = chunk.ChecksumBlock
	cacheShards   = 16
	entryOverhead = 160 // bytes that an entry takes beside its data
	// Payloads shorter than this are copied: the buffers that they arrive in are much larger than they are.
	copyBelow = 16 << 10
)

// block names a cacheBlock-sized part of a chunk.
type block struct {
	chunk chunk.ID
	index uint32
}

// cache keeps parts of chunks, which never change, and knows which are being fetched.
//
// Data is copied out of it under the lock of its shard, so that no reader ever sees a buffer that was given back.
type cache struct {
	seed   maphash.Seed
	shards [cacheShards]shard
}

type shard struct {
	mu      sync.Mutex
	limit   int64
	size    int64
	entries map[block]*entry
	flights map[block]*flight
	head    entry // of the ring of entries: head.next is the one used last
}

// entry is the range [lo, hi) of a block, counted from the block's start.
type entry struct {
	key        block
	lo, hi     int
	data       mem.BufferSlice
	prev, next *entry
}

// flight is a fetch under way of the range [lo, hi) of a chunk. done is closed when it is over, well or not.
type flight struct {
	lo, hi uint64
	done   chan struct{}
}

func newCache(limit int64) *cache {
	c := &cache{seed: maphash.MakeSeed()}
	for i := range c.shards {
		s := &c.shards[i]
		s.limit = max(limit, 0) / cacheShards
		s.entries, s.flights = map[block]*entry{}, map[block]*flight{}
		s.head.prev, s.head.next = &s.head, &s.head
	}
	return c
}

func (c *cache) shard(b block) *shard {
	return &c.shards[maphash.Comparable(c.seed, b)%cacheShards]
}

// lookup copies the range [lo, hi) of a block to dst, if it is there; with dst nil it only says whether it is. Otherwise
// it returns the fetch that will bring it, if one is under way, and whether some other part of the block is there.
func (c *cache) lookup(b block, lo, hi int, dst []byte) (hit bool, f *flight, touched bool) {
	s := c.shard(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[b]
	if e != nil && e.lo <= lo && hi <= e.hi {
		if dst != nil {
			copyRange(dst, e.data, lo-e.lo)
			s.touch(e)
		}
		return true, nil, true
	}
	if f = s.flights[b]; f != nil {
		base := uint64(b.index) * cacheBlock
		if f.lo > base+uint64(lo) || f.hi < base+uint64(hi) {
			f = nil
		}
	}
	return false, f, e != nil
}

// copyRange fills dst from data, of which it skips the first bytes.
func copyRange(dst []byte, data mem.BufferSlice, skip int) {
	for _, b := range data {
		d := b.ReadOnlyData()
		if skip >= len(d) {
			skip -= len(d)
			continue
		}
		n := copy(dst, d[skip:])
		if dst = dst[n:]; len(dst) == 0 {
			return
		}
		skip = 0
	}
}

// begin announces a fetch of the range [lo, hi) of a chunk.
func (c *cache) begin(id chunk.ID, lo, hi uint64) *flight {
	f := &flight{lo: lo, hi: hi, done: make(chan struct{})}
	eachBlock(lo, hi, func(index uint32, _, _ int) {
		b := block{id, index}
		s := c.shard(b)
		s.mu.Lock()
		if s.flights[b] == nil {
			s.flights[b] = f
		}
		s.mu.Unlock()
	})
	return f
}

// end takes what a fetch brought (nil: it failed) and wakes those who wait for it. It does not keep the payload itself.
func (c *cache) end(id chunk.ID, f *flight, payload mem.BufferSlice) {
	var at int
	eachBlock(f.lo, f.hi, func(index uint32, lo, hi int) {
		b := block{id, index}
		s := c.shard(b)
		s.mu.Lock()
		if s.flights[b] == f {
			delete(s.flights, b)
		}
		if payload != nil && s.limit > 0 {
			s.insert(b, lo, hi, slicePart(payload, at, hi-lo))
		}
		s.mu.Unlock()
		at += hi - lo
	})
	close(f.done)
}

// eachBlock calls fn for each block that [lo, hi) touches, with the range of it that is touched.
func eachBlock(lo, hi uint64, fn func(index uint32, lo, hi int)) {
	for lo < hi {
		index := lo / cacheBlock
		end := min(hi, (index+1)*cacheBlock)
		fn(uint32(index), int(lo-index*cacheBlock), int(end-index*cacheBlock))
		lo = end
	}
}

// slicePart returns n bytes of a payload from skip on, with references of their own, or copied if they are few.
func slicePart(payload mem.BufferSlice, skip, n int) mem.BufferSlice {
	if n < copyBelow {
		b := make([]byte, n)
		copyRange(b, payload, skip)
		return mem.BufferSlice{mem.SliceBuffer(b)}
	}
	var out mem.BufferSlice
	for _, b := range payload {
		k := b.Len()
		if skip >= k {
			skip -= k
			continue
		}
		take := min(k-skip, n)
		out = append(out, b.Slice(skip, skip+take))
		skip = 0
		if n -= take; n == 0 {
			break
		}
	}
	return out
}

// insert keeps a range of a block. What is there already and adjoins it is kept with it; otherwise the new range replaces it.
func (s *shard) insert(b block, lo, hi int, data mem.BufferSlice) {
	if e := s.entries[b]; e != nil {
		switch {
		case e.lo <= lo && hi <= e.hi: // nothing new
			data.Free()
			s.touch(e)
			return
		case e.hi >= lo && e.lo < lo: // e, then the rest of the new range
			rest := slicePart(data, e.hi-lo, hi-e.hi)
			data.Free()
			lo, data = e.lo, append(e.take(), rest...)
		case e.lo <= hi && e.hi > hi: // the new range, then the rest of e
			data = append(data, slicePart(e.data, hi-e.lo, e.hi-hi)...)
			hi = e.hi
		}
		s.remove(e)
	}
	e := &entry{key: b, lo: lo, hi: hi, data: data}
	s.entries[b] = e
	s.size += e.cost()
	e.link(&s.head)
	for s.size > s.limit && s.head.prev != &s.head {
		s.remove(s.head.prev)
	}
}

func (e *entry) cost() int64 { return int64(e.hi-e.lo) + entryOverhead }

// take returns the data, which the entry does not own any more.
func (e *entry) take() mem.BufferSlice {
	d := e.data
	e.data = nil
	return d
}

func (e *entry) link(head *entry) {
	e.prev, e.next = head, head.next
	head.next.prev, head.next = e, e
}

func (e *entry) unlink() { e.prev.next, e.next.prev = e.next, e.prev }

func (s *shard) touch(e *entry) {
	e.unlink()
	e.link(&s.head)
}

func (s *shard) remove(e *entry) {
	e.unlink()
	delete(s.entries, e.key)
	s.size -= e.cost()
	e.data.Free()
}

// clear drops everything.
func (c *cache) clear() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for s.head.prev != &s.head {
			s.remove(s.head.prev)
		}
		s.mu.Unlock()
	}
}

func (c *cache) used() int64 {
	var n int64
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		n += s.size
		s.mu.Unlock()
	}
	return n
}
