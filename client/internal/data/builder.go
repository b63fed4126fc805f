package data

import "sort"

// maxSegments bounds how many separate ranges of a file a frame holds.
const maxSegments = 2048

// segment says that n bytes of a file from offset off are at pos of a buffer.
type segment struct {
	off uint64
	n   int
	pos int
}

func (s segment) end() uint64 { return s.off + uint64(s.n) }

// builder gathers the dirty bytes that become a frame. Bytes written again while they are here are overwritten in place.
type builder struct {
	buf  *[]byte // nil: empty
	fill int
	segs []segment // sorted by offset, without overlap
}

// write copies as much of p as fits and returns how much that was. The buffer must be there.
func (b *builder) write(p []byte, off uint64) int {
	done := 0
	for done < len(p) {
		n := b.writeSome(p[done:], off+uint64(done))
		if n == 0 {
			break
		}
		done += n
	}
	return done
}

// writeSome writes up to the next boundary between bytes that are here already and others.
func (b *builder) writeSome(p []byte, off uint64) int {
	i := b.find(off)
	if i < len(b.segs) && b.segs[i].off <= off {
		s := b.segs[i]
		at := int(off - s.off)
		return copy((*b.buf)[s.pos+at:s.pos+s.n], p)
	}
	n := min(len(p), cap(*b.buf)-b.fill)
	if i < len(b.segs) {
		n = min(n, int(min(b.segs[i].off-off, largestBuffer)))
	}
	if n == 0 {
		return 0
	}
	if i > 0 && b.segs[i-1].end() == off && b.segs[i-1].pos+b.segs[i-1].n == b.fill {
		b.segs[i-1].n += n
	} else {
		if len(b.segs) >= maxSegments {
			return 0
		}
		b.segs = append(b.segs, segment{})
		copy(b.segs[i+1:], b.segs[i:])
		b.segs[i] = segment{off: off, n: n, pos: b.fill}
	}
	copy((*b.buf)[b.fill:b.fill+n], p)
	b.fill += n
	return n
}

// find returns the index of the first segment that ends after off.
func (b *builder) find(off uint64) int {
	n := len(b.segs)
	if n == 0 || b.segs[n-1].end() <= off { // sequential
		return n
	}
	return sort.Search(n, func(i int) bool { return b.segs[i].end() > off })
}

// canGrow tells whether a larger buffer would take more.
func (b *builder) canGrow() bool {
	return b.buf != nil && b.fill == cap(*b.buf) && cap(*b.buf) < largestBuffer && len(b.segs) < maxSegments
}

// grow moves everything to a larger buffer and returns the one that is free now.
func (b *builder) grow(larger *[]byte) *[]byte {
	copy((*larger)[:b.fill], (*b.buf)[:b.fill])
	old := b.buf
	b.buf = larger
	return old
}

// sorted tells whether the bytes are in the order of the file, so that they can be sent as they are.
func (b *builder) sorted() bool {
	pos := 0
	for _, s := range b.segs {
		if s.pos != pos {
			return false
		}
		pos += s.n
	}
	return true
}

// sortInto copies the bytes in the order of the file; the segments say where they are then, neighbours joined.
func (b *builder) sortInto(dst []byte) {
	pos, out := 0, b.segs[:0]
	for _, s := range b.segs {
		copy(dst[pos:], (*b.buf)[s.pos:s.pos+s.n])
		if k := len(out); k > 0 && out[k-1].end() == s.off {
			out[k-1].n += s.n
		} else {
			out = append(out, segment{off: s.off, n: s.n, pos: pos})
		}
		pos += s.n
	}
	b.segs = out
}
