package metaserver

import (
	"math"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	recheckAfter  = 30 * time.Second // an inventory that lacks copies is taken again
	maxPage       = 256 << 10        // reports in one message
	chunksPerView = 4096             // looked at in one View, which holds commands up
)

// isOrphan tells whether a server has something under a stored id that it should not: of a chunk that was given out once and
// is no more, or a shard that the record of a sealed chunk does not place there. What is still being written is never an
// orphan.
func isOrphan(r kv.Reader, server chunk.ServerID, stored chunk.ID) bool {
	if stored.Chunk() >= namespace.NextChunk(r) {
		return false
	}
	c, ok := namespace.Chunk(r, stored.Chunk())
	if !ok {
		// A record that is missing although the index of copies has one, or that cannot be read, is damage: no reason to delete.
		return !namespace.HasCopy(r, server, stored)
	}
	return c.Owner == 0 && !c.BelongsOn(server, stored)
}

// inventory is a listing of a server's chunks that is being received.
type inventory struct {
	began   time.Time
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
		h.inventory = &inventory{began: time.Now(), good: map[chunk.ID]uint32{}}
	}
	if h.inventory.reports += len(req.Inventory); h.inventory.reports > maxInventory {
		return status.Errorf(codes.InvalidArgument, "an inventory of more than %d chunks", maxInventory)
	}
	h.l.auditHears(h.id)
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
		h.awaited = false
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

// judge compares a complete inventory with the state. A copy counts as missing when two inventories in a row lack it, or have it
// shorter than was committed before the second was asked for: the state is newer than an inventory, and chunks grow.
func (h *heartbeats) judge() error {
	inv := h.inventory
	h.inventory = nil
	missing, err := h.missing(inv)
	if err != nil {
		return err
	}
	var proven []chunk.ID
	for id := range missing {
		if length, twice := h.unproven[id]; twice && inv.lacks(id, length) {
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
	slices.Sort(inv.orphans)
	kept := h.kept(inv.orphans)
	h.orphans, h.orphansAt, h.stray = inv.orphans, time.Now(), slices.Clone(inv.orphans)
	h.l.live.SetInventory(h.id, liveInventory(inv))
	h.report(inv, proven)
	slices.Sort(proven)
	short := map[chunk.ID]uint64{}
	for _, id := range proven {
		short[id] = missing[id]
	}
	if err := h.l.lost(h.id, inv.bad, short); err != nil {
		return err
	}
	h.l.audited(h.id, inv.began, len(missing)-len(proven), &audit{shards: len(inv.good), missing: proven, bad: inv.bad, kept: kept, foreign: inv.foreign, first: inv.first})
	return nil
}

// kept are the orphans that the server should have deleted since its last inventory.
func (h *heartbeats) kept(orphans []chunk.ID) []chunk.ID {
	if len(h.orphans) > 0 || len(h.ordered) > 0 && time.Since(h.orderedAt) < deletionsAgain || time.Since(h.orphansAt) < h.l.grace()+deletionsAgain {
		return nil // it was not told to, or not long ago
	}
	return slices.DeleteFunc(slices.Clone(h.stray), func(id chunk.ID) bool {
		_, still := slices.BinarySearch(orphans, id)
		return !still
	})
}

// lacks tells whether a shard is not listed, or shorter than length.
func (inv *inventory) lacks(id chunk.ID, length uint64) bool {
	n, listed := inv.good[id]
	return !listed || uint64(n) < length
}

// missing lists the copies that the state names and the inventory lacks, or has too short, with the length that they should have.
func (h *heartbeats) missing(inv *inventory) (map[chunk.ID]uint64, error) {
	out := map[chunk.ID]uint64{}
	for from, more := chunk.ID(0), true; more; {
		seen := 0
		more = false
		if err := h.l.s.db.View(func(r kv.Reader) error {
			namespace.CopiesFrom(r, h.id, from, func(id chunk.ID) bool {
				if seen++; seen > chunksPerView {
					from, more = id, true
					return false
				}
				c, ok := namespace.Chunk(r, id.Chunk())
				if !ok {
					return true
				}
				shard, length := c.ShardOn(h.id), c.Layout.ShardLength(c.Length)
				if shard >= 0 && c.Holds(shard) && c.Stored(shard) == id && inv.lacks(id, length) {
					out[id] = length
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
