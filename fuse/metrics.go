package fuse

import (
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// op is a kind of request, for the metrics.
type op int

const (
	opLookup op = iota
	opGetAttr
	opSetAttr
	opMknod
	opMkdir
	opUnlink
	opRmdir
	opRename
	opLink
	opSymlink
	opReadlink
	opAccess
	opGetXattr
	opListXattr
	opSetXattr
	opRemoveXattr
	opCreate
	opOpen
	opRead
	opWrite
	opFlush
	opFsync
	opRelease
	opFallocate
	opOpenDir
	opReadDir
	opStatFS
	opCount
)

var opNames = [opCount]string{
	"lookup", "getattr", "setattr", "mknod", "mkdir", "unlink", "rmdir", "rename", "link", "symlink", "readlink", "access",
	"getxattr", "listxattr", "setxattr", "removexattr", "create", "open", "read", "write", "flush", "fsync", "release",
	"fallocate", "opendir", "readdir", "statfs",
}

type metrics struct {
	requests *prometheus.CounterVec
	ok       [opCount]prometheus.Counter
	latency  [opCount]prometheus.Observer
	handles  prometheus.Gauge
	bytes    [2]prometheus.Counter // read, written
}

// newMetrics makes the metrics and registers them where there is a registerer. Two mounts of one process register under
// labels of their own, or share nothing.
func newMetrics(r prometheus.Registerer) (*metrics, func(), error) {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "shoal_fuse_requests_total", Help: "Requests of the kernel, by kind and result."}, []string{"op", "errno"})
	latency := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "shoal_fuse_request_seconds", Help: "Time to answer a request of the kernel.",
		Buckets: prometheus.ExponentialBuckets(20e-6, 4, 10)}, []string{"op"})
	handles := prometheus.NewGauge(prometheus.GaugeOpts{Name: "shoal_fuse_handles", Help: "Open files and directories."})
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "shoal_fuse_bytes_total", Help: "Bytes read and written by the kernel."}, []string{"direction"})
	m := &metrics{requests: requests, handles: handles}
	for i, name := range opNames {
		m.ok[i] = requests.WithLabelValues(name, "OK")
		m.latency[i] = latency.WithLabelValues(name)
	}
	m.bytes = [2]prometheus.Counter{bytes.WithLabelValues("read"), bytes.WithLabelValues("write")}
	if r == nil {
		return m, func() {}, nil
	}
	var registered []prometheus.Collector
	unregister := func() {
		for _, c := range registered {
			r.Unregister(c)
		}
	}
	for _, c := range []prometheus.Collector{requests, latency, handles, bytes} {
		if err := r.Register(c); err != nil {
			unregister()
			return nil, nil, err
		}
		registered = append(registered, c)
	}
	return m, unregister, nil
}

func (m *metrics) observe(o op, start time.Time, status gofuse.Status) {
	m.latency[o].Observe(time.Since(start).Seconds())
	if status == gofuse.OK {
		m.ok[o].Inc()
		return
	}
	m.requests.WithLabelValues(opNames[o], errnoName(status)).Inc()
}

func errnoName(status gofuse.Status) string {
	if name := unix.ErrnoName(syscall.Errno(status)); name != "" {
		return name
	}
	return strings.ToUpper(syscall.Errno(status).Error())
}
