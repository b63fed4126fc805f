package consensus

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	proposals      *prometheus.CounterVec // by outcome
	seconds        prometheus.Histogram
	reads          prometheus.Counter
	confirmations  prometheus.Counter
	copiesSent     prometheus.Counter
	copiesReceived prometheus.Counter

	stateChecks      prometheus.Counter
	stateDifferences prometheus.Counter

	registerer prometheus.Registerer
	registered []prometheus.Collector
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "consensus", Name: name, Help: help})
	}
	return &metrics{
		proposals: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "consensus", Name: "proposals_total",
			Help: "Commands proposed to the log, by outcome: applied, refused (nothing was done) or unknown."}, []string{"outcome"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "shoal", Subsystem: "consensus", Name: "proposal_seconds",
			Help: "Time from the proposal of a command until it was durable and applied.", Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18)}),
		reads:          counter("reads_total", "Reads made linearizable."),
		confirmations:  counter("read_confirmations_total", "Rounds in which the followers confirmed the leader for reads."),
		copiesSent:     counter("database_copies_sent_total", "Copies of the database made for followers that were too far behind."),
		copiesReceived: counter("database_copies_received_total", "Copies of the database received from a leader."),

		stateChecks:      counter("state_checks_total", "Comparisons of the states of all metaservers that this one made as the leader."),
		stateDifferences: counter("state_differences_total", "Of these, those that found a difference."),
	}
}

// register makes the figures visible; r may be nil.
func (m *metrics) register(r prometheus.Registerer, n *Node) error {
	if r == nil {
		return nil
	}
	m.registerer = r
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "shoal", Subsystem: "consensus", Name: name, Help: help}, value)
	}
	for _, c := range []prometheus.Collector{
		m.proposals, m.seconds, m.reads, m.confirmations, m.copiesSent, m.copiesReceived, m.stateChecks, m.stateDifferences,
		gauge("leader", "1 while this metaserver leads.", func() float64 {
			if n.IsLeader() {
				return 1
			}
			return 0
		}),
		gauge("term", "The term of the log.", func() float64 { return float64(n.Term()) }),
		gauge("last_index", "The newest entry of the log.", func() float64 { return float64(n.LastIndex()) }),
		gauge("commit_index", "The newest entry known to be on a majority.", func() float64 { return float64(n.raft.CommitIndex()) }),
		gauge("applied_index", "The newest entry applied to the database.", func() float64 { return float64(n.AppliedIndex()) }),
		gauge("durable_index", "The newest entry whose effects are in the database's file.", func() float64 { return float64(n.cfg.DB.Durable()) }),
	} {
		if err := r.Register(c); err != nil {
			m.unregister()
			return fmt.Errorf("consensus: metrics: %w", err)
		}
		m.registered = append(m.registered, c)
	}
	return nil
}

func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.registerer.Unregister(c)
	}
	m.registered = nil
}
