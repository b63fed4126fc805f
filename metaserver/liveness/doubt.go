package liveness

import (
	"fmt"
	"slices"
	"time"
)

const (
	// A server that comes back from a silence for the flapLimit-th time within flapWindow is on probation for flapProbation.
	flapWindow    = 10 * time.Minute
	flapLimit     = 3
	flapProbation = time.Minute

	// A server is slow when the operations of one of its disks take slowTimes as long as those of the median server, and no less
	// than slowLeast, for slowAfter. It is spared for slowFirst, twice as long each time that it is found slow again
	// within slowWindow, at most slowMost: without work nobody sees whether it has become better.
	slowTimes  = 10
	slowLeast  = 100 * time.Millisecond
	slowAfter  = 2 * time.Second
	slowFirst  = 15 * time.Second
	slowMost   = 5 * time.Minute
	slowWindow = 10 * time.Minute
	// slowServers is how many servers must have been busy for one to be compared with the others.
	slowServers = 3
)

// returned notes that a server came back from a silence.
func (s *server) returned(now time.Time) {
	s.returns = slices.DeleteFunc(s.returns, func(t time.Time) bool { return now.Sub(t) > flapWindow })
	if len(s.returns) < 100 {
		s.returns = append(s.returns, now)
	}
}

// flaps tells whether a server came back too often to be trusted at once.
func (s *server) flaps(now time.Time) bool {
	n := len(s.returns)
	return n >= flapLimit && now.Sub(s.returns[n-1]) < flapProbation && now.Sub(s.returns[n-flapLimit]) < flapWindow
}

// slowness is what is known of a server's speed.
type slowness struct {
	since  time.Time // it has been slow without a break since then; zero: it is not
	until  time.Time // it is spared
	spared time.Duration
	reason string
}

func (s *slowness) is(now time.Time) bool { return now.Before(s.until) }

// judge takes how long the server's operations take, and how long those of the median server do.
func (s *slowness) judge(now time.Time, own, median time.Duration, what string) {
	if own < slowLeast || own < slowTimes*median {
		s.since = time.Time{}
		return
	}
	switch {
	case s.since.IsZero():
		s.since = now
	case now.Sub(s.since) >= slowAfter && !s.is(now):
		if now.Sub(s.until) > slowWindow {
			s.spared = 0
		}
		s.spared = min(max(2*s.spared, slowFirst), slowMost)
		s.until = now.Add(s.spared)
		s.reason = fmt.Sprintf("%s takes %v, on the median server %v", what, own.Round(time.Millisecond), median.Round(100*time.Microsecond))
		s.since = time.Time{}
	}
}

// speed returns how long a write and a read take on the slowest disk of a server that works, 0 where none was asked for.
func (s *server) speed() (write, read time.Duration) {
	for _, d := range s.disks {
		if d.Error == "" {
			write, read = max(write, clipNs(d.WriteNs)), max(read, clipNs(d.ReadNs))
		}
	}
	return write, read
}

func clipNs(n uint64) time.Duration { return time.Duration(min(n, uint64(time.Hour))) }

// judgeSpeed compares the servers with each other.
func (t *Tracker) judgeSpeed(now time.Time) {
	var writes, reads []time.Duration
	for _, s := range t.servers {
		if now.Sub(s.seen) >= t.cfg.SuspectAfter {
			continue
		}
		write, read := s.speed()
		if write > 0 {
			writes = append(writes, write)
		}
		if read > 0 {
			reads = append(reads, read)
		}
	}
	for _, s := range t.servers {
		write, read := s.speed()
		switch {
		case len(writes) >= slowServers && write >= slowTimes*median(writes):
			s.slow.judge(now, write, median(writes), "a write to its disk")
		case len(reads) >= slowServers && read >= slowTimes*median(reads):
			s.slow.judge(now, read, median(reads), "a read of its disk")
		default:
			s.slow.judge(now, 0, 0, "")
		}
	}
}

// median returns the lower median: with half of the servers slow, none is taken for it.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[(len(d)-1)/2]
}
