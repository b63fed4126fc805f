package liveness

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const gib = 1 << 30

func on(filesystem string, capacity, free uint64) *pb.DiskInfo {
	return &pb.DiskInfo{Filesystem: filesystem, Capacity: capacity, Free: free}
}

func with(disks ...*pb.DiskInfo) *pb.ServerInfo {
	return &pb.ServerInfo{State: healthy, Disks: disks}
}

func TestSpace(t *testing.T) {
	failed := on("b", 100*gib, 80*gib)
	failed.Error = "input/output error"
	gone := with(on("c", 100*gib, 80*gib))
	gone.State = dead
	for _, c := range []struct {
		name    string
		servers []*pb.ServerInfo
		copies  int
		want    Space
	}{
		{"no server", nil, 1, Space{}},
		{"one directory", []*pb.ServerInfo{with(on("a", 100*gib, 60*gib))}, 1, Space{100 * gib, 60 * gib, 100 * gib, 60 * gib}},
		{"three servers on one file system hold three copies on it",
			[]*pb.ServerInfo{with(on("a", 90*gib, 60*gib)), with(on("a", 90*gib, 60*gib)), with(on("a", 90*gib, 60*gib))}, 3,
			Space{90 * gib, 60 * gib, 30 * gib, 20 * gib}},
		{"three servers with disks of their own",
			[]*pb.ServerInfo{with(on("a", 90*gib, 60*gib)), with(on("b", 90*gib, 60*gib)), with(on("c", 90*gib, 60*gib))}, 3,
			Space{270 * gib, 180 * gib, 90 * gib, 60 * gib}},
		{"where names are not known each directory counts",
			[]*pb.ServerInfo{with(on("", 90*gib, 60*gib), on("", 90*gib, 60*gib)), with(on("", 90*gib, 60*gib))}, 1,
			Space{270 * gib, 180 * gib, 270 * gib, 180 * gib}},
		{"two directories of a server on one file system",
			[]*pb.ServerInfo{with(on("a", 90*gib, 61*gib), on("a", 90*gib, 60*gib)), with(on("b", 90*gib, 60*gib))}, 2,
			Space{180 * gib, 120 * gib, 90 * gib, 60 * gib}},
		{"the smallest of as many servers as copies decides",
			[]*pb.ServerInfo{with(on("a", 900*gib, 600*gib)), with(on("b", 90*gib, 60*gib)), with(on("c", 30*gib, 10*gib))}, 3,
			Space{1020 * gib, 670 * gib, 30 * gib, 10 * gib}},
		{"a large server holds one copy of all, the others share the second",
			[]*pb.ServerInfo{with(on("a", 900*gib, 600*gib)), with(on("b", 90*gib, 60*gib)), with(on("c", 30*gib, 10*gib))}, 2,
			Space{1020 * gib, 670 * gib, 120 * gib, 70 * gib}},
		{"two servers on one large file system hold two copies of all",
			[]*pb.ServerInfo{with(on("a", 900*gib, 600*gib)), with(on("a", 900*gib, 600*gib)), with(on("c", 30*gib, 10*gib))}, 3,
			Space{930 * gib, 610 * gib, 30 * gib, 10 * gib}},
		{"servers that share one with the next",
			[]*pb.ServerInfo{with(on("a", 30*gib, 30*gib)), with(on("a", 30*gib, 30*gib), on("b", 30*gib, 30*gib)), with(on("b", 30*gib, 30*gib))}, 2,
			Space{60 * gib, 60 * gib, 30 * gib, 30 * gib}},
		{"what is dead or failed does not count, and data has fewer copies without it",
			[]*pb.ServerInfo{with(on("a", 100*gib, 60*gib)), with(failed), gone}, 3, Space{100 * gib, 60 * gib, 100 * gib, 60 * gib}},
	} {
		if got := SpaceOf(c.servers, chunk.Copies(c.copies)); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// What fits is compared with the definition, tried out for each size.
func TestFits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shares := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) share {
			return share{rapid.Uint64Range(1, 4).Draw(t, "servers"), rapid.Uint64Range(0, 1000).Draw(t, "bytes")}
		}), 1, 6).Draw(t, "shares")
		servers := uint64(0)
		for _, s := range shares {
			servers += s.servers
		}
		copies := rapid.Uint64Range(1, min(servers, 5)).Draw(t, "copies")
		holds := func(n uint64) bool {
			room := uint64(0)
			for _, s := range shares {
				room += min(s.bytes, s.servers*n)
			}
			return room >= copies*n
		}
		most := uint64(0)
		for holds(most + 1) {
			most++
		}
		// Shares are compared in whole bytes for each server.
		if got := fits(append([]share(nil), shares...), copies); got < most || got > most+servers {
			t.Fatalf("%v in %d copies: %d bytes fit, want %d", shares, copies, got, most)
		}
	})
}

func TestServersShowEachFileSystemOnce(t *testing.T) {
	tr := New(Config{})
	tr.Add(Server{ID: 1})
	tr.Heartbeat(1, []*pb.DiskInfo{on("a", 1000, 500), on("a", 1000, 500), on("b", 100, 200)}, 0, 0)
	s := tr.Servers()[0]
	if s.Capacity != 1100 || s.Free != 600 || len(s.Disks) != 3 || s.Disks[0].Filesystem != "a" || s.Disks[2].Free != 100 {
		t.Fatalf("%v", s)
	}
	if c := tr.Candidates(1, nil); len(c) != 1 || c[0].Weight != 600 {
		t.Fatalf("%v", c)
	}
}

func BenchmarkSpaceOf(b *testing.B) {
	var servers []*pb.ServerInfo
	for i := range 1000 {
		servers = append(servers, with(on(fmt.Sprint(i), gib, gib), on(fmt.Sprint(i, "x"), gib, gib)))
	}
	for b.Loop() {
		SpaceOf(servers, chunk.Copies(3))
	}
}
