package main

import (
	"cmp"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

type jsonServer struct {
	ID           uint32            `json:"id"`
	Address      string            `json:"address"`
	State        string            `json:"state"`    // healthy, suspect or dead
	Draining     bool              `json:"draining"` // whatever the state
	Problem      string            `json:"problem,omitempty"`
	Progress     string            `json:"progress,omitempty"` // of a drain or a scrub
	Domain       map[string]string `json:"domain,omitempty"`
	Capacity     uint64            `json:"capacity"`
	Free         uint64            `json:"free"`
	Shards       uint64            `json:"shards"` // that metadata places there
	Chunks       uint64            `json:"chunks"` // files of shards on its disks, those to be deleted included
	LastSeenMS   uint64            `json:"last_seen_ms"`
	BytesRead    uint64            `json:"bytes_read"`
	BytesWritten uint64            `json:"bytes_written"`
	Disks        []jsonDisk        `json:"disks"`
}

type jsonDisk struct {
	Path     string `json:"path"`
	Capacity uint64 `json:"capacity"`
	Free     uint64 `json:"free"`
	Chunks   uint64 `json:"chunks"`
	Error    string `json:"error,omitempty"`
}

func serversToJSON(list []*pb.ServerInfo) []jsonServer {
	out := []jsonServer{}
	for _, s := range byID(list) {
		j := jsonServer{
			ID: s.Id, Address: s.Address, State: serverState(s.State), Draining: s.Draining, Problem: s.Problem, Progress: s.Progress,
			Domain: s.Domain, Capacity: s.Capacity, Free: s.Free, Shards: s.Shards, Chunks: s.Chunks, LastSeenMS: s.LastSeenMs,
			BytesRead: s.BytesRead, BytesWritten: s.BytesWritten, Disks: []jsonDisk{},
		}
		for _, d := range s.Disks {
			j.Disks = append(j.Disks, jsonDisk{d.Path, d.Capacity, d.Free, d.Chunks, d.Error})
		}
		out = append(out, j)
	}
	return out
}

func byID(list []*pb.ServerInfo) []*pb.ServerInfo {
	return slices.SortedFunc(slices.Values(list), func(a, b *pb.ServerInfo) int { return cmp.Compare(a.Id, b.Id) })
}

func serverState(s pb.ServerState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "SERVER_STATE_"))
}

// stateOf is the state as one word: that a server is being drained matters more than that it is healthy.
func stateOf(s *pb.ServerInfo) string {
	switch {
	case !s.Draining:
		return serverState(s.State)
	case s.State == pb.ServerState_SERVER_STATE_HEALTHY:
		return "draining"
	}
	return serverState(s.State) + ",draining"
}

func writeServers(w io.Writer, list []*pb.ServerInfo) error {
	rows := [][]string{{"ID", "Address", "State", "Seen", "Shards", "Capacity", "Free", "Use%", "Where", "Problem or progress"}}
	for _, s := range byID(list) {
		rows = append(rows, []string{strconv.FormatUint(uint64(s.Id), 10), s.Address, stateOf(s), seen(s), strconv.FormatUint(s.Shards, 10),
			humanSize(s.Capacity), humanSize(s.Free), usePercent(s.Capacity-min(s.Capacity, s.Free), s.Free), where(s.Domain), joined("; ", s.Problem, s.Progress)})
	}
	return table(w, rows, 0, 4, 5, 6, 7)
}

func seen(s *pb.ServerInfo) string {
	if s.LastSeenMs < 2000 {
		return "now"
	}
	return (time.Duration(s.LastSeenMs) * time.Millisecond).Round(time.Second).String() + " ago"
}

func where(domain map[string]string) string {
	var parts []string
	for k, v := range domain {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, ",")
}

// joined puts together what is not empty.
func joined(sep string, parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), sep)
}
