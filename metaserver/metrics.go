package metaserver

import (
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// latencyBuckets are in seconds.
var latencyBuckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

type metrics struct {
	s         *Server
	mutations *prometheus.CounterVec
	reads     *prometheus.CounterVec
	mutTime   *prometheus.HistogramVec
	readTime  *prometheus.HistogramVec
	deleted   prometheus.Counter
	all       []prometheus.Collector
}

// registerer labels this metaserver's metrics, because several may run in one process.
func (s *Server) registerer() prometheus.Registerer {
	if s.cfg.Registerer == nil {
		return nil
	}
	return prometheus.WrapRegistererWith(prometheus.Labels{"metaserver": strconv.FormatUint(s.cfg.ID, 10)}, s.cfg.Registerer)
}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		s: s,
		mutations: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shoal_meta_mutations_total",
			Help: "Mutations answered, by operation and outcome."}, []string{"op", "errno"}),
		reads: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shoal_meta_reads_total",
			Help: "Reads answered, by method and outcome."}, []string{"method", "errno"}),
		mutTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "shoal_meta_mutation_seconds",
			Help: "Time to answer a mutation.", Buckets: latencyBuckets}, []string{"op"}),
		readTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "shoal_meta_read_seconds",
			Help: "Time to answer a read.", Buckets: latencyBuckets}, []string{"method"}),
		deleted: prometheus.NewCounter(prometheus.CounterOpts{Name: "shoal_meta_copies_deleted_total",
			Help: "Chunk copies that servers reported deleted."}),
	}
	m.all = []prometheus.Collector{m.mutations, m.reads, m.mutTime, m.readTime, m.deleted, stateCollector{s}}
	if r := s.registerer(); r != nil {
		for _, c := range m.all {
			if err := r.Register(c); err != nil {
				s.log.Warn("a metric is not available", "error", err)
			}
		}
	}
	return m
}

func (m *metrics) close() {
	if r := m.s.registerer(); r != nil {
		for _, c := range m.all {
			r.Unregister(c)
		}
	}
}

func (m *metrics) mutation(op *pb.Op, res *pb.Result, err error, d time.Duration) {
	name := opName(op)
	m.mutations.WithLabelValues(name, outcome(res.GetErrno(), err)).Inc()
	m.mutTime.WithLabelValues(name).Observe(d.Seconds())
}

func (m *metrics) read(method string, err error, d time.Duration) {
	m.reads.WithLabelValues(method, outcome(0, err)).Inc()
	m.readTime.WithLabelValues(method).Observe(d.Seconds())
}

// outcome is a label: "ok", an errno's name, or why there was no answer.
func outcome(errno uint32, err error) string {
	switch kind := rpc.Kind(rpc.ToStatus(err)); {
	case err != nil && kind == pb.ErrorDetail_ERRNO:
		errno = rpc.Detail(rpc.ToStatus(err)).GetErrno()
	case err != nil && kind != pb.ErrorDetail_KIND_UNKNOWN:
		return strings.ToLower(kind.String())
	case err != nil:
		return "unanswered"
	case errno == 0:
		return "ok"
	}
	if name := unix.ErrnoName(syscall.Errno(errno)); name != "" {
		return name
	}
	return "other"
}

func opName(op *pb.Op) string {
	switch op.GetOp().(type) {
	case *pb.Op_MakeNode:
		return "make_node"
	case *pb.Op_Link:
		return "link"
	case *pb.Op_Unlink:
		return "unlink"
	case *pb.Op_Rename:
		return "rename"
	case *pb.Op_SetAttr:
		return "set_attr"
	case *pb.Op_SetXattr:
		return "set_xattr"
	case *pb.Op_RemoveXattr:
		return "remove_xattr"
	case *pb.Op_Commit:
		return "commit"
	case *pb.Op_Relocate:
		return "relocate"
	case *pb.Op_AllocChunks:
		return "alloc_chunks"
	case *pb.Op_SealChunks:
		return "seal_chunks"
	case *pb.Op_ReleaseInodes:
		return "release_inodes"
	case *pb.Op_OpenSession:
		return "open_session"
	case *pb.Op_CloseSession:
		return "close_session"
	}
	return "other"
}

// stateCollector reads gauges off the parts when it is asked.
type stateCollector struct{ s *Server }

