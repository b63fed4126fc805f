// Package liveness judges which chunk servers live, from their heartbeats and from what clients report. It lives in the
// leading metaserver's memory: a new leader hears from every server within a second or two. Only monotonic clocks count.
//
// A server is healthy while it heartbeats, suspect when it has not for SuspectAfter (it gets no new chunks, readers
// prefer others), dead after DeadAfter (its copies count as lost). A client that a server failed makes it suspect at
// once, for SuspectAfter; that alone never makes it dead. Suspect is also who goes silent and comes back again and again, and
// whose disks are far slower than those of the others.
package liveness

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// Defaults of Config.
const (
	DefaultSuspectAfter = 3 * time.Second
	DefaultDeadAfter    = 30 * time.Second
)

// Bounds on what a server may say about itself.
const (
	maxDisks = 1024
	maxText  = 1024 // bytes
)

// Config is what New needs; zero values stand for the defaults.
type Config struct {
	SuspectAfter time.Duration
	DeadAfter    time.Duration
}

// Server is what the cluster's metadata records about a chunk server.
type Server struct {
	ID      chunk.ServerID
	UUID    string
	Address string
	Domain  map[string]string
	// Draining: nothing new goes there.
	Draining bool
}

// Tracker is safe for concurrent use.
type Tracker struct {
	cfg     Config
	mu      sync.Mutex
	servers map[chunk.ServerID]*server
	changed chan struct{}
}

type server struct {
	Server
	state      pb.ServerState // as announced last
	heard      bool           // under this leadership
	seen       time.Time      // last heartbeat; before the first, when the server became known
	reported   time.Time      // last report of a client
	report     string
	returns    []time.Time // when it came back after a silence, lately
	slow       slowness
	disks      []*pb.DiskInfo
	read       uint64
	written    uint64
	inventory  Inventory
	capacity   uint64
	free       uint64
	chunks     uint64
	diskErrors int
}

// Inventory is what the last complete inventory of a server showed, compared with the metadata.
type Inventory struct {
	Done    bool
	Foreign uint64 // chunks of an id that this cluster never gave out
}

// Transition is a change of a server's state.
type Transition struct {
	Server   Server
	From, To pb.ServerState
	Silent   time.Duration // since its last heartbeat
	Reason   string
}

// New makes a Tracker that knows no server.
func New(cfg Config) *Tracker {
	if cfg.SuspectAfter <= 0 {
		cfg.SuspectAfter = DefaultSuspectAfter
	}
	if cfg.DeadAfter <= 0 {
		cfg.DeadAfter = max(DefaultDeadAfter, cfg.SuspectAfter)
	}
	return &Tracker{cfg: cfg, servers: map[chunk.ServerID]*server{}, changed: make(chan struct{})}
}

// Add makes a server known, or takes its new address and domain. One that was never heard of has SuspectAfter to
// heartbeat.
func (t *Tracker) Add(s Server) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.servers[s.ID]
	if old == nil {
		t.servers[s.ID] = &server{Server: s, seen: time.Now()}
		t.announce()
		return
	}
	if old.Address != s.Address || old.Draining != s.Draining || !maps.Equal(old.Domain, s.Domain) || old.UUID != s.UUID {
		old.Server = s
		t.announce()
	}
}

// Len is the number of servers known.
func (t *Tracker) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.servers)
}

// Heartbeat takes what a server says of itself; without disks it only says that it lives. False: it is not known.
func (t *Tracker) Heartbeat(id chunk.ServerID, disks []*pb.DiskInfo, read, written uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.servers[id]
	if s == nil {
		return false
	}
	now := time.Now()
	if s.heard && now.Sub(s.seen) >= t.cfg.SuspectAfter {
		s.returned(now)
	}
	s.heard, s.seen = true, now
	if len(disks) > 0 {
		s.read, s.written = read, written
		s.take(disks)
	}
	return true
}

