package data

import "sort"

// span is a range [lo, hi) of a file.
type span struct{ lo, hi uint64 }

func (s span) len() int { return int(s.hi - s.lo) }

// cover calls hit for each part of the missing ranges that one of n sorted, disjoint ranges covers, and returns the parts
// that none does. Both are in ascending order.
func cover(missing []span, n int, at func(int) span, hit func(i int, part span)) []span {
	var rest []span
	for _, m := range missing {
		i := sort.Search(n, func(i int) bool { return at(i).hi > m.lo })
		for ; i < n && m.lo < m.hi; i++ {
			s := at(i)
			if s.lo >= m.hi {
				break
			}
			if s.hi <= m.lo {
				continue // they are not in order: what a damaged answer says is of no use, but does no harm
			}
			if s.lo > m.lo {
				rest = append(rest, span{m.lo, s.lo})
				m.lo = s.lo
			}
			part := span{m.lo, min(m.hi, s.hi)}
			hit(i, part)
			m.lo = part.hi
		}
		if m.lo < m.hi {
			rest = append(rest, m)
		}
	}
	return rest
}

// placed says that n bytes of a file from offset off are at pos of a frame.
type placed struct {
	off uint64
	n   int
	fr  *frame
	pos int
}

func (p placed) end() uint64 { return p.off + uint64(p.n) }

// cut returns the part of p within [lo, hi), which lies within p.
func (p placed) cut(lo, hi uint64) placed {
	return placed{off: lo, n: int(hi - lo), fr: p.fr, pos: p.pos + int(lo-p.off)}
}

// overlay maps ranges of a file to frames: sorted, disjoint, later writes over earlier ones.
type overlay []placed

// put lays the segments of a frame, sorted and disjoint, over what is there.
func (o *overlay) put(fr *frame, segs []segment) {
	if len(segs) == 0 {
		return
	}
	old := *o
	first, last := segs[0].off, segs[len(segs)-1].end()
	i := len(old)
	if i > 0 && old[i-1].end() > first { // not sequential
		i = sort.Search(len(old), func(k int) bool { return old[k].end() > first })
	}
	k := i + sort.Search(len(old)-i, func(j int) bool { return old[i+j].off >= last })
	if i == len(old) {
		for _, s := range segs {
			old = append(old, placed{off: s.off, n: s.n, fr: fr, pos: s.pos})
		}
		*o = old
		return
	}
	merged := merge(old[i:k], fr, segs)
	out := make(overlay, 0, len(old)-(k-i)+len(merged))
	out = append(append(append(out, old[:i]...), merged...), old[k:]...)
	*o = out
}

// merge returns the segments and what they leave of old, in ascending order.
func merge(old []placed, fr *frame, segs []segment) []placed {
	out := make([]placed, 0, len(old)+len(segs)+1)
	j := 0
	emit := func() {
		out = append(out, placed{off: segs[j].off, n: segs[j].n, fr: fr, pos: segs[j].pos})
		j++
	}
	for _, p := range old {
		lo, hi := p.off, p.end()
		for lo < hi {
			for j < len(segs) && segs[j].end() <= lo {
				emit()
			}
			if j == len(segs) || segs[j].off >= hi {
				out = append(out, p.cut(lo, hi))
				break
			}
			if segs[j].off > lo {
				out = append(out, p.cut(lo, segs[j].off))
			}
			lo = segs[j].end()
		}
	}
	for j < len(segs) {
		emit()
	}
	return out
}
