package workload

import (
	"context"
	"maps"
	"os"
	"slices"
)

// read is the role of a reader: it reads files of the writers, at random, and compares them with what their journals say was
// acknowledged before and begun until then.
func (p part) read(ctx context.Context) error {
	var writers []*History
	for _, name := range p.Writers {
		h, err := OpenHistory(name)
		if err != nil {
			return err
		}
		writers = append(writers, h)
	}
	for ctx.Err() == nil {
		h := writers[p.rng.IntN(len(writers))]
		if err := h.Refresh(); err != nil {
			return err
		}
		names := slices.Sorted(maps.Keys(h.paths))
		if len(names) == 0 {
			p.pace.spend(ctx, p.Rate/100+1)
			continue
		}
		name := names[p.rng.IntN(len(names))]
		b := h.before(name)
		seen := p.look(name, p.Large)
		if err := h.Refresh(); err != nil {
			return err
		}
		for _, problem := range judge(h.allowed(b), seen, false) {
			p.j.Found(name, "by a reader: %s", problem)
		}
		p.pace.spend(ctx, max(seen.bytes, 4<<10))
	}
	return nil
}

// look reads a file, half of the time all of it.
func (p *part) look(name string, large int64) *observation {
	seen := &observation{size: -1}
	var f File
	_ = p.j.Do(Entry{Op: opOpen, Path: name}, func(e *Entry) error {
		f, seen.opened = p.fs.Open(name, os.O_RDONLY)
		if os.IsNotExist(seen.opened) {
			e.Want = errnoOf(seen.opened) // whether it may be so is judged later
		}
		return seen.opened
	}) // the error is in the journal
	if seen.opened != nil {
		return seen
	}
	off, n := int64(0), int64(-1)
	if p.rng.IntN(2) == 0 {
		off, n = p.rng.Int64N(large), 1+p.rng.Int64N(256<<10)
	}
	_ = p.j.Do(Entry{Op: opRead, Path: name, Off: off}, func(e *Entry) error {
		seen.read(f, off, n)
		if off > 0 {
			seen.size = -1 // what is beyond the end ends where it begins
		}
		e.Len = seen.bytes
		return seen.err()
	})
	_ = p.j.Do(Entry{Op: opClose, Path: name}, func(*Entry) error { return f.Close() })
	return seen
}
