package httpd

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// refresh is how often a page in a browser loads itself again, and statusTimeout how long it waits for an answer.
const (
	refresh       = 2 // seconds
	statusTimeout = 5 * time.Second
)

//go:embed assets
var assets embed.FS

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"size": size, "speed": speed, "num": number, "percent": percent, "ago": ago, "domain": domain,
}).ParseFS(assets, "assets/*"))

type frame struct {
	Title   string
	Refresh int
}

// MetaPage shows a cluster as its leading metaserver sees it. self names the process that serves the page.
func MetaPage(self string, status func(context.Context) (*pb.StatusReply, error)) http.Handler {
	s := &sampler{now: time.Now}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), statusTimeout)
		defer cancel()
		st, err := status(ctx)
		if err != nil {
			render(w, http.StatusServiceUnavailable, "down", downView{frame{"shoalfs: no answer", refresh}, self, err.Error()})
			return
		}
		render(w, http.StatusOK, "meta", newMetaView(self, st, s.add(st)))
	})
}

type downView struct {
	frame
	Self, Error string
}

type metaView struct {
	frame
	Self      string
	St        *pb.StatusReply
	Safety    string // the class of the sentence on redundancy: "wrong" where data is in danger
	Used      uint64 // bytes of raw space
	UsedPart  float64
	Rates     rates
	Servers   []serverView
	Layout    string
	Healthy   int
	HasLeader bool
}

type serverView struct {
	*pb.ServerInfo
	Rate     rate
	Used     uint64
	UsedPart float64
	Class    string
	// StateName is one word, or two where a server that is not healthy is being drained.
	StateName string
}

func newMetaView(self string, st *pb.StatusReply, r rates) metaView {
	v := metaView{frame: frame{"shoalfs", refresh}, Self: self, St: st, Rates: r}
	v.Used, v.UsedPart = used(st.GetSpace().GetCapacity(), st.GetSpace().GetFree())
	for _, m := range st.Metaservers {
		v.HasLeader = v.HasLeader || m.Leader
	}
	if l := st.Layout; l != nil {
		layout := chunk.LayoutOf(l)
		v.Layout = fmt.Sprintf("%v, a write waits for %d of %d", layout, layout.Min, layout.Width())
	}
	if r := st.Redundancy; r.GetEndangered()+r.GetUnreadable() > 0 {
		v.Safety = "wrong"
	}
	for _, s := range st.Servers {
		sv := serverView{ServerInfo: s, Rate: r.Server[s.Id], Class: "bad", StateName: stateName(s.State)}
		sv.Used, sv.UsedPart = used(s.Capacity, s.Free)
		switch s.State {
		case pb.ServerState_SERVER_STATE_HEALTHY:
			sv.Class = "good"
			v.Healthy++
		case pb.ServerState_SERVER_STATE_SUSPECT:
			sv.Class = "warn"
		}
		if s.Draining {
			if sv.Class == "good" {
				sv.Class, sv.StateName = "warn", "draining"
			} else {
				sv.StateName += ", draining"
			}
		}
		v.Servers = append(v.Servers, sv)
	}
	slices.SortFunc(v.Servers, func(a, b serverView) int { return int(a.Id) - int(b.Id) })
	return v
}

// ChunkStatus is what a chunk server shows of itself.
type ChunkStatus struct {
	ID          uint32 // 0: not registered yet
	Address     string
	Cluster     string
	Leader      string // the metaserver that it is connected to, empty if none
	Metaservers []string
	Disks       []*pb.DiskInfo
	Streams     int    // chunks that are being written
	Read        uint64 // bytes since the start
	Written     uint64
	Problems    []string
}

// ChunkPage shows one chunk server.
func ChunkPage(status func() ChunkStatus) http.Handler {
	s := &sampler{now: time.Now}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		st := status()
		r := s.add(&pb.StatusReply{Servers: []*pb.ServerInfo{{Id: st.ID, BytesRead: st.Read, BytesWritten: st.Written}}})
		v := chunkView{frame: frame{"shoalfs: chunk server", refresh}, St: st, Rates: r}
		for _, d := range st.Disks {
			dv := diskView{DiskInfo: d}
			dv.Used, dv.UsedPart = used(d.Capacity, d.Free)
			v.Disks = append(v.Disks, dv)
		}
		render(w, http.StatusOK, "chunk", v)
	})
}

type chunkView struct {
	frame
	St    ChunkStatus
	Rates rates
	Disks []diskView
}

type diskView struct {
	*pb.DiskInfo
	Used     uint64
	UsedPart float64
}

func render(w http.ResponseWriter, code int, name string, data any) {
	var b bytes.Buffer // so that a template that fails half-way is an error, not half a page
	if err := pages.ExecuteTemplate(&b, name, data); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write(b.Bytes()) // the reader may be gone
}

func used(capacity, free uint64) (bytes uint64, part float64) {
	if capacity == 0 || free > capacity {
		return 0, 0
	}
	return capacity - free, float64(capacity-free) / float64(capacity)
}

// size writes bytes as people read them: "1.5 GiB".
func size(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), 0
	for v >= 1023.95 && unit < len("KMGTPE") {
		v /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTPE"[unit-1])
}

func speed(v float64) string { return size(uint64(v)) + "/s" }

// number groups digits by thousands.
func number(n any) string {
	s := fmt.Sprintf("%.0f", toFloat(n))
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

func toFloat(n any) float64 {
	switch n := n.(type) {
	case uint64:
		return float64(n)
	case float64:
		return n
	case int:
		return float64(n)
	}
	return 0
}

func percent(part float64) string { return fmt.Sprintf("%.1f%%", part*100) }

func ago(ms uint64) string {
	if ms < 2000 {
		return "now"
	}
	return (time.Duration(ms) * time.Millisecond).Round(time.Second).String() + " ago"
}

func stateName(s pb.ServerState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "SERVER_STATE_"))
}

func domain(m map[string]string) string {
	parts := make([]string, 0, len(m))
	for k, v := range m {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	return strings.Join(parts, " ")
}
