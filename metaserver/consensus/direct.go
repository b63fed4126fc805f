package consensus

import (
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// directBlock is what offset, length and memory of a direct write are multiples of, bytes: the largest block of disks in use.
const directBlock = 4096

// directWriter writes a segment past the page cache: of a small durable append, which is most of what a change of metadata
// costs, writing a page back is a fifth (`go test -run xxx -bench BenchmarkLog` measures it). It writes whole blocks: what comes before
// in the first one it remembers from the last append, and behind the end of an append, where nothing counts in a segment, it
// puts zeros. For one goroutine, as the log itself. See open(2), O_DIRECT.
type directWriter struct {
	file *os.File
	size int64  // of the segment, bytes: it never becomes longer
	buf  []byte // aligned to blocks, as is its length
	end  int64  // of the last write; 0: not known
	tail []byte // what the segment has before end in the same block
}

// openDirect returns nil where the file system has no direct writes.
func openDirect(path string) *directWriter {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close() // nothing was written
		return nil
	}
	return &directWriter{file: f, size: info.Size()}
}

// write writes b at off of the segment that r reads, and says whether it did: where it did not, b is to be written through the
// page cache.
func (d *directWriter) write(b []byte, off int64, r io.ReaderAt) bool {
	start := off &^ (directBlock - 1)
	head := int(off - start)
	length := (head + len(b) + directBlock - 1) &^ (directBlock - 1)
	if start+int64(length) > d.size {
		return false
	}
	d.room(length)
	known := d.end == off
	d.end = 0 // until this is written
	if known {
		copy(d.buf, d.tail)
	} else if head > 0 {
		if _, err := r.ReadAt(d.buf[:head], start); err != nil {
			return false
		}
	}
	used := head + copy(d.buf[head:], b)
	clear(d.buf[used:length])
	n, err := unix.Pwrite(int(d.file.Fd()), d.buf[:length], start)
	for err == syscall.EINTR {
		n, err = unix.Pwrite(int(d.file.Fd()), d.buf[:length], start)
	}
	if err != nil || n < length {
		return false
	}
	d.end = start + int64(used)
	d.tail = append(d.tail[:0], d.buf[used&^(directBlock-1):used]...)
	return true
}

// room makes buf at least n bytes long.
func (d *directWriter) room(n int) {
	if len(d.buf) >= n {
		return
	}
	n = max(n, 16*directBlock)
	b := make([]byte, n+directBlock)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (directBlock - 1)
	d.buf = b[skip : skip+n]
}
