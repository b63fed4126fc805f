package liveness

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Space is what disks hold, in bytes. A file system counts once, however many servers and data directories share it.
type Space struct {
	Capacity uint64 // raw
	Free     uint64 // raw, the reserve taken off
	// Total and Available are how much file data fits, and still fits, with all the shards wanted, no two of them on one
	// server. They are upper bounds: what placement makes of the space may come to less.
	Total     uint64
	Available uint64
}

// SpaceOf adds up the working disks of servers that are not dead. Where these are fewer than the shards wanted, data has as
// many as there are servers.
func SpaceOf(servers []*pb.ServerInfo, layout chunk.Layout) Space {
	var out Space
	var total, available []share
	n := uint64(0)
	for _, g := range groupsOf(servers) {
		n += g.servers
		out.Capacity += g.capacity
		out.Free += g.free
		total = append(total, share{g.servers, g.capacity})
		available = append(available, share{g.servers, g.free})
	}
	width, data := min(uint64(layout.Width()), n), uint64(layout.Data)
	out.Total, out.Available = fits(total, width)*data, fits(available, width)*data
	return out
}

// group is servers that share file systems, one with the next, and with none outside. Most are a single server.
type group struct {
	servers        uint64
	capacity, free uint64 // bytes, each file system once
}

// filesystem is one that data directories lie on.
type filesystem struct {
	server         int // one of those that use it
	capacity, free uint64
}

func groupsOf(servers []*pb.ServerInfo) []*group {
	var parent []int // of each server that has a working disk; a root is its own
	root := func(i int) int {
		for parent[i] != i {
			i = parent[i]
		}
		return i
	}
	var all []*filesystem
	byName := map[string]*filesystem{}
	for _, s := range servers {
		if s.State == pb.ServerState_SERVER_STATE_DEAD {
			continue
		}
		i := len(parent)
		for k, d := range s.Disks {
			if d.Error != "" {
				continue
			}
			if len(parent) == i {
				parent = append(parent, i)
			}
			name := d.Filesystem
			if name == "" { // not known: its own
				name = fmt.Sprintf("%d %d", i, k)
			}
			if f := byName[name]; f != nil {
				f.capacity, f.free = min(f.capacity, d.Capacity), min(f.free, d.Free)
				parent[root(i)] = root(f.server)
				continue
			}
			byName[name] = &filesystem{server: i, capacity: d.Capacity, free: d.Free}
			all = append(all, byName[name])
		}
	}
	groups := make([]*group, len(parent))
	for i := range parent {
		r := root(i)
		if groups[r] == nil {
			groups[r] = &group{}
		}
		groups[r].servers++
	}
	for _, f := range all {
		g := groups[root(f.server)]
		g.capacity += f.capacity
		g.free += f.free
	}
	return slices.DeleteFunc(groups, func(g *group) bool { return g == nil })
}

// share is space that some servers have together.
type share struct{ servers, bytes uint64 }

// fits returns how many bytes can be kept in so many copies, at most one on each server: the largest n for which the shares
// hold copies*n bytes although each holds at most n for every server. There have to be as many servers as copies.
func fits(shares []share, copies uint64) uint64 {
	if copies == 0 {
		return 0
	}
	var sum uint64
	for _, s := range shares {
		sum += s.bytes
	}
	slices.SortFunc(shares, func(a, b share) int { return cmp.Compare(b.bytes/b.servers, a.bytes/a.servers) })
	for _, s := range shares {
		// One with more than its servers can ever have of the data holds a copy of all of it for each of them, and the others
		// have to hold the rest of the copies.
		if s.servers >= copies || s.bytes/s.servers <= sum/copies {
			break
		}
		sum -= s.bytes
		copies -= s.servers
	}
	return sum / copies
}
