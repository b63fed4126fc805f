package chunkserver

import (
	"path/filepath"
	"testing"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// TestAnyPath: a data directory may have any name that the operating system takes, although messages and metrics are UTF-8.
func TestAnyPath(t *testing.T) {
	m := newMeta(t)
	dir := filepath.Join(t.TempDir(), "d\xff\xfe")
	reg := prometheus.NewRegistry()
	s := start(t, Config{Dirs: []string{dir}, Meta: []string{relay(t, m.srv.Address())}, ScrubRate: -1, Registerer: reg})
	s.awaitReady(t)
	m.until(t, "heartbeats", func() bool { return m.last != nil && utf8.ValidString(m.last.Disks[0].Path) })
	if _, err := reg.Gather(); err != nil {
		t.Error(err)
	}
	f := newSource(t)
	data := random(1000)
	f.holdAll(1, copies2, data)
	mustCopy(t, m, s, f.order(1, copies2, len(data), copies2, 0))
	spoilFile(t, s, 1)
	m.order(t, s, &pb.HeartbeatReply{Check: []uint64{1}})
	m.until(t, "a report", func() bool { return m.corrupt[1] })
}
