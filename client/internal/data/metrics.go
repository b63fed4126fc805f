package data

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	read      prometheus.Counter
	written   prometheus.Counter
	fetched   prometheus.Counter
	hits      prometheus.Counter
	misses    prometheus.Counter
	readahead prometheus.Counter
	retries   prometheus.Counter
	hedged    prometheus.Counter
	rebuilt   prometheus.Counter
	corrupt   prometheus.Counter
	switches  prometheus.Counter
	late      prometheus.Counter
	resent    prometheus.Counter
	relocated prometheus.Counter
	commits   prometheus.Counter
	inline    prometheus.Counter
}

// newMetrics registers the counters, or shares those of another Store of this process that is registered there.
func newMetrics(s *Store, r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "client", Name: name, Help: help})
		if r == nil {
			return c
		}
		var there prometheus.AlreadyRegisteredError
		if err := r.Register(c); errors.As(err, &there) {
			if shared, ok := there.ExistingCollector.(prometheus.Counter); ok {
				return shared
			}
		}
		return c
	}
	gauge := func(name, help string, value func() float64) {
		if r == nil {
			return
		}
		g := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "shoal", Subsystem: "client", Name: name, Help: help}, value)
		if err := r.Register(g); err != nil {
			s.log.Debug("a metric is registered already; it shows another file system of this process", "metric", name, "error", err)
		}
	}
	gauge("write_memory_bytes", "Memory that holds written data which is not known to be on the disks of enough chunk servers.", func() float64 {
		return float64(s.buffers.budget.used())
	})
	gauge("cache_bytes", "Chunk data kept in memory for reading.", func() float64 { return float64(s.reader.cache.used()) })
	gauge("open_chunks", "Chunks that this client writes or holds in reserve.", func() float64 { return float64(s.writer.stats().chunks) })
	gauge("frames_in_flight", "Frames sent or waiting that too few chunk servers have acknowledged.", func() float64 { return float64(s.writer.stats().frames) })
	return &metrics{
		read:      counter("read_bytes_total", "File bytes read by programs."),
		written:   counter("written_bytes_total", "Bytes of written data that chunk servers have acknowledged, copies not counted."),
		fetched:   counter("fetched_bytes_total", "Bytes read from chunk servers."),
		hits:      counter("cache_hits_total", "Cache blocks found in memory."),
		misses:    counter("cache_misses_total", "Cache blocks that had to be fetched."),
		readahead: counter("readahead_bytes_total", "File bytes asked for ahead of a sequential reader."),
		retries:   counter("read_retries_total", "Replicas asked because another one failed."),
		hedged:    counter("read_hedges_total", "Replicas asked because another one was slow."),
		rebuilt:   counter("read_rebuilt_total", "Parts of coded chunks that were computed from other shards for a read."),
		corrupt:   counter("read_corrupt_total", "Replicas that were missing or did not match their checksums."),
		switches:  counter("write_target_failures_total", "Targets given up while a chunk was written."),
		late:      counter("write_target_lags_total", "Targets not waited for any more, because enough others had what was waited for."),
		resent:    counter("write_resent_frames_total", "Frames sent again to another chunk."),
		relocated: counter("write_relocated_frames_total", "Frames that chunk servers lost after they were committed, and that are in another chunk now."),
		commits:   counter("commits_total", "Metadata commits of file data."),
		inline:    counter("inline_commits_total", "Commits that kept the data in the inode."),
	}
}

type writerStats struct{ chunks, frames int }

func (w *writer) stats() writerStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	st := writerStats{chunks: len(w.chunks)}
	for _, p := range w.pools {
		st.frames += len(p.waiting)
	}
	for c := range w.chunks {
		st.frames += len(c.queue)
	}
	return st
}
