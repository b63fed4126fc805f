package rewrite

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
)

const (
	restMost     = 2 * time.Minute  // between two looks at all chunks when there is nothing to do
	restFailed   = 30 * time.Second // when not all of it could be done
	restLook     = 20               // times as long as the last look took, no other is made
	restSearch   = 4                // likewise the search through all files
	searchEvery  = 10 * time.Minute
	worthShare   = 10       // garbage of one in so many bytes stored is worth a search
	worthLeast   = 1 << 20  // bytes of garbage that are not
	searchRate   = 32 << 20 // bytes of garbage that a second of searching has to be worth
	tinyGarbage  = 64 << 10 // bytes of garbage in a chunk that are ignored, unless
	tinyMany     = 4096     // so many chunks have some
	overdueAfter = 2 * time.Minute
)

// look is what is known of the garbage in chunks, and when to look again.
type look struct {
	at      time.Time // the last look at all chunks
	clock   int64     // of the state then
	took    time.Duration
	rest    time.Duration
	search  time.Time // the last one through all files
	searchT time.Duration
	since   time.Time // there is garbage that was not thought worth a search
}

// garbage is what a look at all chunks showed.
type garbage struct {
	total  uint64 // bytes of sealed chunks
	dead   uint64 // of these, bytes that nothing refers to
	gain   uint64 // bytes that compacting the chosen ones gives back
	copy   uint64 // bytes to be copied for that
	chosen []candidate
	tiny   []candidate
}

// candidate is a chunk worth compacting.
type candidate struct {
	id   chunk.ID
	live uint64
	gain uint64
}

// due tells whether it is time to look at all chunks. Without commands since the last time nothing can have changed.
func (l *look) due(e *Engine, now time.Time) bool {
	if now.Sub(l.at) < max(l.rest, e.cfg.Rest, restLook*l.took) {
		return false
	}
	var clock int64
	if err := e.cluster.View(func(r kv.Reader) error { clock = namespace.Totals(r).Clock; return nil }); err != nil {
		return false
	}
	return clock != l.clock || !l.since.IsZero()
}

// overdue tells whether a look has waited long enough for files that are being converted.
func (l *look) overdue(e *Engine, now time.Time) bool {
	return now.Sub(l.at) > max(overdueAfter, l.rest, e.cfg.Rest) && l.due(e, now)
}

// compact finds out how much garbage there is, and gives space back if that is worth it.
func (e *Engine) compact(ctx context.Context, now time.Time) error {
	if err := e.sweep(); err != nil {
		return err
	}
	l := &e.look
	g, err := e.survey(ctx)
	if err != nil {
		return err
	}
	l.at, l.took = time.Now(), time.Since(now)
	e.mu.Lock()
	e.stats.Garbage, e.stats.Reclaimable = g.dead, g.gain
	e.mu.Unlock()
	if !e.worth(&g, now) {
		l.rest = min(max(2*l.rest, e.cfg.Rest), restMost)
		if g.gain == 0 {
			l.since = time.Time{}
		} else if l.since.IsZero() {
			l.since = now
		}
		return nil
	}
	l.rest, l.since = 0, time.Time{}
	failed, err := e.search(ctx, &g, now)
	if err != nil || failed > 0 {
		l.rest, l.since = restFailed, now
	}
	return err
}

// worth tells whether all files should be searched now: what is gained has to be worth reading all extents. Now and then they
// are for files that are in too many pieces.
func (e *Engine) worth(g *garbage, now time.Time) bool {
	l := &e.look
	since := now.Sub(l.search)
	if since < restSearch*l.searchT {
		return false
	}
	least := max(e.cfg.MinGain, uint64(searchRate*l.searchT.Seconds()))
	switch {
	case g.gain >= least, g.gain >= worthLeast && g.gain >= g.total/worthShare:
		return true
	case g.gain > 0 && !l.since.IsZero() && now.Sub(l.since) > e.cfg.Patience:
		return true
	}
	return since > searchEvery && g.total > 0
}

// survey looks at all chunks.
func (e *Engine) survey(ctx context.Context) (garbage, error) {
	var g garbage
	readable := newReadable(e.cluster.Servers())
	for from, more := chunk.ID(0), true; more; {
		if err := ctx.Err(); err != nil {
			return g, err
		}
		more = false
		n := 0
		if err := e.cluster.View(func(r kv.Reader) error {
			if from == 0 {
				e.look.clock = namespace.Totals(r).Clock
			}
			namespace.Chunks(r, from, func(c *namespace.ChunkRecord) bool {
				if n++; n > chunksAView {
					from, more = c.ID, true
					return false
				}
				g.add(c, e.cfg.LivePercent, readable)
				return true
			})
			return nil
		}); err != nil {
			return g, err
		}
	}
	g.choose()
	return g, nil
}

// add counts a chunk. One that cannot be read now is not chosen: with what it is to be joined with it would be left as it is.
func (g *garbage) add(c *namespace.ChunkRecord, livePercent int, readable *readable) {
	if c.Keeper() != 0 || c.Length == 0 || c.Live > c.Length { // one that is kept would give nothing back yet
		return
	}
	dead := c.Length - c.Live
	g.total += c.Length
	g.dead += dead
	if c.Live*100 >= c.Length*uint64(livePercent) || !readable.can(c) {
		return
	}
	list := &g.chosen
	if dead < tinyGarbage {
		list = &g.tiny
	}
	if len(*list) < 2*maxChosen { // the next look finds those left out
		*list = append(*list, candidate{c.ID, c.Live, dead})
	}
}

// choose takes those that give most back for what has to be copied, as many as go in one pass.
func (g *garbage) choose() {
	if len(g.tiny) >= tinyMany {
		g.chosen = append(g.chosen, g.tiny...)
	}
	slices.SortFunc(g.chosen, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(float64(b.gain)/float64(b.live+1), float64(a.gain)/float64(a.live+1)), cmp.Compare(a.id, b.id))
	})
	for i, c := range g.chosen {
		if i == maxChosen || g.copy > passBytes {
			g.chosen = g.chosen[:i]
			break
		}
		g.gain += c.gain
		g.copy += c.live
	}
}
