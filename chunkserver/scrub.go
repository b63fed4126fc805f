package chunkserver

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// defaultScrubRate is a compromise: 12 TB take 17 days, and a disk hardly notices.
const defaultScrubRate = 8 << 20

// scrubs is the scrubbing of all disks: each has a reader of its own, so that one that hangs keeps no other waiting.
type scrubs struct {
	slow, fast *throttle // of the scrub that never ends, and of what somebody waits for
	disks      []*scrubber
}

func (s *Server) newScrubs() *scrubs {
	all := &scrubs{slow: newThrottle(), fast: newThrottle()}
	rate := s.cfg.ScrubRate
	if rate == 0 {
		rate = defaultScrubRate
	}
	if rate > 0 {
		all.slow.set(uint64(rate))
	}
	all.fast.set(uint64(max(0, s.cfg.ScrubNowRate)))
	for _, d := range s.store.disks {
		all.disks = append(all.disks, &scrubber{
			s: s, all: all, disk: d, log: s.log.With("disk", d.Path()), always: rate > 0, rest: s.cfg.scrubRest,
			wake: make(chan struct{}, 1), checking: map[chunk.ID]bool{},
		})
	}
	return all
}

// of returns the scrubber of a disk.
func (all *scrubs) of(d *disk.Disk) *scrubber {
	for _, w := range all.disks {
		if w.disk == d {
			return w
		}
	}
	return nil
}

// request starts a full pass on all disks, unless that one or a newer one was asked for already.
func (all *scrubs) request(pass uint64) {
	for _, w := range all.disks {
		w.request(pass)
	}
}

// progress is how far the newest pass is that was asked for, or else the scrub that never ends; nil if there is none of
// either.
func (all *scrubs) progress() *pb.ScrubProgress {
	sum := &pb.ScrubProgress{}
	finished, always := 0, false
	for _, w := range all.disks {
		p := w.progress()
		always = always || w.always
		if p.pass > sum.Pass { // those before were not asked yet
			sum, finished = &pb.ScrubProgress{Pass: p.pass}, 0
		}
		if p.pass < sum.Pass {
			continue
		}
		sum.Done += p.done
		sum.Total += p.total
		sum.Found += p.found
		if p.finished {
			finished++
		}
	}
	if sum.Pass == 0 && !always {
		return nil
	}
	sum.Finished = sum.Pass > 0 && finished == len(all.disks)
	return sum
}

// runScrubs scrubs until ctx ends.
func (s *Server) runScrubs(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range s.scrubs.disks {
		g.Go(func() error { return w.run(ctx) })
	}
	return g.Wait()
}

// check has chunks checked that somebody complained about. What is missing or known to be damaged is reported at once.
func (s *Server) check(ids []uint64) {
	for _, raw := range ids {
		id := chunk.ID(raw)
		if s.deletions.has(id) {
			continue
		}
		d := s.store.find(id)
		if d == nil {
			s.log.Warn("a chunk that should be here is missing", "chunk", id)
			s.reportCorrupt(id)
			continue
		}
		s.scrubs.of(d).checkSoon(id)
	}
}

// checkNow is what a scrubber does with such a chunk.
func (s *Server) checkNow(ctx context.Context, d *disk.Disk, id chunk.ID) {
	if h, ok := d.Held(id); ok && h.Bad {
		s.reportCorrupt(id) // again: it was asked for
		return
	}
	switch err := d.Verify(ctx, id, s.scrubs.fast.wait); {
	case err == nil:
		s.log.Info("a chunk that a client complained about is whole", "chunk", id)
	case errors.Is(err, disk.ErrCorrupt): // which foundBad reports
		s.metrics.scrubBad.Inc()
	case ctx.Err() == nil:
		s.log.Info("a chunk that a client complained about could not be checked", "chunk", id, "err", err)
	}
}
