package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
)

// A database on its way to a follower, and in a snapshot's data file:
//
//	 0  8  "shoalsnp"
//	 8  4  version: 1
//	12  4  0
//	16  8  log index that the database holds
//	24  8  size of the database in bytes
//	32  4  CRC32C of bytes 0 to 31
//	36  …  the database
//	 …  4  CRC32C of the database
//
// Numbers are big-endian.
const (
	streamMagic   = "shoalsnp"
	streamVersion = 1
	headerSize    = 36
	trailerSize   = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errStream is a copy of a database that is not what it should be.
var errStream = errors.New("consensus: a received database is damaged")

// streamSize is how long the stream of a database of that size is.
func streamSize(database int64) int64 { return headerSize + database + trailerSize }

// encoder adds header and trailer to a database.
type encoder struct {
	from  io.ReadCloser
	head  *bytes.Reader
	body  io.Reader
	sum   hash.Hash32
	tail  *bytes.Reader // nil until the body was read
	short int64         // of the body, still to come
}

func encodeStream(db io.ReadCloser, size int64, index uint64) io.ReadCloser {
	head := append(make([]byte, 0, headerSize), streamMagic...)
	head = binary.BigEndian.AppendUint32(head, streamVersion)
	head = binary.BigEndian.AppendUint32(head, 0)
	head = binary.BigEndian.AppendUint64(head, index)
	head = binary.BigEndian.AppendUint64(head, uint64(size))
	head = binary.BigEndian.AppendUint32(head, crc32.Checksum(head, castagnoli))
	e := &encoder{from: db, head: bytes.NewReader(head), sum: crc32.New(castagnoli), short: size}
	e.body = io.TeeReader(io.LimitReader(db, size), e.sum)
	return e
}

func (e *encoder) Read(p []byte) (int, error) {
	if e.head.Len() > 0 {
		return e.head.Read(p)
	}
	if e.tail == nil {
		n, err := e.body.Read(p)
		e.short -= int64(n)
		if err != io.EOF {
			return n, err
		}
		if e.short > 0 {
			return n, io.ErrUnexpectedEOF
		}
		e.tail = bytes.NewReader(e.sum.Sum(nil))
		if n > 0 {
			return n, nil
		}
	}
	return e.tail.Read(p)
}

func (e *encoder) Close() error { return e.from.Close() }

// decoder is the inverse of encoder. It says io.EOF only when everything was there and right.
type decoder struct {
	index uint64
	size  int64

	from io.Reader
	left int64
	sum  hash.Hash32
}

// decodeStream reads the header.
func decodeStream(r io.Reader) (*decoder, error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("%w: its header: %w", errStream, err)
	}
	if string(head[:8]) != streamMagic || binary.BigEndian.Uint32(head[32:]) != crc32.Checksum(head[:32], castagnoli) {
		return nil, fmt.Errorf("%w: it has no valid header", errStream)
	}
	if v := binary.BigEndian.Uint32(head[8:]); v != streamVersion {
		return nil, fmt.Errorf("consensus: a received database has format %d, this version of shoalfs knows only %d: run the same version on all metaservers",
			v, streamVersion)
	}
	d := &decoder{index: binary.BigEndian.Uint64(head[16:]), size: int64(binary.BigEndian.Uint64(head[24:])), from: r, sum: crc32.New(castagnoli)}
	if d.size < 0 {
		return nil, fmt.Errorf("%w: it claims to have %d bytes", errStream, uint64(d.size))
	}
	d.left = d.size
	return d, nil
}

func (d *decoder) Read(p []byte) (int, error) {
	if d.left > 0 {
		n, err := d.from.Read(p[:min(int64(len(p)), d.left)])
		_, _ = d.sum.Write(p[:n]) // never fails
		d.left -= int64(n)
		if err == io.EOF && d.left > 0 {
			return n, fmt.Errorf("%w: %d of %d bytes are missing", errStream, d.left, d.size)
		}
		if err == io.EOF {
			err = nil // the trailer is missing, as the next call will find
		}
		return n, err
	}
	if d.left < 0 {
		return 0, io.EOF
	}
	var tail [trailerSize]byte
	if _, err := io.ReadFull(d.from, tail[:]); err != nil {
		return 0, fmt.Errorf("%w: its checksum is missing", errStream)
	}
	if !bytes.Equal(tail[:], d.sum.Sum(nil)) {
		return 0, fmt.Errorf("%w: its checksum is wrong", errStream)
	}
	d.left = -1
	return 0, io.EOF
}
