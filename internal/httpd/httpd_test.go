package httpd

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve starts a server and returns a function that gets a page of it.
func serve(t *testing.T, cfg Config) func(path string) (int, string, http.Header) {
	t.Helper()
	cfg.Listen = "127.0.0.1:0"
	if cfg.Gather == nil {
		cfg.Gather = NewRegistry()
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return func(path string) (int, string, http.Header) {
		t.Helper()
		r, err := client.Get("http://" + s.Address() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Body.Close() }()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(b), r.Header
	}
}

func mustContain(t *testing.T, body string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in:\n%s", want, body)
		}
	}
}

func TestMetrics(t *testing.T) {
	reg := NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "shoal_test_total", Help: "A test."})
	reg.MustRegister(c)
	c.Add(3)
	code, body, _ := serve(t, Config{Gather: reg})("/metrics")
	if code != http.StatusOK {
		t.Fatalf("status %d", code)
	}
	mustContain(t, body, "shoal_test_total 3", "go_goroutines", "process_start_time_seconds")
}

func TestHealth(t *testing.T) {
	var problem error
	get := serve(t, Config{Health: func() error { return problem }})
	if code, body, _ := get("/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Fatalf("healthy: %d %q", code, body)
	}
	problem = errors.Join(errors.New("no leader"), errors.New("disk full"))
	if code, body, _ := get("/healthz"); code != http.StatusServiceUnavailable || body != "no leader\ndisk full\n" {
		t.Fatalf("ill: %d %q", code, body)
	}
}

