package chunkserver

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"
)

// metrics counts what the server does.
type metrics struct {
	reg prometheus.Registerer
	all []prometheus.Collector

	bytesRead, bytesWritten atomic.Uint64

	ops        *prometheus.CounterVec   // op, result
	latency    *prometheus.HistogramVec // op
	mismatches *prometheus.CounterVec   // where
	syncs      *prometheus.CounterVec   // result
	deletions  prometheus.Counter

	copies                          *prometheus.CounterVec // result
	copiedBytes, copySourceFailures prometheus.Counter
	copyWaits                       prometheus.Counter
	scrubBytes, scrubBad            prometheus.Counter

	appendSeconds, readSeconds, syncSeconds prometheus.Observer
}

const namespace = "shoal_chunkserver"

// newMetrics makes them; register shows them, once the server is whole.
func newMetrics(s *Server, reg prometheus.Registerer) *metrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	}
	m := &metrics{
		reg: reg,
		ops: counter("calls_total", "Reads and append streams that ended, by their gRPC code.", "op", "code"),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "seconds", Help: "Time to write a frame, to answer a read, to sync a chunk file.",
			Buckets: prometheus.ExponentialBuckets(20e-6, 4, 10),
		}, []string{"op"}),
		mismatches: counter("checksum_failures_total", "Wrong checksums of frames on arrival and of blocks on disk.", "where"),
		syncs:      counter("syncs_total", "Syncs of chunk files.", "result"),
		deletions:  prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: "deletions_total", Help: "Chunks deleted."}),
	}
	plain := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
	}
	m.copies = counter("copies_total", "Copies of chunks that were ordered here, by what came of them.", "result")
	m.copiedBytes = plain("copied_bytes_total", "Payload bytes written for copies.")
	m.copySourceFailures = plain("copy_source_failures_total", "Reads of copies that failed at another server.")
	m.copyWaits = plain("copy_wait_seconds_total", "Time that frames of copies waited because clients were served.")
	m.scrubBytes = plain("scrubbed_bytes_total", "Bytes of chunk files that were read and checked by scrubbing.")
	m.scrubBad = plain("scrub_bad_total", "Chunks that scrubbing, or a check that was asked for, found damaged or without their file.")
	m.appendSeconds, m.readSeconds, m.syncSeconds = m.latency.WithLabelValues("append"), m.latency.WithLabelValues("read"), m.latency.WithLabelValues("sync")
	bytes := func(name, help string, v *atomic.Uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, func() float64 { return float64(v.Load()) })
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, f)
	}
	m.all = []prometheus.Collector{
		m.ops, m.latency, m.mismatches, m.syncs, m.deletions, m.copies, m.copiedBytes, m.copySourceFailures, m.copyWaits, m.scrubBytes, m.scrubBad, diskCollector{s},
		bytes("read_bytes_total", "Payload bytes sent to clients.", &m.bytesRead),
		bytes("written_bytes_total", "Payload bytes appended.", &m.bytesWritten),
		gauge("copies_running", "Copies being made.", func() float64 { _, n := s.copies.count(); return float64(n) }),
		gauge("copies_queued", "Copies that wait to be made.", func() float64 { n, _ := s.copies.count(); return float64(n) }),
		gauge("streams", "Append streams open.", func() float64 { return float64(s.streams.Load()) }),
		gauge("registered", "1 while connected to the leading metaserver.", func() float64 {
			if s.connected.Load() {
				return 1
			}
			return 0
		}),
	}
	return m
}

func (m *metrics) register() error {
	for i, c := range m.all {
		if err := m.reg.Register(c); err != nil {
			m.all = m.all[:i]
			m.unregister()
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

func (m *metrics) unregister() {
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}

func (m *metrics) count(op string, err error) {
	m.ops.WithLabelValues(op, status.Code(toStatus(err)).String()).Inc()
}

func (m *metrics) appended(n int, d time.Duration) {
	m.bytesWritten.Add(uint64(n))
	m.appendSeconds.Observe(d.Seconds())
}

func (m *metrics) wasRead(n int, d time.Duration) {
	m.bytesRead.Add(uint64(n))
	m.readSeconds.Observe(d.Seconds())
}

// copied counts a copy that ended; n is 0 where it was here already.
func (m *metrics) copied(n uint64, err error) {
	result := "made"
	switch {
	case errors.Is(err, errDeleted):
		result = "deleted"
	case err != nil:
		result = "failed"
	case n == 0:
		result = "present"
	}
	m.copies.WithLabelValues(result).Inc()
}

func (m *metrics) synced(d time.Duration, err error) {
	m.syncSeconds.Observe(d.Seconds())
	if err != nil {
		m.syncs.WithLabelValues("failed").Inc()
		return
	}
	m.syncs.WithLabelValues("ok").Inc()
}

// diskCollector shows the state of every data directory when it is asked.
type diskCollector struct{ s *Server }

func diskDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(namespace+"_disk_"+name, help, []string{"path"}, nil)
}

var (
	descCapacity = diskDesc("capacity_bytes", "Size of the file system.")
	descFree     = diskDesc("free_bytes", "Bytes that appends may still take, the reserve taken off.")
	descChunks   = diskDesc("chunks", "Chunks held.")
	descBad      = diskDesc("bad_chunks", "Chunks known to be damaged.")
	descForeign  = diskDesc("foreign_files", "Files among the chunks that are none.")
	descOpen     = diskDesc("open_files", "Chunk files kept open for reading.")
	descFailed   = diskDesc("failed", "1 for a data directory that is out of use.")
	descWriting  = diskDesc("write_seconds", "Mean time of appends and syncs of the last seconds, or how long one hangs already.")
	descReading  = diskDesc("read_seconds", "Likewise of reads.")
	descScrubbed = diskDesc("last_scrub_timestamp_seconds", "When all chunks were last read and checked, seconds since 1970; 0: not since the start.")

	diskDescs = []*prometheus.Desc{
		descCapacity, descFree, descChunks, descBad, descForeign, descOpen, descFailed, descWriting, descReading, descScrubbed,
	}
)

func (c diskCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range diskDescs {
		ch <- d
	}
}

func (c diskCollector) Collect(ch chan<- prometheus.Metric) {
	for _, sl := range c.s.store.slots {
		put := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, text(sl.path))
		}
		if sl.disk == nil {
			put(descFailed, 1)
			continue
		}
		st := sl.disk.Stats()
		failed := 0.0
		if st.Err != nil {
			failed = 1
		}
		put(descCapacity, float64(st.Capacity))
		put(descFree, float64(st.Free))
		put(descChunks, float64(st.Chunks))
		put(descBad, float64(st.Bad))
		put(descForeign, float64(st.Foreign))
		put(descOpen, float64(st.Open))
		put(descFailed, failed)
		put(descWriting, st.WriteTime.Seconds())
		put(descReading, st.ReadTime.Seconds())
		scrubbed := 0.0
		if at := c.s.scrubs.of(sl.disk).last(); !at.IsZero() {
			scrubbed = float64(at.UnixNano()) / 1e9
		}
		put(descScrubbed, scrubbed)
	}
}
