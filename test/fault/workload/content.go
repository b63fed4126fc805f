package workload

import "encoding/binary"

// Stamp names a write among all writes of a run; what it wrote follows from it. Zero is what was never written, and reads as
// zeros.
type Stamp uint64

// word is 8 bytes of a write's content, those at 8*index of the file: splitmix64.
func (s Stamp) word(index uint64) uint64 {
	x := uint64(s) + index*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// stampOf makes the stamp of a writer's n-th write.
func stampOf(seed, n uint64) Stamp {
	return Stamp(Stamp(seed+1).word(n+1) | 1) // never zero
}

// Fill puts into p what a write left at off of its file.
func (s Stamp) Fill(p []byte, off int64) {
	if s == 0 {
		clear(p)
		return
	}
	var w [8]byte
	for len(p) > 0 {
		skip := int(off & 7)
		n := min(len(p), 8-skip)
		if n == 8 {
			binary.LittleEndian.PutUint64(p, s.word(uint64(off)/8))
		} else {
			binary.LittleEndian.PutUint64(w[:], s.word(uint64(off)/8))
			copy(p[:n], w[skip:])
		}
		p, off = p[n:], off+int64(n)
	}
}

// Match returns how many bytes at the beginning of p, which is at off of the file, are what the write left there.
func (s Stamp) Match(p []byte, off int64) int {
	var w [8]byte
	for done := 0; done < len(p); {
		at := off + int64(done)
		skip := int(at & 7)
		n := min(len(p)-done, 8-skip)
		word := uint64(0)
		if s != 0 {
			word = s.word(uint64(at) / 8)
		}
		if n == 8 && binary.LittleEndian.Uint64(p[done:]) == word {
			done += 8
			continue
		}
		binary.LittleEndian.PutUint64(w[:], word)
		for i := range n {
			if p[done+i] != w[skip+i] {
				return done + i
			}
		}
		done += n
	}
	return len(p)
}