func TestPathsThatAreNotThere(t *testing.T) {
	get := serve(t, Config{})
	for _, path := range []string{"/nothing", "/debug/pprof/", "/metrics/x", "/../etc/passwd"} {
		if code, _, _ := get(path); code != http.StatusNotFound {
			t.Errorf("%s: status %d", path, code)
		}
	}
	if code, _, _ := serve(t, Config{Debug: true})("/debug/pprof/"); code != http.StatusOK {
		t.Errorf("pprof with Debug: status %d", code)
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, err = New(Config{Listen: l.Addr().String(), Gather: NewRegistry()})
	if err == nil {
		t.Fatal("no error")
	}
	mustContain(t, err.Error(), l.Addr().String(), "--http", "in use")
}

// A server that never started releases its port.
func TestCloseWithoutStart(t *testing.T) {
	s, err := New(Config{Listen: "127.0.0.1:0", Gather: NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", s.Address())
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

func sample() *pb.StatusReply {
	return &pb.StatusReply{
		Cluster: "0123abcd", Inodes: 1234567, Chunks: 42, FileBytes: 3 << 30, Sessions: 2, Index: 99,
		Problems: []string{"chunk server 2 <script>alert(1)</script> is dead"},
		Layout:   chunk.Copies(3).Proto(),
		Space:    &pb.StatFSReply{Capacity: 100 << 30, Free: 25 << 30, Available: 8 << 30, Total: 33 << 30},
		Metaservers: []*pb.MetaMember{
			{Id: 1, Address: "10.0.0.1:7400", Leader: true, State: "Leader"}, {Id: 2, Address: "10.0.0.2:7400", State: "Follower"}},
		Servers: []*pb.ServerInfo{
			{Id: 2, Address: "10.0.0.4:7500", State: pb.ServerState_SERVER_STATE_DEAD, LastSeenMs: 61_000, Capacity: 50 << 30, Free: 25 << 30},
			{Id: 1, Address: "10.0.0.3:7500", State: pb.ServerState_SERVER_STATE_HEALTHY, Capacity: 50 << 30, Domain: map[string]string{"zone": "a", "rack": "r1"}},
		},
	}
}

func TestMetaPage(t *testing.T) {
	status := func(context.Context) (*pb.StatusReply, error) { return sample(), nil }
	code, body, head := serve(t, Config{Page: MetaPage("seen by metaserver 1", status)})("/")
	if code != http.StatusOK {
		t.Fatalf("status %d", code)
	}
	mustContain(t, body, "0123abcd", "seen by metaserver 1", "1\u202f234\u202f567", "3.0 GiB", "8.0 GiB", "75.0 GiB of 100.0 GiB",
		"1 of 2 healthy", "10.0.0.4:7500", `class="bad">dead`, "1m1s ago", "rack=r1 zone=a", "leads", "Follower", "What is wrong",
		"replicas=3, a write waits for 2 of 3", `http-equiv="refresh"`)
	if strings.Contains(body, "<script>") {
		t.Error("a problem's text is not escaped")
	}
	for _, external := range []string{"http://", "https://", "src=", "@import", "<link"} {
		if strings.Contains(body, external) {
			t.Errorf("the page needs something from elsewhere: %q", external)
		}
	}
	if csp := head.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("content security policy %q", csp)
	}
}

// The page begins with whether the data is safe, and says how far repair, drains and scrubs are.
func TestMetaPageOfRedundancy(t *testing.T) {
	st := sample()
	st.Redundancy = &pb.Redundancy{
		Known: true, Full: 1001, Degraded: 22, Endangered: 33, Moving: 4, BytesLeft: 5 << 30, Summary: "IN DANGER: one more <loss>", HeldBack: "no room",
	}
	st.Servers[0].Draining, st.Servers[0].Shards, st.Servers[0].Problem, st.Servers[0].Progress = true, 4321, "silent", "drain waits"
	st.Servers[1].Draining = true
	var shown *pb.StatusReply
	get := serve(t, Config{Page: MetaPage("", func(context.Context) (*pb.StatusReply, error) { return shown, nil })})
	page := func(st *pb.StatusReply) string {
		shown = st
		code, body, _ := get("/")
		if code != http.StatusOK {
			t.Fatalf("status %d", code)
		}
		return body
	}
	body := page(st)
	mustContain(t, body, `<div class="notice wrong" role="alert"><strong>IN DANGER: one more &lt;loss&gt;</strong>`, "1\u202f001", `class="warn">22`, `class="bad">33`,
		"5.0 GiB", "no room", "4\u202f321", `class="bad">dead, draining`, `class="warn">draining`, "silent; drain waits")
	if first, wrong := strings.Index(body, "IN DANGER"), strings.Index(body, "What is wrong"); first > wrong {
		t.Error("the sentence does not come first")
	}
	st.Redundancy = &pb.Redundancy{Summary: "not known yet"}
	mustContain(t, page(st), `<div class="notice"><strong>not known yet`, "not all chunks are counted yet")
	if strings.Contains(page(sample()), "Redundancy") {
		t.Error("what is not known is shown")
	}
}

func TestMetaPageOfAnEmptyCluster(t *testing.T) {
	status := func(context.Context) (*pb.StatusReply, error) { return &pb.StatusReply{Space: &pb.StatFSReply{}}, nil }
	code, body, _ := serve(t, Config{Page: MetaPage("", status)})("/")
	if code != http.StatusOK {
		t.Fatalf("status %d", code)
	}
	mustContain(t, body, "None has registered yet", "none leads", "Nothing is wrong")
}

// A metaserver that follows knows nothing of the chunk servers, and does not pretend that there are none.
func TestMetaPageOfAFollower(t *testing.T) {
	status := func(context.Context) (*pb.StatusReply, error) {
		return &pb.StatusReply{Problems: []string{"the leader is elsewhere"}, Metaservers: []*pb.MetaMember{{Id: 2, Address: "10.0.0.2:7400", Leader: true}}}, nil
	}
	code, body, _ := serve(t, Config{Page: MetaPage("", status)})("/")
	if code != http.StatusOK || strings.Contains(body, "Chunk servers") {
		t.Fatalf("status %d, %s", code, body)
	}
	mustContain(t, body, "the leader is elsewhere", "10.0.0.2:7400")
}

func TestMetaPageWithoutLeader(t *testing.T) {
	status := func(context.Context) (*pb.StatusReply, error) { return nil, errors.New("no leader for 3s") }
	code, body, _ := serve(t, Config{Page: MetaPage("", status)})("/")
	if code != http.StatusServiceUnavailable {
		t.Fatalf("status %d", code)
	}
	mustContain(t, body, "No metaserver answers", "no leader for 3s")
}

func TestChunkPage(t *testing.T) {
	page := ChunkPage(func() ChunkStatus {
		return ChunkStatus{ID: 7, Address: "10.0.0.3:7500", Metaservers: []string{"10.0.0.1:7400", "10.0.0.2:7400"}, Leader: "10.0.0.2:7400",
			Written: 5 << 20, Problems: []string{"disk two is full"},
			Disks: []*pb.DiskInfo{{Path: "/disk/one", Capacity: 1 << 40, Free: 1 << 39, Chunks: 12}, {Path: "/disk/two", Error: "read-only"}}}
	})
	code, body, _ := serve(t, Config{Page: page})("/")
	if code != http.StatusOK {
		t.Fatalf("status %d", code)
	}
	mustContain(t, body, "chunk server 7", "/disk/one", "50.0%", "1.0 TiB", "read-only", "disk two is full", "5.0 MiB",
		"10.0.0.1:7400, 10.0.0.2:7400; connected to 10.0.0.2:7400")
}

func TestRates(t *testing.T) {
	now := time.Unix(1000, 0)
	s := &sampler{now: func() time.Time { return now }}
	at := func(mutations, read1, written1, read2 uint64) rates {
		return s.add(&pb.StatusReply{Mutations: mutations, Servers: []*pb.ServerInfo{
			{Id: 1, BytesRead: read1, BytesWritten: written1}, {Id: 2, BytesRead: read2}}})
	}
	if r := at(100, 0, 0, 500); r.Known {
		t.Fatalf("rates of one sample: %+v", r)
	}
	now = now.Add(2 * time.Second)
	r := at(150, 400, 800, 500)
	if !r.Known || r.Over != 2*time.Second || r.Mutations != 25 || r.Server[1] != (rate{200, 400}) || r.Total != (rate{200, 400}) {
		t.Fatalf("%+v", r)
	}
	now = now.Add(minWindow / 4) // too soon to be a sample of its own: the window only grows
	if r = at(150, 400, 800, 500); r.Over != 2*time.Second+minWindow/4 {
		t.Fatalf("%+v", r)
	}
	now = now.Add(minWindow)
	if r = at(150, 100, 800, 500); r.Server[1].Read != 100/r.Over.Seconds() || r.Mutations != 0 {
		t.Fatalf("after server 1 started again at zero: %+v", r)
	}
}

func TestSizesAndNumbers(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 1 << 30: "1.0 GiB", 1<<64 - 1: "16.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1\u202f000", 1234567: "1\u202f234\u202f567"} {
		if got := number(n); got != want {
			t.Errorf("number(%d) = %q, want %q", n, got, want)
		}
	}
}