func (s *server) take(disks []*pb.DiskInfo) {
	s.disks = disks[:min(len(disks), maxDisks)]
	s.chunks, s.diskErrors = 0, 0
	for _, d := range s.disks {
		d.Error, d.Path, d.Filesystem = clip(d.Error), clip(d.Path), clip(d.Filesystem)
		d.Free = min(d.Free, d.Capacity)
		s.chunks += d.Chunks
		if d.Error != "" {
			s.diskErrors++
		}
	}
	space := SpaceOf([]*pb.ServerInfo{{Disks: s.disks}}, chunk.Copies(1))
	s.capacity, s.free = space.Capacity, space.Free
}

func clip(s string) string { return s[:min(len(s), maxText)] }

// Report says that a server failed a client. False: the server is not known.
func (t *Tracker) Report(id chunk.ServerID, problem string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.servers[id]
	if s == nil {
		return false
	}
	s.reported, s.report = time.Now(), clip(problem)
	return true
}

// SetInventory records what a server's complete inventory showed.
func (t *Tracker) SetInventory(id chunk.ServerID, inv Inventory) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.servers[id]; s != nil {
		s.inventory = inv
	}
}

// SetDraining says whether a server is to be emptied.
func (t *Tracker) SetDraining(id chunk.ServerID, draining bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.servers[id]; s != nil && s.Draining != draining {
		s.Draining = draining
		t.announce()
	}
}

// Draining tells whether a server is to be emptied.
func (t *Tracker) Draining(id chunk.ServerID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.servers[id]
	return s != nil && s.Draining
}

// Remove forgets a server.
func (t *Tracker) Remove(id chunk.ServerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.servers[id] != nil {
		delete(t.servers, id)
		t.announce()
	}
}

// Domain is where a server stands, widest domain first; nil if it is not known.
func (t *Tracker) Domain(id chunk.ServerID) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.servers[id]; s != nil {
		return s.path()
	}
	return nil
}

// Poll returns the changes of state since it was called last. It is to be called several times a second.
func (t *Tracker) Poll() []Transition {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.judgeSpeed(now)
	var changes []Transition
	for _, s := range t.servers {
		state := t.state(s, now)
		if state == s.state {
			continue
		}
		changes = append(changes, Transition{Server: s.Server, From: s.state, To: state, Silent: now.Sub(s.seen), Reason: t.reason(s, now)})
		s.state = state
	}
	if len(changes) > 0 {
		t.announce()
	}
	slices.SortFunc(changes, func(a, b Transition) int { return cmp.Compare(a.Server.ID, b.Server.ID) })
	return changes
}

// Changed is closed at the next change of any server's state or address.
func (t *Tracker) Changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

func (t *Tracker) announce() {
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *Tracker) state(s *server, now time.Time) pb.ServerState {
	silent := now.Sub(s.seen)
	switch {
	case silent >= t.cfg.DeadAfter:
		return pb.ServerState_SERVER_STATE_DEAD
	case silent >= t.cfg.SuspectAfter:
		return pb.ServerState_SERVER_STATE_SUSPECT
	case !s.heard:
		return pb.ServerState_SERVER_STATE_UNKNOWN
	case t.doubtful(s, now):
		return pb.ServerState_SERVER_STATE_SUSPECT
	}
	return pb.ServerState_SERVER_STATE_HEALTHY
}

func (t *Tracker) isReported(s *server, now time.Time) bool {
	return !s.reported.IsZero() && now.Sub(s.reported) < t.cfg.SuspectAfter
}

// doubtful tells whether a server that heartbeats is to be spared work for now.
func (t *Tracker) doubtful(s *server, now time.Time) bool {
	return t.isReported(s, now) || s.flaps(now) || s.slow.is(now)
}

// reason says in a few words what is wrong with a server; empty when nothing is.
func (t *Tracker) reason(s *server, now time.Time) string {
	silent := now.Sub(s.seen)
	switch {
	case silent >= t.cfg.SuspectAfter && s.heard:
		return fmt.Sprintf("no heartbeat for %v", silent.Round(time.Second))
	case silent >= t.cfg.SuspectAfter:
		return fmt.Sprintf("not heard of since this metaserver leads, %v ago", silent.Round(time.Second))
	case t.isReported(s, now):
		return "a client reports: " + s.report
	case s.flaps(now):
		return fmt.Sprintf("went silent and came back %d times within %v", len(s.returns), flapWindow)
	case s.slow.is(now):
		return s.slow.reason
	case s.diskErrors > 0:
		return fmt.Sprintf("%d of %d disks failed", s.diskErrors, len(s.disks))
	case s.inventory.Foreign > 0:
		return fmt.Sprintf("%d chunks are of no id that this cluster gave out; left alone", s.inventory.Foreign)
	case s.heard && s.capacity > 0 && s.full():
		return "no free space: it takes no new data"
	}
	return ""
}

