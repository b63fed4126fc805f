package traffic

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/shoalfs/shoalfs/test/fault/workload"
)

// record is a value as a file holds it: repeated, so that no part of it can be taken for another's.
func record(value uint64, size int) []byte {
	return bytes.Repeat(binary.LittleEndian.AppendUint64(nil, value), size/8)
}

// values takes content apart into records. torn says what is wrong where it is made of no whole ones.
func values(b []byte, size int) (list []uint64, torn string) {
	for at := 0; at < len(b); at += size {
		if at+size > len(b) {
			return list, fmt.Sprintf("%d bytes, in records of %d", len(b), size)
		}
		value := binary.LittleEndian.Uint64(b[at:])
		for off := 8; off < size; off += 8 {
			if other := binary.LittleEndian.Uint64(b[at+off:]); other != value {
				return list, fmt.Sprintf("%#x at %d and %#x at %d", value, at, other, at+off)
			}
		}
		list = append(list, value)
	}
	return list, ""
}

// readAll reads a file that may grow meanwhile.
func readAll(f workload.File, hint int) ([]byte, error) {
	b := make([]byte, 0, hint+1) // so that the end is seen with what is before it
	for {
		n, err := f.ReadAt(b[len(b):cap(b)], int64(len(b)))
		b = b[:len(b)+n]
		switch {
		case errors.Is(err, io.EOF):
			return b, nil
		case err != nil:
			return nil, err
		}
		b = append(make([]byte, 0, 4*cap(b)), b...)
	}
}
