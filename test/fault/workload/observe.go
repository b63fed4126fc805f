package workload

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// observation is what was read of a file, or why it was not.
type observation struct {
	opened error
	pieces []piece
	bytes  int64
	size   int64 // of the file; -1: its end was not read
}

// piece is a range that was read, or could not be.
type piece struct {
	off  int64
	data []byte
	want int64 // how many bytes of it could not be read
	err  error
}

// Reads are of readStep bytes; what cannot be read is told apart from the rest in steps of failStep.
const (
	readStep = 512 << 10
	failStep = 64 << 10
)

// read reads from off up to the end, or at most n bytes where that is not negative.
func (o *observation) read(f io.ReaderAt, off, n int64) {
	o.size = -1
	step := int64(readStep)
	for failed := 0; n != 0; {
		want := step
		if n >= 0 {
			want = min(want, n)
		}
		buf := make([]byte, want)
		got, err := f.ReadAt(buf, off)
		o.bytes += int64(got)
		if got > 0 {
			o.pieces = append(o.pieces, piece{off: off, data: buf[:got]})
		}
		off += int64(got)
		if n > 0 {
			n -= int64(got)
		}
		switch {
		case err == io.EOF:
			o.size = off
			return
		case err == nil:
			continue
		case step > failStep:
			step = failStep
			continue
		}
		rest := step - off%step
		o.pieces = append(o.pieces, piece{off: off, want: rest, err: err})
		if failed++; failed == 1000 { // without an end in sight
			return
		}
		off += rest
		if n > 0 {
			n = max(0, n-rest)
		}
	}
}

// err is the first error of a read.
func (o *observation) err() error {
	for _, p := range o.pieces {
		if p.err != nil {
			return p.err
		}
	}
	return o.opened
}

// judge compares what was seen of a file with what it may be, and returns what is wrong, with regard to the candidate that it
// is likest. Reads that failed are wrong where all must be readable.
func judge(may []candidate, o *observation, readable bool) []string {
	var best []string
	for i, c := range may {
		wrong := c.judge(o, readable)
		if len(wrong) == 0 {
			return nil
		}
		if i == 0 || len(wrong) <= len(best) {
			best = wrong
		}
	}
	return best
}

func (c candidate) judge(o *observation, readable bool) (wrong []string) {
	switch {
	case errors.Is(o.opened, fs.ErrNotExist):
		if c.content != nil {
			return []string{"the file is missing: " + o.opened.Error()}
		}
		return nil
	case o.opened != nil:
		if readable {
			return []string{o.opened.Error()}
		}
		return nil
	case c.content == nil:
		return []string{"a file is there that was removed, or never made"}
	}
	if o.size >= 0 && o.size < c.min {
		wrong = append(wrong, fmt.Sprintf("the end, [%d,%d), is lost", o.size, c.min))
	}
	for _, p := range o.pieces {
		if p.err == nil {
			for _, r := range c.compare(p.data, p.off) {
				wrong = append(wrong, r.String())
			}
			continue
		}
		if readable {
			wrong = append(wrong, fmt.Sprintf("[%d,%d) cannot be read: %v", p.off, p.off+p.want, p.err))
		}
	}
	return wrong
}
