package metaserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	maxDeletions   = 1000             // chunks in one order to delete
	maxFinished    = 4096             // chunks in one FinishDeletions
	deletionsAgain = 10 * time.Second // when a chunk server is told again what it did not answer
	inventoryEvery = time.Hour
	// beatsBeforeSuspect is how many heartbeats in a row are missing of a server that is suspect.
	beatsBeforeSuspect = 3
)

// registryService answers chunk servers.
type registryService struct {
	pb.UnimplementedRegistryServer
	s *Server
}

// Register implements pb.RegistryServer.
func (r *registryService) Register(ctx context.Context, req *pb.RegisterRequest) (*pb.RegisterReply, error) {
	l, err := r.s.leading()
	if err != nil {
		return nil, err
	}
	cluster := r.s.cluster()
	if len(req.Cluster) != 0 && !bytes.Equal(req.Cluster, cluster) {
		l.log.Warn("a chunk server of another cluster was refused", "address", req.Address, "cluster", hexID(req.Cluster[:min(len(req.Cluster), 16)]))
		return nil, rpc.Error(rpc.WrongCluster, "this is cluster "+hexID(cluster)+", the chunk server belongs to another")
	}
	res, err := l.own(&pb.Op{Op: &pb.Op_RegisterServer{RegisterServer: &pb.RegisterServer{
		Uuid: req.Uuid, Server: req.Server, Address: req.Address, Domain: req.Domain,
	}}})
	if err != nil {
		var refused *fserr.Error // and not only unanswered: one that leads no more may never have heard of the server
		if errors.As(err, &refused) && l.wasRemoved(req) {
			return nil, removed(chunk.ServerID(req.Server))
		}
		return nil, rpc.ToStatus(err)
	}
	l.log.Info("a chunk server registered", "server", res.Server, "address", req.Address, "domain", req.Domain, "new", req.Server == 0)
	return &pb.RegisterReply{Cluster: res.Cluster, Server: res.Server}, nil
}

// wasRemoved tells of a registration that was refused whether the server had the number that it claims to have: numbers are not
// given out again, and nobody has this one, nor does the server have another.
func (l *leader) wasRemoved(req *pb.RegisterRequest) (was bool) {
	err := l.s.db.View(func(r kv.Reader) error {
		was = req.Server != 0 && !slices.ContainsFunc(namespace.Servers(r), func(s namespace.ServerRecord) bool {
			return s.ID == chunk.ServerID(req.Server) || bytes.Equal(s.UUID, req.Uuid)
		})
		return nil
	})
	return was && err == nil
}

func removed(id chunk.ServerID) error {
	return rpc.Error(rpc.Removed, fmt.Sprintf("chunk server %d was removed from the cluster", id))
}

type heartbeatStream = grpc.BidiStreamingServer[pb.HeartbeatRequest, pb.HeartbeatReply]

// Heartbeat implements pb.RegistryServer.
func (r *registryService) Heartbeat(stream heartbeatStream) error {
	return rpc.ToStatus(r.s.heartbeat(stream))
}

// heartbeats is the stream of one chunk server.
type heartbeats struct {
	l      *leader
	id     chunk.ServerID
	stream heartbeatStream
	work   chan *pb.HeartbeatRequest
	poked  chan struct{} // 1: there is something to tell
	failed chan error
	gone   chan struct{} // closed when the stream is to end
	why    error         // why that is, once it is closed
	once   sync.Once

	ordered   map[chunk.ID]struct{} // to be deleted, as told and not answered yet
	orderedAt time.Time
	last      []byte // of the deletions in the state the last that was ordered, while the server does not answer all
	inventory *inventory
	wanted    time.Time  // when an inventory was last asked for, or sent unasked after connecting
	awaited   bool       // it has not come yet: so the next one is listed after this one was judged
	orphans   []chunk.ID // to be deleted, those that were not ordered to be yet
	orphansAt time.Time
	stray     []chunk.ID          // orphans by the inventory before, sorted
	unproven  map[chunk.ID]uint64 // missing by the inventory before, and how long they should be
}

func (s *Server) heartbeat(stream heartbeatStream) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	l, err := s.leading()
	if err != nil {
		return err
	}
	if !bytes.Equal(first.Cluster, s.cluster()) {
		return rpc.Error(rpc.WrongCluster, "this is cluster "+hexID(s.cluster()))
	}
	id := chunk.ServerID(first.Server)
	if !l.live.Heartbeat(id, first.Disks, first.BytesRead, first.BytesWritten) {
		return status.Errorf(codes.FailedPrecondition, "chunk server %d is not registered here", id)
	}
	h := &heartbeats{l: l, id: id, stream: stream, work: make(chan *pb.HeartbeatRequest, 8), poked: make(chan struct{}, 1), failed: make(chan error, 1), gone: make(chan struct{}), wanted: time.Now(), awaited: true}
	l.attach(h)
	defer l.detach(h)
	go h.receive(stream.Context()) // ends when gRPC ends the stream, which it does when this handler has returned
	if err := h.handle(first); err != nil {
		return err
	}
	for {
		select {
		case req := <-h.work:
			if err := h.handle(req); err != nil {
				return err
			}
		case <-h.poked:
			if err := h.tell(); err != nil {
				return err
			}
		case err := <-h.failed:
			if err == io.EOF {
				return nil
			}
			return err
		case <-h.gone:
			return h.why
		case <-l.ctx.Done():
			return s.notLeader()
		}
	}
}

