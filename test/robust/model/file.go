package model

import (
	"fmt"
	"slices"

	"github.com/shoalfs/shoalfs/test/robust/history"
)

// NewMode is that of the files that traffic makes.
const NewMode = 0o644

// attributes are those of a file, as the model sees them.
type attributes struct {
	mode uint32 // permission bits
	size int64
}

func (a attributes) step(in *history.Input, out *history.Output) (bool, attributes) {
	if out != nil && out.Errno != 0 {
		return false, a // there is no reason for one
	}
	switch in.Op {
	case history.Chmod:
		a.mode = in.Mode
	case history.Truncate:
		a.size = in.Size
	default:
		return a == attributes{out.Mode, out.Size}, a
	}
	return true, a
}

func (a attributes) String() string { return fmt.Sprintf("%#o, %d bytes", a.mode, a.size) }

// register is a file of which everything is written at once: the value written last, 0 before the first.
type register uint64

func (r register) step(in *history.Input, out *history.Output) (bool, register) {
	switch {
	case out != nil && (out.Errno != 0 || out.Torn != ""):
		return false, r
	case in.Op == history.Write:
		return true, register(in.Value)
	case r == 0:
		return len(out.List) == 0, r
	}
	return len(out.List) == 1 && out.List[0] == uint64(r), r
}

func (r register) String() string { return fmt.Sprint(uint64(r)) }

// log is a file that is only appended to: how many records it has. Which ones follows from the longest list that anybody read: as
// nothing is ever taken away, what the file held at any time is its beginning. That leaves the checker no choices to try.
type log int

// logs is the model of a file whose longest list that was read is given.
type logs struct{ longest []uint64 }

func newLogs(ops []history.Operation) logs {
	var l logs
	for _, o := range ops {
		if o.Output != nil && len(o.Output.List) > len(l.longest) {
			l.longest = o.Output.List
		}
	}
	return l
}

func (l logs) step(n log, in *history.Input, out *history.Output) (bool, log) {
	switch {
	case out != nil && (out.Errno != 0 || out.Torn != ""):
		return false, n
	case in.Op == history.Append:
		// What nobody read came after everything that somebody read.
		return int(n) >= len(l.longest) || l.longest[n] == in.Value, n + 1
	}
	return len(out.List) == int(n) && slices.Equal(out.List, l.longest[:n]), n
}
