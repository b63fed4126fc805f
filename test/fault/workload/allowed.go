package workload

import (
	"fmt"
	"slices"
	"strings"
)

// segment is a range of a file, not empty, in which every byte may be that of the same writes.
type segment struct {
	from, to int64
	stamps   []Stamp // the newest last
}

// content is what may be found in a file.
type content struct {
	file     *file
	segments []segment // without gaps, up to max
	min, max int64     // of its size
}

// candidate is what may be found at a name: nothing where content is nil.
type candidate struct{ *content }

// before is what was acknowledged at some time about a name.
type before struct {
	path   string
	first  int           // the binding that held; -1: there was none
	floors map[*file]int // how many of its writes were published
}

// before says what is acknowledged now.
func (h *History) before(path string) before {
	b := before{path: path, first: -1, floors: map[*file]int{}}
	for i, x := range h.paths[path] {
		if x.acked {
			b.first = i
			clear(b.floors)
		}
		if x.file != nil {
			b.floors[x.file] = x.file.published
		}
	}
	return b
}

// allowed says what a read may have returned that began at before, and has ended now. Whatever fails, what was published stays: a
// client whose servers lose power writes again what they lost.
func (h *History) allowed(b before) []candidate {
	var out []candidate
	if b.first < 0 {
		out = append(out, candidate{})
	}
	for _, x := range h.paths[b.path][max(b.first, 0):] {
		if x.file == nil {
			out = append(out, candidate{})
			continue
		}
		out = append(out, candidate{x.file.content(b.floors[x.file])})
	}
	return out
}

// content says what may be in a file of which so many writes were published.
func (f *file) content(published int) *content {
	c := &content{file: f}
	for i := range f.writes {
		c.put(&f.writes[i], i < published)
	}
	return c
}

// put adds a write. One that is settled replaces what was there before; of one that is not, it cannot be known.
func (c *content) put(w *write, settled bool) {
	end := w.off + w.len
	if end > c.max {
		c.segments = append(c.segments, segment{from: c.max, to: end, stamps: []Stamp{0}})
		c.max = end
	}
	if settled {
		c.min = max(c.min, end)
	}
	i := c.split(w.off)
	j := c.split(end)
	if settled {
		c.segments = slices.Replace(c.segments, i, j, segment{from: w.off, to: end, stamps: []Stamp{w.stamp}})
		return
	}
	for ; i < j; i++ {
		s := &c.segments[i]
		s.stamps = append(slices.Clone(s.stamps), w.stamp)
	}
}

// split sees to it that a segment begins at an offset, and returns its index.
func (c *content) split(at int64) int {
	i, found := slices.BinarySearchFunc(c.segments, at, func(s segment, at int64) int { return int(s.from - at) })
	if found || i == 0 || c.segments[i-1].to <= at {
		return i
	}
	right := c.segments[i-1]
	c.segments[i-1].to, right.from = at, at
	c.segments = slices.Insert(c.segments, i, right)
	return i
}

// Range is a part of a file that is not as it must be.
type Range struct {
	From, To  int64
	Want, Got string
}

func (r Range) String() string {
	return fmt.Sprintf("[%d,%d): %s, want %s", r.From, r.To, r.Got, r.Want)
}

// apart is how many right bytes lie between two wrong ranges at least: a wrong byte is right by chance once in 256.
const apart = 16

// compare returns the ranges of what was read at off that may not be so.
func (c *content) compare(p []byte, off int64) []Range {
	var bad []Range
	i, _ := slices.BinarySearchFunc(c.segments, off, func(s segment, at int64) int { return int(s.to - 1 - at) })
	for len(p) > 0 {
		if i == len(c.segments) {
			return append(bad, Range{off, off + int64(len(p)), "the end of the file", c.describe(p, off)})
		}
		s := &c.segments[i]
		n := min(int64(len(p)), s.to-off)
		for _, r := range s.compare(p[:n], off) {
			r.Want, r.Got = c.names(s.stamps), c.describe(p[r.From-off:r.To-off], r.From)
			bad = append(bad, r)
		}
		p, off = p[n:], off+n
		i++
	}
	return bad
}

// compare finds the longest stretches that one of the stamps explains; the rest is wrong.
func (s *segment) compare(p []byte, off int64) (bad []Range) {
	for at := int64(0); at < int64(len(p)); {
		n := 0
		for _, stamp := range s.stamps {
			n = max(n, stamp.Match(p[at:], off+at))
		}
		k := len(bad) - 1
		after := k >= 0 && bad[k].To == off+at // a wrong byte
		if n > 0 && !(after && n < apart && n < len(p)-int(at)) {
			at += int64(n)
			continue
		}
		if after {
			bad[k].To++
		} else {
			bad = append(bad, Range{From: off + at, To: off + at + 1})
		}
		at++
	}
	return bad
}

// names tells which writes stamps are of.
func (c *content) names(stamps []Stamp) string {
	var out []string
	for _, s := range stamps {
		out = append(out, c.name(s))
	}
	return strings.Join(out, " or ")
}

func (c *content) name(s Stamp) string {
	if s == 0 {
		return "zeros"
	}
	for i := range c.file.writes {
		if w := &c.file.writes[i]; w.stamp == s {
			return fmt.Sprintf("write #%d", w.seq)
		}
	}
	return "a write of another file"
}

// describe tells what some bytes look like.
func (c *content) describe(p []byte, off int64) string {
	some := p[:min(len(p), 64)]
	if Stamp(0).Match(some, off) == len(some) {
		return "zeros"
	}
	if len(some) >= 4 { // fewer are anybody's by chance
		for i := range c.file.writes {
			if w := &c.file.writes[i]; w.stamp.Match(some, off) == len(some) {
				return fmt.Sprintf("what write #%d left", w.seq)
			}
		}
	}
	return fmt.Sprintf("%x…, which nobody wrote there", some[:min(len(some), 8)])
}
