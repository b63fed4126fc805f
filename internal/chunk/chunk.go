// Package chunk holds the nouns that metaserver, chunk server and client share about stored data: ids, sizes, checksums.
package chunk

import (
	"fmt"
	"hash/crc32"
	"strconv"
)

// ID names a chunk for ever: it is never used twice. The top 16 bits are the shard of the metadata that made it.
type ID uint64

func (id ID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// ParseID reads what ID.String wrote.
func ParseID(s string) (ID, error) {
	if len(s) != 16 {
		return 0, fmt.Errorf("chunk id %q: want 16 hexadecimal digits", s)
	}
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil || ID(v).String() != s {
		return 0, fmt.Errorf("chunk id %q: want 16 lower-case hexadecimal digits", s)
	}
	return ID(v), nil
}

// ServerID names a chunk server within its cluster. 0 is none.
type ServerID uint32

const (
	// ChecksumBlock is how many bytes one checksum covers.
	ChecksumBlock = 64 << 10
	// MaxFrame bounds the payload of one append, in bytes.
	MaxFrame = 1 << 20
	// MaxRead bounds the payload of one read, in bytes.
	MaxRead = 4 << 20
	// MaxLength bounds a chunk, in bytes. A writer goes on in a new chunk when the next frame would pass it.
	MaxLength = 64 << 20
	// MaxFrames bounds the number of appends to a chunk. A writer goes on in a new chunk after that many.
	MaxFrames = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC32C (RFC 3720, appendix B.4) of b.
func Checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// Update adds b to a running checksum; it starts at 0.
func Update(sum uint32, b []byte) uint32 { return crc32.Update(sum, castagnoli, b) }

// Blocks is the number of checksums that n bytes need.
func Blocks(n int) int { return (n + ChecksumBlock - 1) / ChecksumBlock }

// Checksums appends the checksum of each ChecksumBlock of b to sums; the last block may be shorter.
func Checksums(sums []uint32, b []byte) []uint32 {
	for len(b) > 0 {
		n := min(len(b), ChecksumBlock)
		sums = append(sums, Checksum(b[:n]))
		b = b[n:]
	}
	return sums
}

// Summer computes the checksums of a payload that arrives in pieces.
type Summer struct {
	sums []uint32
	cur  uint32
	fill int
}

// Write adds a piece; it never fails.
func (s *Summer) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		k := min(len(b), ChecksumBlock-s.fill)
		s.cur = Update(s.cur, b[:k])
		s.fill += k
		b = b[k:]
		if s.fill == ChecksumBlock {
			s.sums, s.cur, s.fill = append(s.sums, s.cur), 0, 0
		}
	}
	return n, nil
}

// Sums returns the checksums of all that was written.
func (s *Summer) Sums() []uint32 {
	if s.fill > 0 {
		return append(s.sums, s.cur)
	}
	return s.sums
}
