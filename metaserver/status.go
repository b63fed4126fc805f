package metaserver

import (
	"context"
	"fmt"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/liveness"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// settling is how long after a leadership began silent chunk servers are not complained about.
const settling = 5 * time.Second

func liveInventory(inv *inventory) liveness.Inventory {
	return liveness.Inventory{Done: true, Foreign: inv.foreign}
}

// StatFS implements pb.MetaServer.
func (m *metaService) StatFS(context.Context, *pb.StatFSRequest) (*pb.StatFSReply, error) {
	l, err := m.s.leading()
	if err != nil {
		return nil, err
	}
	var inodes uint64
	if err := m.s.db.View(func(r kv.Reader) error { inodes = namespace.Totals(r).Inodes; return nil }); err != nil {
		return nil, rpc.ToStatus(err)
	}
	return l.space(l.live.Servers(), inodes), nil
}

// space counts the disks of servers that are not dead, and what fits on them under the layout of new data.
func (l *leader) space(servers []*pb.ServerInfo, inodes uint64) *pb.StatFSReply {
	s := liveness.SpaceOf(servers, l.rootLayout())
	return &pb.StatFSReply{Capacity: s.Capacity, Free: s.Free, Total: s.Total, Available: s.Available, Inodes: inodes}
}

// rootLayout is how new data is stored that no directory below the root has another policy for.
func (l *leader) rootLayout() chunk.Layout {
	var layout chunk.Layout
	_ = l.s.db.View(func(r kv.Reader) (err error) { // a failed database has nothing to say
		layout, err = namespace.LayoutOf(r, posix.RootInode)
		return err
	})
	if layout.IsZero() {
		layout = l.layout()
	}
	return layout
}

// Servers implements pb.MetaServer.
func (m *metaService) Servers(context.Context, *pb.ServersRequest) (*pb.ServersReply, error) {
	l, err := m.s.leading()
	if err != nil {
		return nil, err
	}
	servers := l.live.Servers()
	l.fillServers(servers)
	return &pb.ServersReply{Servers: servers}, nil
}

// Status implements pb.MetaServer. A metaserver that does not lead answers, too, and says who does.
func (m *metaService) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusReply, error) {
	out, err := m.s.Status(ctx)
	return out, rpc.ToStatus(err)
}

// Status describes the cluster as this metaserver sees it.
func (s *Server) Status(context.Context) (*pb.StatusReply, error) {
	var t namespace.TotalsRecord
	if err := s.db.View(func(r kv.Reader) error { t = namespace.Totals(r); return nil }); err != nil {
		return nil, err
	}
	out := &pb.StatusReply{
		Cluster: hexID(t.Cluster), Inodes: t.Inodes, Chunks: t.Chunks, FileBytes: t.LiveBytes + t.InlineBytes,
		Deletions: t.Deletions, Sessions: t.Sessions, Metaservers: s.node.Members(), Index: s.db.Applied(),
		Mutations: s.mutations.Load(), Reads: s.reads.Load(),
	}
	if err := s.Health(); err != nil {
		out.Problems = append(out.Problems, fmt.Sprintf("metaserver %d: %v", s.cfg.ID, err))
	}
	if r := s.room.Load(); r != nil && r.short != noShortage {
		out.Problems = append(out.Problems, fmt.Sprintf("metaserver %d takes no changes that need space: %v", s.cfg.ID, *r))
		out.Shortage = uint32(r.short)
	}
	l := s.lead.Load()
	if l == nil {
		out.Problems = append(out.Problems, s.following())
		return out, nil
	}
	out.Servers, out.Redundancy, out.Rewriting = l.live.Servers(), l.repair.Report(), l.rewriting()
	l.fillServers(out.Servers)
	out.Space, out.Layout = l.space(out.Servers, t.Inodes), l.rootLayout().Proto()
	out.DefaultLayout = l.layout().Proto()
	out.Problems = append(out.Problems, l.problems(out)...)
	return out, nil
}

func (s *Server) following() string {
	if address := s.node.Leader(); address != "" && address != s.cfg.Advertise {
		return fmt.Sprintf("metaserver %d follows and knows nothing of the chunk servers; the leader is at %s", s.cfg.ID, address)
	}
	return fmt.Sprintf("metaserver %d knows of no leader: nothing can be read or changed until most of the metaservers reach each other", s.cfg.ID)
}