// domainLevels are the failure domains from the widest to the narrowest.
var domainLevels = []string{"zone", "rack", "host"}

// Candidates returns the servers that new chunks may go to: those that are healthy and have room, less those to avoid.
// When these are fewer than want, servers are added that heartbeat but are slow, come and go, or failed a client, and then those
// to be avoided: a client whose own network is broken must not be able to stop all writing.
func (t *Tracker) Candidates(want int, avoid []uint32) []*pb.Candidate {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	var best, reported, avoided []*pb.Candidate
	for _, s := range t.servers {
		if !s.up(now, t.cfg.SuspectAfter) || s.full() {
			continue
		}
		c := &pb.Candidate{Server: uint32(s.ID), Weight: s.free, Domain: s.path()}
		switch {
		case slices.Contains(avoid, uint32(s.ID)):
			avoided = append(avoided, c)
		case t.doubtful(s, now):
			reported = append(reported, c)
		default:
			best = append(best, c)
		}
	}
	if len(best) < want {
		best = append(best, reported...)
	}
	if len(best) < want {
		best = append(best, avoided...)
	}
	slices.SortFunc(best, func(a, b *pb.Candidate) int { return cmp.Compare(a.Server, b.Server) })
	return best
}

// leastFree is how little free space makes a server full, in bytes: what comes in one write of a chunk, and some more. Of a tiny
// server it is a hundredth.
const leastFree = 4 << 20

func (s *server) full() bool { return s.free < min(leastFree, max(s.capacity/100, 1)) }

// up tells whether a server takes new data, if it has room.
func (s *server) up(now time.Time, suspectAfter time.Duration) bool {
	return s.heard && !s.Draining && s.capacity > 0 && now.Sub(s.seen) < suspectAfter
}

// Full is how many servers would take new data if they had room.
func (t *Tracker) Full() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, n := time.Now(), 0
	for _, s := range t.servers {
		if s.up(now, t.cfg.SuspectAfter) && s.full() {
			n++
		}
	}
	return n
}

// path is where the server stands, widest domain first. Levels that it does not name are empty.
func (s *server) path() []string {
	out := make([]string, 0, len(domainLevels))
	for _, level := range domainLevels {
		out = append(out, s.Domain[level])
	}
	return out
}

// Servers describes every known server, by id.
func (t *Tracker) Servers() []*pb.ServerInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	out := make([]*pb.ServerInfo, 0, len(t.servers))
	for _, s := range t.servers {
		out = append(out, t.info(s, now))
	}
	slices.SortFunc(out, func(a, b *pb.ServerInfo) int { return cmp.Compare(a.Id, b.Id) })
	return out
}

func (t *Tracker) info(s *server, now time.Time) *pb.ServerInfo {
	disks := make([]*pb.DiskInfo, len(s.disks))
	for i, d := range s.disks {
		disks[i] = &pb.DiskInfo{Uuid: d.Uuid, Path: d.Path, Capacity: d.Capacity, Free: d.Free, Chunks: d.Chunks, Error: d.Error, Filesystem: d.Filesystem,
			WriteNs: d.WriteNs, ReadNs: d.ReadNs, Used: d.Used}
	}
	return &pb.ServerInfo{
		Id: uint32(s.ID), Address: s.Address, Uuid: s.UUID, Domain: maps.Clone(s.Domain),
		State: t.state(s, now), Problem: t.reason(s, now), LastSeenMs: uint64(now.Sub(s.seen).Milliseconds()),
		Capacity: s.capacity, Free: s.free, Chunks: s.chunks, Disks: disks,
		BytesRead: s.read, BytesWritten: s.written, Draining: s.Draining,
	}
}
