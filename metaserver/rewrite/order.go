package rewrite

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// due is a shard to be ordered.
type due struct {
	j     *job
	shard int
}

// Orders returns what a server is to be told to make: what it was not told yet, and again what it did not answer.
func (e *Engine) Orders(id chunk.ServerID, limit int) []*pb.CopyOrder {
	list := e.due(id, min(limit, perServer), time.Now())
	if len(list) == 0 {
		return nil
	}
	servers := map[chunk.ServerID]*pb.ServerInfo{}
	for _, s := range e.cluster.Servers() {
		if s.State != pb.ServerState_SERVER_STATE_DEAD {
			servers[chunk.ServerID(s.Id)] = s
		}
	}
	var orders []*pb.CopyOrder
	size := 0
	if err := e.cluster.View(func(r kv.Reader) error {
		for _, d := range list {
			o, err := d.order(r, servers)
			if err != nil {
				e.fail(d.j, err)
				continue
			}
			if size += proto.Size(o); size > orderBytes && len(orders) > 0 {
				break
			}
			orders = append(orders, o)
			e.ordered(d)
		}
		return nil
	}); err != nil {
		return nil // the state failed: this metaserver is about to stop
	}
	return orders
}

// due returns the shards to be ordered from a server, the oldest first, so that it has at most so many to make, and bytes of them.
func (e *Engine) due(id chunk.ServerID, limit int, now time.Time) []due {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []due
	var bytes uint64
	for _, j := range e.jobs {
		if j.err != nil {
			continue
		}
		for i := range j.shards {
			s := &j.shards[i]
			switch {
			case s.server != id || !s.waiting() || now.Before(s.after):
			case now.Sub(s.ordered) < orderAgain:
				limit--
				bytes += j.layout.ShardLength(j.length)
			default:
				list = append(list, due{j, i})
			}
		}
	}
	slices.SortFunc(list, func(a, b due) int { return a.j.began.Compare(b.j.began) })
	n := 0
	for n < min(limit, len(list)) && bytes < bytesServer {
		bytes += list[n].j.layout.ShardLength(list[n].j.length)
		n++
	}
	return list[:n]
}

func (e *Engine) ordered(d due) {
	e.mu.Lock()
	defer e.mu.Unlock()
	d.j.shards[d.shard].ordered = time.Now()
}

// fail says that a job cannot be done.
func (e *Engine) fail(j *job, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if j.err == nil {
		j.err = err
		j.notify()
	}
}

func (j *job) notify() {
	select {
	case j.changed <- struct{}{}:
	default:
	}
}

// order says how a shard is made. All shards get the same ranges in the same order, or they would not belong together.
func (d due) order(r kv.Reader, servers map[chunk.ServerID]*pb.ServerInfo) (*pb.CopyOrder, error) {
	j := d.j
	o := &pb.CopyOrder{
		Stored: uint64(j.shards[d.shard].stored), Layout: j.layout.Proto(), Shard: uint32(d.shard), Length: j.layout.ShardLength(j.length),
		Ranges: make([]*pb.SourceRange, 0, len(j.spans)),
	}
	index := map[chunk.ID]uint32{}
	named := map[chunk.ServerID]bool{}
	for _, s := range j.spans {
		at, known := index[s.chunk]
		if !known {
			c, ok := namespace.Chunk(r, s.chunk)
			if !ok {
				return nil, fmt.Errorf("chunk %v was deleted while it was being rewritten", s.chunk)
			}
			at = uint32(len(o.Sources))
			index[s.chunk] = at
			info, alive := source(c, servers)
			if alive < c.Layout.Data {
				return nil, fmt.Errorf("%d of %v shards of chunk %v can be read", alive, c.Layout, c.ID)
			}
			o.Sources = append(o.Sources, info)
			for _, id := range info.Servers {
				if s := servers[chunk.ServerID(id)]; id != 0 && !named[chunk.ServerID(id)] {
					named[chunk.ServerID(id)] = true
					o.Servers = append(o.Servers, &pb.ServerInfo{Id: id, Address: s.Address})
				}
			}
		}
		o.Ranges = append(o.Ranges, &pb.SourceRange{Source: at, From: uint32(s.from), To: uint32(s.to)})
	}
	return o, nil
}

// source says where a chunk can be read, and how many of its shards.
func source(c *namespace.ChunkRecord, servers map[chunk.ServerID]*pb.ServerInfo) (info *pb.ChunkInfo, alive int) {
	info = &pb.ChunkInfo{Id: uint64(c.ID), Length: c.Length, Layout: c.Layout.Proto(), Servers: make([]uint32, len(c.Servers))}
	for shard, id := range c.Servers {
		if c.Holds(shard) && servers[id] != nil {
			info.Servers[shard] = uint32(id)
			alive++
		}
	}
	return info, alive
}

// Copied takes a server's answers to orders. Those that are none of its own it leaves alone.
func (e *Engine) Copied(id chunk.ServerID, answers []*pb.CopyResult) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, a := range answers {
		stored := chunk.ID(a.Stored)
		j := e.jobs[stored.Chunk()]
		if j == nil {
			continue
		}
		i := slices.IndexFunc(j.shards, func(s shard) bool { return s.server == id && s.stored == stored })
		if i < 0 || !j.shards[i].waiting() {
			continue
		}
		s := &j.shards[i]
		if a.Error == "" {
			s.made = true
			e.stats.Copied += a.Bytes
		} else {
			s.failed++
			s.ordered, s.after = time.Time{}, time.Now().Add(shardPause)
			e.log.Warn("a chunk server could not make a shard of a chunk that is rewritten", "server", id, "chunk", j.id, "shard", i, "tries", s.failed, "error", a.Error)
		}
		j.notify()
	}
}