// problems says in sentences what is wrong with the cluster.
func (l *leader) problems(st *pb.StatusReply) []string {
	var out []string
	healthy, reported := 0, 0
	settled := time.Since(l.since) > settling
	for _, s := range st.Servers {
		if s.State == pb.ServerState_SERVER_STATE_HEALTHY {
			healthy++
		}
		if len(s.Disks) > 0 { // which only its heartbeats name
			reported++
		}
		if s.Problem != "" && (settled || s.State == pb.ServerState_SERVER_STATE_HEALTHY) {
			state := ""
			if s.State != pb.ServerState_SERVER_STATE_HEALTHY {
				state = " is " + stateName(s.State)
			}
			out = append(out, fmt.Sprintf("chunk server %d at %s%s: %s", s.Id, s.Address, state, s.Problem))
		}
		for _, d := range s.Disks {
			if d.Error != "" {
				out = append(out, fmt.Sprintf("chunk server %d at %s: disk %s failed: %s", s.Id, s.Address, d.Path, d.Error))
			}
		}
	}
	if n := len(st.Servers); reported < n && !settled {
		out = append(out, fmt.Sprintf("the leader is new: %d of %d chunk servers have reported; until all have, space and health are not fully known", reported, n))
	}
	layout := chunk.LayoutOf(st.Layout)
	possible := l.possible(layout, healthy)
	switch {
	case len(st.Servers) == 0:
		out = append(out, "no chunk server has registered: only small files can be written")
	case len(st.Servers) < layout.Width():
		out = append(out, fmt.Sprintf("%s registered, %v needs %d: data is kept with less redundancy", are(len(st.Servers), "chunk server"), layout, layout.Width()))
	case healthy < possible.Min && settled:
		out = append(out, fmt.Sprintf("%d of %d chunk servers are healthy, writing needs %d: writers wait", healthy, len(st.Servers), possible.Min))
	case healthy < layout.Width() && settled:
		out = append(out, fmt.Sprintf("%d of %d chunk servers are healthy, %v needs %d: new data gets less redundancy", healthy, len(st.Servers), layout, layout.Width()))
	}
	if sp := st.Space; sp.Capacity > 0 && sp.Free < sp.Capacity/20 {
		out = append(out, fmt.Sprintf("%d%% of the space is in use", 100-100*sp.Free/sp.Capacity))
	}
	for _, m := range st.Metaservers {
		if m.State == "unreachable" {
			out = append(out, fmt.Sprintf("metaserver %d at %s cannot be reached", m.Id, m.Address))
		}
	}
	if p := l.differs.Load(); p != nil {
		out = append(out, *p)
	}
	if n := l.table.Stats().Unknown; n > 0 {
		out = append(out, fmt.Sprintf("changes wait for %s of the leader before, at most %v after the leadership began", plural(n, "client"), l.grace()))
	}
	return out
}

// ReportServer implements pb.MetaServer.
func (m *metaService) ReportServer(_ context.Context, req *pb.ReportServerRequest) (*pb.ReportServerReply, error) {
	l, err := m.s.leading()
	if err != nil {
		return nil, err
	}
	known, there := false, false
	if err := m.s.db.View(func(r kv.Reader) error {
		known = namespace.HasSession(r, req.Session)
		there = req.Chunk != 0 && namespace.HasCopy(r, chunk.ServerID(req.Server), chunk.ID(req.Chunk))
		return nil
	}); err != nil {
		return nil, rpc.ToStatus(err)
	}
	if !known {
		return nil, errSessionEnded
	}
	text := req.Error[:min(len(req.Error), 256)]
	if req.Chunk != 0 && !there { // nor should there be
		return &pb.ReportServerReply{}, nil
	}
	if req.Chunk != 0 {
		l.check(chunk.ServerID(req.Server), chunk.ID(req.Chunk))
		l.log.Warn("a client found a shard of a chunk missing or damaged; its server is asked to check it", "server", req.Server, "chunk", chunk.ID(req.Chunk), "session", req.Session, "error", text)
		return &pb.ReportServerReply{}, nil
	}
	if l.live.Report(chunk.ServerID(req.Server), text) {
		l.log.Warn("a client reports that a chunk server failed it", "server", req.Server, "session", req.Session, "error", text)
	}
	return &pb.ReportServerReply{}, nil
}
