package rewrite

import (
	"fmt"
	"time"
)

// Stats are for people and for metrics. Bytes are those of files, one copy counted, unless it says otherwise.
type Stats struct {
	Garbage     uint64 // in sealed chunks, that nothing refers to; by the last look
	Reclaimable uint64 // of that, what compacting the chunks that are mostly garbage would give back
	Running     int    // new chunks that are being made
	Moved       uint64 // rewritten since this metaserver leads
	Copied      uint64 // bytes of shards written for that
	Done        uint64 // jobs
	Failed      uint64
	Files       int    // that are being converted to their policies
	FilesLeft   uint64 // bytes of them known to be converted yet
	HeldBack    string // why it does not go on, empty when it does
}

func (e *Engine) count(moved uint64, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stats.Moved += moved
	if err != nil {
		e.stats.Failed++
	} else {
		e.stats.Done++
	}
}

func (e *Engine) setBusy(why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.busy = why
}

func (e *Engine) setBlocked(why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.blocked = why
}

// Stats returns the present numbers.
func (e *Engine) Stats() Stats {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.Running = len(e.jobs)
	for _, f := range e.files.byInode {
		if !f.done && (f.keep || now.Sub(f.asked) < forgetAfter) {
			s.Files++
			s.FilesLeft += f.left
		}
	}
	switch work := s.Files > 0 || s.Reclaimable > e.cfg.MinGain; {
	case work && e.busy != "":
		s.HeldBack = e.busy
	case work && e.blocked != "":
		s.HeldBack = fmt.Sprintf("some data cannot be written anew: %s", e.blocked)
	}
	return s
}
