package disk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// ClusterID is the 16 bytes that name a cluster; all zero: none yet.
type ClusterID [16]byte

func (c ClusterID) String() string { return fmt.Sprintf("%x", c[:]) }

// IsZero says that no cluster has been joined yet.
func (c ClusterID) IsZero() bool { return c == ClusterID{} }

// formatVersion is that of chunk files.
const formatVersion = 1

const (
	headerSize  = 64
	recordSize  = 40
	trailerSize = 40

	headerMagic  = "SHOALCHK"
	trailerMagic = "SHOALEND"
	recordMagic  = 0xF5C6EA8B // no ASCII, no valid UTF-8

	kindFrame = 1
	kindIndex = 2

	// maxIndex bounds the payload of an index record: a length for each frame and all checksums, 4 bytes each.
	maxIndex = 4*chunk.MaxFrames + 4*(chunk.MaxFrames+chunk.MaxLength/chunk.ChecksumBlock)
	// maxSums is how many checksums a record has at most.
	maxSums = max(chunk.MaxFrame, (maxIndex+chunk.ChecksumBlock-1)/chunk.ChecksumBlock*chunk.ChecksumBlock) / chunk.ChecksumBlock
	// maxRecordHead is the size of the largest record without its payload.
	maxRecordHead = recordSize + 4*maxSums
	// maxFile bounds a chunk file that this package wrote, in bytes, an index torn by a crash included.
	maxFile = headerSize + chunk.MaxLength + chunk.MaxFrames*(recordSize+4) + chunk.MaxLength/chunk.ChecksumBlock*4 +
		chunk.MaxFrame + 2*(maxRecordHead+maxIndex+trailerSize)
)

var le = binary.LittleEndian

var (
	errShort   = errors.New("too short")
	errMagic   = errors.New("not a chunk file")
	errSum     = errors.New("wrong checksum")
	errCluster = errors.New("of another cluster")
	errID      = errors.New("of another chunk")
	errNewer   = errors.New("of a newer format")
	errRecord  = errors.New("no valid record")
)

// header is the start of a chunk file.
type header struct {
	cluster ClusterID
	id      chunk.ID
	salt    uint64 // random; goes into every checksum of a record, so that no payload can pass for a record
	created int64  // nanoseconds since 1970 UTC
}

func (h *header) append(b []byte) []byte {
	start := len(b)
	b = append(b, headerMagic...)
	b = le.AppendUint32(b, formatVersion)
	b = le.AppendUint32(b, 0)
	b = append(b, h.cluster[:]...)
	b = le.AppendUint64(b, uint64(h.id))
	b = le.AppendUint64(b, h.salt)
	b = le.AppendUint64(b, uint64(h.created))
	b = le.AppendUint32(b, 0)
	return le.AppendUint32(b, chunk.Checksum(b[start:]))
}

// decodeHeader reads what header.append wrote.
func decodeHeader(b []byte) (header, error) {
	if len(b) < headerSize {
		return header{}, errShort
	}
	b = b[:headerSize]
	if string(b[:8]) != headerMagic {
		return header{}, errMagic
	}
	if v := le.Uint32(b[8:]); v > formatVersion {
		return header{}, fmt.Errorf("format %d, this program knows %d: %w", v, formatVersion, errNewer)
	}
	if chunk.Checksum(b[:60]) != le.Uint32(b[60:]) {
		return header{}, errSum
	}
	h := header{id: chunk.ID(le.Uint64(b[32:])), salt: le.Uint64(b[40:]), created: int64(le.Uint64(b[48:]))}
	copy(h.cluster[:], b[16:32])
	return h, nil
}

// check says whether the header is the one of this chunk.
func (h *header) check(cluster ClusterID, id chunk.ID) error {
	if h.cluster != cluster {
		return fmt.Errorf("cluster %v, this is %v: %w", h.cluster, cluster, errCluster)
	}
	if h.id != id {
		return fmt.Errorf("chunk %v: %w", h.id, errID)
	}
	return nil
}

// identity is the running checksum that trailers of this chunk start from.
func identity(cluster ClusterID, id chunk.ID) uint32 {
	return chunk.Update(chunk.Checksum(cluster[:]), le.AppendUint64(nil, uint64(id)))
}

// seed is the running checksum that records of this file start from.
func seed(cluster ClusterID, id chunk.ID, salt uint64) uint32 {
	return chunk.Update(identity(cluster, id), le.AppendUint64(nil, salt))
}

// record is what comes before each payload.
type record struct {
	kind    uint8
	offset  uint64 // where in the chunk the payload starts; of an index: the chunk's length
	durable uint64 // how much of the chunk was on disk for certain when this was written
	length  uint32 // of the payload, bytes
	sums    uint32 // how many checksums
}

// head is the size of the record without its payload, bytes.
func (r *record) head() int64 { return recordSize + 4*int64(r.sums) }