var (
	descLeads       = desc("leads", "1 while this metaserver leads and serves.")
	descApplied     = desc("applied_index", "Log index applied to the state.")
	descDurable     = desc("durable_index", "Log index up to which the state is on disk.")
	descBuffered    = desc("kv_buffered_keys", "Keys in the write buffer.")
	descBytes       = desc("kv_buffered_bytes", "Bytes in the write buffer.")
	descFile        = desc("kv_file_bytes", "Size of the database.")
	descFlushes     = desc("kv_flushes_total", "Flushes of the write buffer.")
	descFlushed     = desc("kv_flushed_keys_total", "Keys flushed.")
	descFlushTime   = desc("kv_flush_seconds_total", "Time spent in flushes.")
	descWaitTime    = desc("kv_wait_seconds_total", "Time that commands waited for room in the buffer.")
	descInodes      = desc("inodes", "Inodes in use.")
	descChunks      = desc("chunks", "Chunks.")
	descFileBytes   = desc("file_bytes", "Live bytes of files, one copy counted.")
	descDeletions   = desc("deletions_pending", "Chunk copies that servers have yet to delete.")
	descSessions    = desc("sessions", "Sessions that live.")
	descConnected   = desc("sessions_connected", "Sessions with a stream to this leader.")
	descLeases      = desc("leases", "Leases and open inodes that the leader knows.")
	descRevocations = desc("revocations_total", "Leases taken back in this leadership.")
	descLeaseWaits  = desc("lease_waits_total", "Mutations that waited for other clients in this leadership.")
	descLapses      = desc("lease_lapses_total", "Sessions whose leases ran out while connected, in this leadership.")
	descGarbage     = desc("garbage_bytes", "Bytes in chunks that no file refers to any more, one copy counted, by the last look.")
	descReclaimable = desc("reclaimable_bytes", "Of the garbage, what compacting chunks that are mostly garbage would give back.")
	descRewriting   = desc("rewrites_running", "New chunks that are being made out of others.")
	descRewritten   = desc("rewritten_bytes_total", "Bytes of files written anew in this leadership, one copy counted.")
	descRewrites    = desc("rewrites_total", "Chunks that were to be made out of others in this leadership, by outcome.", "outcome")
	descConverting  = desc("converting_bytes", "Bytes of files that are being converted to their policies.")
	descSafety      = desc("chunks_redundancy", "Sealed chunks by how many of their shards are left: full, degraded, endangered (one more loss makes them unreadable), unreadable.", "redundancy")
	descMoving      = desc("repair_moves", "Shards that are being made anew or moved.")
	descRepairLeft  = desc("repair_left_bytes", "Bytes to be copied until every chunk has all its shards and drained servers are empty.")
	descRepaired    = desc("repaired_shards_total", "Shards that were made anew or moved in this leadership, by outcome.", "outcome")
	descRepairBytes = desc("repaired_bytes_total", "Bytes of these.")
	descHeldBack    = desc("repair_held_back", "1: repair waits, the status says for what.")
	descServers     = desc("chunkservers", "Chunk servers by state.", "state")
	descCapacity    = desc("capacity_bytes", "Raw space of chunk servers that are not dead, a file system that they share counted once.")
	descFree        = desc("free_bytes", "Free raw space of chunk servers that are not dead, a file system that they share counted once.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("shoal_meta_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descLeads, descApplied, descDurable, descBuffered, descBytes, descFile, descFlushes,
		descFlushed, descFlushTime, descWaitTime, descInodes, descChunks, descFileBytes, descDeletions, descSessions,
		descConnected, descLeases, descRevocations, descLeaseWaits, descLapses, descGarbage, descReclaimable,
		descRewriting, descRewritten, descRewrites, descConverting, descSafety, descMoving, descRepairLeft, descRepaired, descRepairBytes, descHeldBack, descServers, descCapacity, descFree} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c stateCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	s := c.s
	st := s.db.Stats()
	gauge(descApplied, float64(st.Applied))
	gauge(descDurable, float64(st.Durable))
	gauge(descBuffered, float64(st.BufferedKeys))
	gauge(descBytes, float64(st.BufferedBytes))
	gauge(descFile, float64(st.FileBytes))
	counter(descFlushes, float64(st.Flushes))
	counter(descFlushed, float64(st.FlushedKeys))
	counter(descFlushTime, st.FlushTime.Seconds())
	counter(descWaitTime, st.WaitTime.Seconds())
	var t namespace.TotalsRecord
	if err := s.db.View(func(r kv.Reader) error { t = namespace.Totals(r); return nil }); err == nil {
		gauge(descInodes, float64(t.Inodes))
		gauge(descChunks, float64(t.Chunks))
		gauge(descFileBytes, float64(t.LiveBytes+t.InlineBytes))
		gauge(descDeletions, float64(t.Deletions))
		gauge(descSessions, float64(t.Sessions))
	}
	l := s.lead.Load()
	if l == nil {
		gauge(descLeads, 0)
		return
	}
	gauge(descLeads, 1)
	ls := l.table.Stats()
	gauge(descConnected, float64(ls.Connected))
	gauge(descLeases, float64(ls.Leases))
	counter(descRevocations, float64(ls.Revocations))
	counter(descLeaseWaits, float64(ls.Waits))
	counter(descLapses, float64(ls.Lapses))
	rs := l.rewrite.Stats()
	gauge(descGarbage, float64(rs.Garbage))
	gauge(descReclaimable, float64(rs.Reclaimable))
	gauge(descRewriting, float64(rs.Running))
	gauge(descConverting, float64(rs.FilesLeft))
	counter(descRewritten, float64(rs.Moved))
	counter(descRewrites, float64(rs.Done), "done")
	counter(descRewrites, float64(rs.Failed), "failed")
	red, repaired := l.repair.Report(), l.repair.Stats()
	if red.Known {
		for state, n := range map[string]uint64{"full": red.Full, "degraded": red.Degraded, "endangered": red.Endangered, "unreadable": red.Unreadable} {
			gauge(descSafety, float64(n), state)
		}
	}
	gauge(descMoving, float64(repaired.Moving))
	gauge(descRepairLeft, float64(red.BytesLeft))
	counter(descRepaired, float64(repaired.Done), "done")
	counter(descRepaired, float64(repaired.Failed), "failed")
	counter(descRepairBytes, float64(repaired.Bytes))
	gauge(descHeldBack, float64(min(len(red.HeldBack), 1)))
	servers := l.live.Servers()
	states := map[pb.ServerState]int{}
	for _, info := range servers {
		states[info.State]++
	}
	for state := range pb.ServerState_name {
		gauge(descServers, float64(states[pb.ServerState(state)]), stateName(pb.ServerState(state)))
	}
	space := l.space(servers, 0)
	gauge(descCapacity, float64(space.Capacity))
	gauge(descFree, float64(space.Free))
}
