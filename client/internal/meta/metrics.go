package meta

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count what goes to the metaserver and what need not.
type metrics struct {
	rpcs     *prometheus.CounterVec // by method
	hits     prometheus.Counter
	misses   prometheus.Counter
	revoked  prometheus.Counter
	evicted  prometheus.Counter
	leaves   prometheus.Counter
	sessions prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "shoal_client_" + name, Help: help})
	}
	m := &metrics{
		rpcs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shoal_client_meta_calls_total",
			Help: "Calls sent to metaservers, retries included."}, []string{"method"}),
		hits:     counter("meta_cache_hits_total", "Reads of metadata that the cache answered."),
		misses:   counter("meta_cache_misses_total", "Reads of metadata that a metaserver had to answer."),
		revoked:  counter("meta_revoked_total", "Inodes dropped from the cache because another client changes them."),
		evicted:  counter("meta_evicted_total", "Inodes dropped from the cache for want of room."),
		leaves:   counter("meta_leader_changes_total", "Metaservers given up because they did not answer or did not lead."),
		sessions: counter("sessions_total", "Sessions opened; more than one means that one was lost."),
	}
	if r == nil {
		return m, nil
	}
	return m, errors.Join(register(r, &m.rpcs), register(r, &m.hits), register(r, &m.misses), register(r, &m.revoked),
		register(r, &m.evicted), register(r, &m.leaves), register(r, &m.sessions))
}

// register registers a collector, or takes the one that an earlier client of this process registered.
func register[C prometheus.Collector](r prometheus.Registerer, c *C) error {
	err := r.Register(*c)
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if have, ok := already.ExistingCollector.(C); ok {
			*c = have
			return nil
		}
	}
	return err
}