// append writes the record and its checksums.
func (r *record) append(b []byte, seed uint32, sums []uint32) []byte {
	start := len(b)
	b = le.AppendUint32(b, recordMagic)
	b = append(b, r.kind, 0, 0, 0)
	b = le.AppendUint64(b, r.offset)
	b = le.AppendUint64(b, r.durable)
	b = le.AppendUint32(b, r.length)
	b = le.AppendUint32(b, r.sums)
	b = le.AppendUint32(b, 0)
	at := len(b)
	b = le.AppendUint32(b, 0)
	for _, s := range sums {
		b = le.AppendUint32(b, s)
	}
	le.PutUint32(b[at:], chunk.Update(chunk.Update(seed, b[start:at]), b[at+4:]))
	return b
}

// decodeRecord reads a record's head with its checksums, which are appended to sums.
func decodeRecord(b []byte, seed uint32, sums []uint32) (record, []uint32, error) {
	if len(b) < recordSize {
		return record{}, sums, errShort
	}
	r := record{kind: b[4], offset: le.Uint64(b[8:]), durable: le.Uint64(b[16:]), length: le.Uint32(b[24:]), sums: le.Uint32(b[28:])}
	if le.Uint32(b) != recordMagic || !r.plausible() {
		return record{}, sums, errRecord
	}
	end := int(r.head())
	if len(b) < end {
		return record{}, sums, errShort
	}
	if chunk.Update(chunk.Update(seed, b[:36]), b[recordSize:end]) != le.Uint32(b[36:]) {
		return record{}, sums, errSum
	}
	for at := recordSize; at < end; at += 4 {
		sums = append(sums, le.Uint32(b[at:]))
	}
	return r, sums, nil
}

func (r *record) plausible() bool {
	limit := uint32(chunk.MaxFrame)
	switch r.kind {
	case kindFrame:
		if r.length == 0 || r.offset > chunk.MaxLength-uint64(r.length) && r.length <= limit {
			return false
		}
	case kindIndex:
		limit = maxIndex
	default:
		return false
	}
	return r.length <= limit && r.offset <= chunk.MaxLength && r.durable <= r.offset && int(r.sums) == chunk.Blocks(int(r.length))
}

// trailer is the end of the file of a sealed chunk.
type trailer struct {
	salt   uint64 // as in the header
	index  uint64 // where in the file the index record starts
	length uint64 // of the chunk, bytes
	size   uint32 // of the index record with its payload, bytes
}

func (t *trailer) append(b []byte, identity uint32) []byte {
	start := len(b)
	b = append(b, trailerMagic...)
	b = le.AppendUint64(b, t.salt)
	b = le.AppendUint64(b, t.index)
	b = le.AppendUint64(b, t.length)
	b = le.AppendUint32(b, t.size)
	return le.AppendUint32(b, chunk.Update(identity, b[start:]))
}

// decodeTrailer reads the trailer of a file of that size from its last bytes.
func decodeTrailer(b []byte, identity uint32, fileSize int64) (trailer, error) {
	if len(b) < trailerSize {
		return trailer{}, errShort
	}
	b = b[len(b)-trailerSize:]
	if string(b[:8]) != trailerMagic {
		return trailer{}, errMagic
	}
	if chunk.Update(identity, b[:36]) != le.Uint32(b[36:]) {
		return trailer{}, errSum
	}
	t := trailer{salt: le.Uint64(b[8:]), index: le.Uint64(b[16:]), length: le.Uint64(b[24:]), size: le.Uint32(b[32:])}
	if t.length > chunk.MaxLength || t.size < recordSize || t.size > maxRecordHead+maxIndex ||
		t.index < headerSize || t.index > uint64(fileSize) || t.index+uint64(t.size)+trailerSize != uint64(fileSize) {
		return trailer{}, errRecord
	}
	return t, nil
}

// encodeIndex appends the payload of an index record: for each frame its length and its checksums.
func encodeIndex(b []byte, ix *index) []byte {
	for i := range ix.frames {
		f := &ix.frames[i]
		b = le.AppendUint32(b, f.length)
		for _, s := range ix.sumsOf(f) {
			b = le.AppendUint32(b, s)
		}
	}
	return b
}

// decodeIndex reads what encodeIndex wrote. The frames lie one after the other from the header on and end at or before
// position end of the file.
func decodeIndex(b []byte, length uint64, end int64) (*index, error) {
	ix := new(index)
	pos := int64(headerSize)
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, errShort
		}
		n := le.Uint32(b)
		b = b[4:]
		sums := chunk.Blocks(int(n))
		if n == 0 || n > chunk.MaxFrame || len(b) < 4*sums || len(ix.frames) == chunk.MaxFrames || uint64(n) > length-ix.length {
			return nil, errRecord
		}
		pos += recordSize + 4*int64(sums)
		if pos > end-int64(n) {
			return nil, errRecord
		}
		first := len(ix.sums)
		for i := range sums {
			ix.sums = append(ix.sums, le.Uint32(b[4*i:]))
		}
		b = b[4*sums:]
		ix.frames = append(ix.frames, frame{offset: uint32(ix.length), length: n, pos: uint32(pos), sum: uint32(first)})
		ix.length += uint64(n)
		pos += int64(n)
	}
	if ix.length != length {
		return nil, errRecord
	}
	return ix, nil
}
