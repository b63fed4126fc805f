package repair

import (
	"fmt"
	"strings"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// rateOver is how far back the rate of copying looks.
const rateOver = 10 * time.Second

// rate is bytes a second, lately.
type rate struct {
	buckets [11]uint64 // of a second each
	second  int64      // of the newest
}

func (r *rate) roll(now time.Time) {
	for s := now.Unix(); r.second < s; {
		if s-r.second > int64(len(r.buckets)) {
			r.second = s - int64(len(r.buckets))
		}
		r.second++
		r.buckets[r.second%int64(len(r.buckets))] = 0
	}
}

func (r *rate) add(now time.Time, bytes uint64) {
	r.roll(now)
	r.buckets[r.second%int64(len(r.buckets))] += bytes
}

// perSecond counts from the second on in which something was copied first, as far back as rate looks, and leaves the present one
// out, which is not over.
func (r *rate) perSecond(now time.Time) uint64 {
	r.roll(now)
	var sum, seconds uint64
	for s := r.second - int64(rateOver/time.Second); s < r.second; s++ {
		b := r.buckets[s%int64(len(r.buckets))]
		if sum += b; sum > 0 {
			seconds++
		}
	}
	return sum / max(1, seconds)
}

// Report says how safe the data is.
func (e *Engine) Report() *pb.Redundancy {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	f := &e.found
	r := &pb.Redundancy{
		Known: e.settled, Degraded: f.degraded, Endangered: f.endangered, Unreadable: f.unreadable, Drains: f.drains,
		Moving: uint64(e.underWay()), BytesLeft: f.bytes, BytesPerSecond: e.rate.perSecond(now), HeldBack: e.heldBack,
		Misplaced: e.excess,
	}
	if bad := f.degraded + f.endangered + f.unreadable; f.chunks > bad {
		r.Full = f.chunks - bad
	}
	if r.BytesPerSecond > 0 && r.BytesLeft > 0 {
		r.EtaSeconds = (r.BytesLeft + r.BytesPerSecond - 1) / r.BytesPerSecond
	}
	if r.HeldBack == "" && e.blocked.nowhere > 0 {
		r.HeldBack = fmt.Sprintf("no healthy server with room is left that has nothing yet of %s", chunks(uint64(e.blocked.nowhere)))
	}
	r.Summary = summary(r)
	return r
}

// summary answers in a line whether the data is safe, and when it will be.
func summary(r *pb.Redundancy) string {
	if !r.Known {
		return "not known yet: the leader is new and still hears from the chunk servers"
	}
	var b strings.Builder
	lacking := r.Degraded + r.Endangered + r.Unreadable
	switch {
	case r.Unreadable > 0:
		fmt.Fprintf(&b, "DATA CANNOT BE READ: of %s too few shards are on servers that are up", chunks(r.Unreadable))
		if r.Endangered > 0 {
			fmt.Fprintf(&b, ", and %s would follow with one more loss", chunks(r.Endangered))
		}
	case r.Endangered > 0:
		fmt.Fprintf(&b, "IN DANGER: one more loss would make %s unreadable; %s", chunks(r.Endangered), lack(lacking))
	case lacking > 0:
		fmt.Fprintf(&b, "safe for now, with less redundancy than wanted: %s", lack(lacking))
	case r.Drains > 0:
		fmt.Fprintf(&b, "safe: every chunk has all its shards; %d shards have yet to leave servers that are drained", r.Drains)
	default:
		fmt.Fprintf(&b, "safe: every chunk has all its shards")
		return b.String()
	}
	switch {
	case r.HeldBack != "":
		fmt.Fprintf(&b, "; %s", r.HeldBack)
	case r.Moving > 0 || r.BytesPerSecond > 0:
		fmt.Fprintf(&b, "; under way, %s left", size(r.BytesLeft))
		if r.EtaSeconds > 0 {
			fmt.Fprintf(&b, ", about %v", time.Duration(r.EtaSeconds)*time.Second)
		}
	case r.BytesLeft > 0:
		fmt.Fprintf(&b, "; %s to be copied", size(r.BytesLeft))
	}
	return b.String()
}

// Urgent says why what can wait should: shards are missing, and the servers have enough to do to make them, or it is not known
// yet what is missing. It is empty while nothing is urgent.
func (e *Engine) Urgent() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.heldBack != "":
		return e.heldBack
	case !e.settled:
		return "the leader is new and still hears from the chunk servers"
	}
	for _, l := range e.queue.lists[:leaving] {
		if len(l) > 0 {
			return "repair makes shards anew that are missing"
		}
	}
	return ""
}

func chunks(n uint64) string {
	if n == 1 {
		return "1 chunk"
	}
	return fmt.Sprintf("%d chunks", n)
}

func lack(n uint64) string {
	if n == 1 {
		return "1 chunk lacks shards"
	}
	return fmt.Sprintf("%d chunks lack shards", n)
}

func size(n uint64) string {
	const kib = 1 << 10
	switch {
	case n >= kib*kib*kib:
		return fmt.Sprintf("%.1f GiB", float64(n)/(kib*kib*kib))
	case n >= kib*kib:
		return fmt.Sprintf("%.1f MiB", float64(n)/(kib*kib))
	}
	return fmt.Sprintf("%d KiB", (n+kib-1)/kib)
}

// Shards is how many shards a server that is dead or being drained has, and whether that is known.
func (e *Engine) Shards(id chunk.ServerID) (uint64, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.servers[id]
	if s == nil || !e.settled || !s.counted {
		return 0, false
	}
	return s.shards, true
}

// Stats are for metrics: moves that ended since this metaserver leads.
type Stats struct {
	Done, Failed, Bytes uint64
	Moving              int
}

// Stats returns the present numbers.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	return Stats{e.copied.done, e.copied.failed, e.copied.bytes, e.underWay()}
}
