package metaserver

import (
	"bytes"
	"context"
	"io"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/chunk"
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
	recheckAfter   = 30 * time.Second // an inventory that lacks copies is taken again
	maxPage        = 256 << 10        // reports in one message
	chunksPerView  = 4096             // looked at in one View, which holds commands up
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
		return nil, rpc.ToStatus(err)
	}
	l.log.Info("a chunk server registered", "server", res.Server, "address", req.Address, "domain", req.Domain, "new", req.Server == 0)
	return &pb.RegisterReply{Cluster: res.Cluster, Server: res.Server}, nil
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
	gone   chan struct{} // closed when a newer stream of the server takes over
	once   sync.Once

	ordered   map[chunk.ID]struct{} // to be deleted, as told and not answered yet
	orderedAt time.Time
	inventory *inventory
	wanted    time.Time // when an inventory was last asked for, or sent unasked after connecting
	orphans   []chunk.ID
	orphansAt time.Time
	unproven  map[chunk.ID]struct{} // missing by the inventory before
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
	h := &heartbeats{l: l, id: id, stream: stream, work: make(chan *pb.HeartbeatRequest, 8), poked: make(chan struct{}, 1), failed: make(chan error, 1), gone: make(chan struct{}), wanted: time.Now()}
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
			return status.Error(codes.Aborted, "the chunk server has a newer stream")
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
		old.once.Do(func() { close(old.gone) })
	}
	l.beats[h.id] = h
}

