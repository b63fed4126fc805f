package workload

import (
	"fmt"
	"strings"
	"time"
)

// Stats counts what a client did.
type Stats struct {
	Operations int64 // that returned and did what they should
	Read       int64 // bytes
	Written    int64 // bytes; they count as acknowledged once they are published
	Synced     int64 // fsyncs
	Errors     []string
	Found      []string // what was wrong in what was read
	Stall      time.Duration
	Stalled    string // the operation that took longest
}

// add counts an entry of which begun is the beginning.
func (s *Stats) add(e, begun *Entry) {
	switch {
	case !e.Done:
		return
	case e.Op == opFound:
		s.Found = append(s.Found, fmt.Sprintf("%s: %s", e.Path, e.Err))
		return
	case e.Failed():
		s.Errors = append(s.Errors, fmt.Sprintf("%v after %v: %v", e, e.At-begun.At, e.Err))
	default:
		s.Operations++
		switch e.Op {
		case opRead:
			s.Read += e.Len
		case opWrite, opAppend:
			s.Written += e.Len
		case opSync:
			s.Synced++
		}
	}
	if took := e.At - begun.At; took > s.Stall {
		s.Stall, s.Stalled = took, e.Op
	}
}

// String tells which operation an entry is of.
func (e *Entry) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "#%d %s", e.Seq, e.Op)
	if e.Path != "" {
		fmt.Fprintf(&b, " %s", e.Path)
	}
	if e.To != "" {
		fmt.Fprintf(&b, " to %s", e.To)
	}
	if e.Len > 0 {
		fmt.Fprintf(&b, " [%d,%d)", e.Off, e.Off+e.Len)
	}
	return b.String()
}

// Pending is the operation that has begun and not returned, "" if there is none, and since when.
func (h *History) Pending() (string, time.Duration) {
	if h.begun == nil {
		return "", 0
	}
	return h.begun.String(), Now() - h.begun.At
}