// attach makes h the stream of its server, in place of an older one.
func (l *leader) attach(h *heartbeats) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.beats[h.id]; old != nil {
		old.end(status.Error(codes.Aborted, "the chunk server has a newer stream"))
	}
	l.beats[h.id] = h
}

// end makes the stream end with an error, unless it is to end already.
func (h *heartbeats) end(why error) {
	h.once.Do(func() {
		h.why = why
		close(h.gone)
	})
}

// cutOff ends the stream of a server that was removed, and tells it so.
func (l *leader) cutOff(id chunk.ServerID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.beats[id]; h != nil {
		h.end(removed(id))
	}
}

func (l *leader) detach(h *heartbeats) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.beats[h.id] == h {
		delete(l.beats, h.id)
	}
}

// receive notes at once that the server lives; what it says is handled in order after that.
func (h *heartbeats) receive(ctx context.Context) {
	for {
		req, err := h.stream.Recv()
		if err != nil {
			h.failed <- err
			return
		}
		if !h.l.live.Heartbeat(h.id, req.Disks, req.BytesRead, req.BytesWritten) {
			h.end(removed(h.id)) // while its stream began
		}
		h.l.repair.Deleted(h.id, req.Deleted)
		select {
		case h.work <- req:
		case <-ctx.Done():
			return
		}
	}
}

func (h *heartbeats) handle(req *pb.HeartbeatRequest) error {
	if err := h.finished(req.Deleted); err != nil {
		return err
	}
	if n := len(req.Corrupt); n > 0 {
		h.l.log.Error("a chunk server found shards of chunks damaged or missing; they are made anew", "server", h.id, "count", n, "first", chunk.ID(req.Corrupt[0]))
		if err := h.l.lost(h.id, ids(req.Corrupt), nil); err != nil {
			return err
		}
	}
	for _, o := range h.l.orderers {
		o.Copied(h.id, req.Copied)
	}
	h.l.scrubbed(h.id, req.Scrub)
	if err := h.take(req); err != nil {
		return err
	}
	return h.tell()
}

// tell sends the server what there is to do.
func (h *heartbeats) tell() error {
	l := h.l
	reply := &pb.HeartbeatReply{
		Term: l.term, Delete: h.order(time.Now()), Copies: l.orders(h.id), Check: l.takeChecks(h.id), CopyRate: l.copyRate(),
		EveryMs: uint32((l.s.cfg.SuspectAfter / beatsBeforeSuspect).Milliseconds()),
	}
	l.mu.Lock()
	reply.ScrubPass = l.scrubPass
	l.mu.Unlock()
	late := time.Since(h.wanted) > inventoryEvery
	if late || !h.awaited && l.auditWants(h.id) {
		reply.WantInventory = true
		h.wanted, h.awaited = time.Now(), true
	}
	return h.stream.Send(reply)
}

func ids(raw []uint64) []chunk.ID {
	out := make([]chunk.ID, len(raw))
	for i, id := range raw {
		out[i] = chunk.ID(id)
	}
	return out
}

// finished takes deletions that the server has done out of the state.
func (h *heartbeats) finished(ids []uint64) error {
	for _, id := range ids {
		delete(h.ordered, chunk.ID(id))
	}
	for batch := range slices.Chunk(ids, maxFinished) {
		if _, err := h.l.own(&pb.Op{Op: &pb.Op_FinishDeletions{FinishDeletions: &pb.FinishDeletions{Server: uint32(h.id), Chunks: batch}}}); err != nil {
			return err
		}
		h.l.s.metrics.deleted.Add(float64(len(batch)))
	}
	return nil
}

// deletions returns those of the state that are to be ordered next. Some that the server cannot do must not keep it from the
// others, so they have their turn only after these.
func (h *heartbeats) deletions(r kv.Reader, before int64) []chunk.ID {
	wrap := h.last != nil
	ids, last := namespace.DeletionsAfter(r, h.id, h.last, before, maxDeletions)
	if wrap && len(ids) < maxDeletions {
		var more []chunk.ID
		more, last = namespace.DeletionsAfter(r, h.id, nil, before, maxDeletions-len(ids))
		ids = append(ids, more...)
	}
	h.last = last
	return ids
}

// order returns chunks for the server to delete: those whose deletion is in the log since longer than any client can use
// what it cached, and orphans that were found that long ago. What it does not answer it is told again.
func (h *heartbeats) order(now time.Time) []uint64 {
	if len(h.ordered) > 0 && now.Sub(h.orderedAt) < deletionsAgain {
		return nil
	}
	l := h.l
	if len(h.ordered) == 0 { // all was answered: from the oldest again
		h.last = nil
	}
	h.ordered = map[chunk.ID]struct{}{}
	h.orderedAt = now
	if err := l.s.db.View(func(r kv.Reader) error {
		before := l.horizon.before(now, l.grace(), l.s.db.Applied())
		for _, id := range h.deletions(r, before) {
			h.ordered[id] = struct{}{}
		}
		if now.Sub(h.orphansAt) >= l.grace() {
			for len(h.orphans) > 0 && len(h.ordered) < maxDeletions {
				id := h.orphans[0]
				h.orphans = h.orphans[1:]
				if isOrphan(r, h.id, id) {
					h.ordered[id] = struct{}{}
				}
			}
		}
		return nil
	}); err != nil {
		return nil // the state failed: this metaserver is about to stop
	}
	ids := make([]uint64, 0, len(h.ordered))
	for id := range maps.Keys(h.ordered) {
		ids = append(ids, uint64(id))
	}
	slices.Sort(ids)
	return ids
}