// cutOff ends the stream of a server that was removed: when it registers again it is told so.
func (l *leader) cutOff(id chunk.ServerID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.beats[id]; h != nil {
		h.once.Do(func() { close(h.gone) })
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
		h.l.live.Heartbeat(h.id, req.Disks, req.BytesRead, req.BytesWritten)
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
		if err := h.l.lost(h.id, ids(req.Corrupt)); err != nil {
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
	}
	l.mu.Lock()
	reply.ScrubPass = l.scrubPass
	l.mu.Unlock()
	if time.Since(h.wanted) > inventoryEvery {
		reply.WantInventory = true
		h.wanted = time.Now()
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

// order returns chunks for the server to delete: those whose deletion is in the log since longer than any client can use
// what it cached, and orphans that were found that long ago. What it does not answer it is told again.
func (h *heartbeats) order(now time.Time) []uint64 {
	if len(h.ordered) > 0 && now.Sub(h.orderedAt) < deletionsAgain {
		return nil
	}
	l := h.l
	h.ordered = map[chunk.ID]struct{}{}
	h.orderedAt = now
	if err := l.s.db.View(func(r kv.Reader) error {
		before := l.horizon.before(now, l.grace(), l.s.db.Applied())
		for _, id := range namespace.Deletions(r, h.id, before, maxDeletions) {
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

// isOrphan tells whether a server has something under a stored id that it should not: of a chunk that was given out once and
// is no more, or a shard that the record of a sealed chunk does not place there. What is still being written is never an
// orphan.
func isOrphan(r kv.Reader, server chunk.ServerID, stored chunk.ID) bool {
	if stored.Chunk() >= namespace.NextChunk(r) {
		return false
	}
	c, ok := namespace.Chunk(r, stored.Chunk())
	return !ok || c.Owner == 0 && !c.BelongsOn(server, stored)
}

// inventory is a listing of a server's chunks that is being received.
type inventory struct {
	reports int                 // taken so far
	good    map[chunk.ID]uint32 // length of each shard that the server does not call bad
	bad     []chunk.ID
	foreign uint64
	first   chunk.ID // of the foreign ones
	orphans []chunk.ID
}

const maxInventory = 32 << 20 // chunks of one server

// take takes a page of an inventory, and judges it when it is complete.
func (h *heartbeats) take(req *pb.HeartbeatRequest) error {
	if len(req.Inventory) == 0 && !req.InventoryEnd {
		return nil
	}
	if len(req.Inventory) > maxPage {
		return status.Errorf(codes.InvalidArgument, "an inventory page of %d chunks, at most %d", len(req.Inventory), maxPage)
	}
	if h.inventory == nil {
		h.inventory = &inventory{good: map[chunk.ID]uint32{}}
	}
	if h.inventory.reports += len(req.Inventory); h.inventory.reports > maxInventory {
		return status.Errorf(codes.InvalidArgument, "an inventory of more than %d chunks", maxInventory)
	}
	// The state must be newer than the page: a chunk is in it before any server can have it.
	if err := h.l.s.node.ReadIndex(h.l.ctx); err != nil {
		return err
	}
	for part := range slices.Chunk(req.Inventory, chunksPerView) {
		if err := h.l.s.db.View(func(r kv.Reader) error { h.inventory.page(r, h.id, part); return nil }); err != nil {
			return err
		}
	}
	if req.InventoryEnd {
		return h.judge()
	}
	return nil
}

func (inv *inventory) page(r kv.Reader, server chunk.ServerID, reports []*pb.ChunkReport) {
	next := namespace.NextChunk(r)
	for _, c := range reports {
		id := chunk.ID(c.Id)
		switch {
		case id.Chunk() >= next || id.Chunk() == 0:
			if inv.foreign == 0 {
				inv.first = id
			}
			inv.foreign++
		case isOrphan(r, server, id):
			inv.orphans = append(inv.orphans, id)
		case c.Bad:
			inv.bad = append(inv.bad, id)
		default:
			inv.good[id] = uint32(min(c.Length, math.MaxUint32))
		}
	}
}

// judge compares a complete inventory with the state. A copy counts as missing when two inventories in a row lack it: the
// first may have been listed before the chunk was written.
func (h *heartbeats) judge() error {
	inv := h.inventory
	h.inventory = nil
	missing, err := h.missing(inv)
	if err != nil {
		return err
	}
	var proven []chunk.ID
	for id := range missing {
		if _, twice := h.unproven[id]; twice {
			proven = append(proven, id)
		}
	}
	if len(missing) > len(proven) {
		again := recheckAfter
		if h.unproven == nil {
			again = 0
		}
		h.wanted = time.Now().Add(again - inventoryEvery)
	}
	h.unproven = missing
	h.orphans, h.orphansAt = inv.orphans, time.Now()
	h.l.live.SetInventory(h.id, liveInventory(inv))
	h.report(inv, proven)
	slices.Sort(proven)
	return h.l.lost(h.id, slices.Concat(inv.bad, proven))
}

// missing lists the copies that the state names and the inventory lacks, or has too short.
func (h *heartbeats) missing(inv *inventory) (map[chunk.ID]struct{}, error) {
	out := map[chunk.ID]struct{}{}
	for from, more := chunk.ID(0), true; more; {
		seen := 0
		more = false
		if err := h.l.s.db.View(func(r kv.Reader) error {
			namespace.CopiesFrom(r, h.id, from, func(id chunk.ID) bool {
				if seen++; seen > chunksPerView {
					from, more = id, true
					return false
				}
				length, listed := inv.good[id]
				c, ok := namespace.Chunk(r, id.Chunk())
				if !ok {
					return true
				}
				shard := c.ShardOn(h.id)
				if shard >= 0 && c.Holds(shard) && c.Stored(shard) == id && (!listed || uint64(length) < c.Layout.ShardLength(c.Length)) {
					out[id] = struct{}{}
				}
				return true
			})
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (h *heartbeats) report(inv *inventory, missing []chunk.ID) {
	log := h.l.log.With("server", h.id)
	log.Info("took a chunk server's inventory", "chunks", len(inv.good), "orphans", len(inv.orphans), "bad", len(inv.bad), "missing", len(missing), "foreign", inv.foreign)
	if len(missing) > 0 {
		log.Error("a chunk server lacks shards of chunks, or has them too short; they are made anew", "count", len(missing), "example", missing[0])
	}
	if inv.foreign > 0 {
		log.Error("a chunk server holds chunks that this cluster never gave out; they are left alone. Was the metadata restored from an old copy?", "count", inv.foreign, "example", inv.first)
	}
}
