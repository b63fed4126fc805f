package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func newStatus(c *cli) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the cluster is, and what is wrong",
		Long:  "status shows servers, space and what is wrong. The exit status is 0 whenever the cluster answers.",
		Args:  exactly(0, "nothing"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withFS(cmd.Context(), func(fsys *client.FS) error {
				st, err := fsys.Status(cmd.Context())
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(c.out, statusToJSON(st))
				}
				return writeStatus(c.out, st)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON, sizes in bytes")
	return cmd
}

type jsonStatus struct {
	Cluster      string       `json:"cluster"`
	Problems     []string     `json:"problems"`
	Files        uint64       `json:"files"`  // inodes
	Bytes        uint64       `json:"bytes"`  // of file data
	Chunks       uint64       `json:"chunks"` //
	Deletions    uint64       `json:"deletions"`
	Sessions     uint64       `json:"sessions"`
	Available    uint64       `json:"available"` // bytes of file data that still fit
	RawSize      uint64       `json:"raw_size"`
	RawFree      uint64       `json:"raw_free"`
	Index        uint64       `json:"index"`
	Layout       *jsonLayout  `json:"layout,omitempty"`
	Metaservers  []jsonMember `json:"metaservers"`
	Chunkservers []jsonServer `json:"chunkservers"`
}

type jsonLayout struct {
	Policy    string `json:"policy"`
	Data      int    `json:"data_shards"`
	Parity    int    `json:"parity_shards"`
	MinCopies int    `json:"min_copies"`
}

func layoutToJSON(l chunk.Layout) jsonLayout { return jsonLayout{l.String(), l.Data, l.Parity, l.Min} }

type jsonMember struct {
	ID      uint64 `json:"id"`
	Address string `json:"address"`
	Leader  bool   `json:"leader"`
	State   string `json:"state"`
}

type jsonServer struct {
	ID           uint32            `json:"id"`
	Address      string            `json:"address"`
	State        string            `json:"state"`
	Problem      string            `json:"problem,omitempty"`
	Domain       map[string]string `json:"domain,omitempty"`
	Capacity     uint64            `json:"capacity"`
	Free         uint64            `json:"free"`
	Chunks       uint64            `json:"chunks"`
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

func statusToJSON(st *pb.StatusReply) jsonStatus {
	j := jsonStatus{
		Cluster: st.Cluster, Problems: append([]string{}, st.Problems...), Files: st.Inodes, Bytes: st.FileBytes, Chunks: st.Chunks,
		Deletions: st.Deletions, Sessions: st.Sessions, Available: st.GetSpace().GetAvailable(), RawSize: st.GetSpace().GetCapacity(),
		RawFree: st.GetSpace().GetFree(), Index: st.Index, Metaservers: []jsonMember{}, Chunkservers: serversToJSON(st.Servers),
	}
	if l := st.Layout; l != nil {
		layout := layoutToJSON(chunk.LayoutOf(l))
		j.Layout = &layout
	}
	for _, m := range st.Metaservers {
		j.Metaservers = append(j.Metaservers, jsonMember{m.Id, m.Address, m.Leader, m.State})
	}
	return j
}

func serversToJSON(list []*pb.ServerInfo) []jsonServer {
	out := []jsonServer{}
	for _, s := range byID(list) {
		j := jsonServer{
			ID: s.Id, Address: s.Address, State: serverState(s.State), Problem: s.Problem, Domain: s.Domain, Capacity: s.Capacity, Free: s.Free,
			Chunks: s.Chunks, LastSeenMS: s.LastSeenMs, BytesRead: s.BytesRead, BytesWritten: s.BytesWritten, Disks: []jsonDisk{},
		}
		for _, d := range s.Disks {
			j.Disks = append(j.Disks, jsonDisk{d.Path, d.Capacity, d.Free, d.Chunks, d.Error})
		}
		out = append(out, j)
	}
	return out
}

func byID(list []*pb.ServerInfo) []*pb.ServerInfo {
	return slices.SortedFunc(slices.Values(list), func(a, b *pb.ServerInfo) int { return int(a.Id) - int(b.Id) })
}

func serverState(s pb.ServerState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "SERVER_STATE_"))
}

func writeStatus(w io.Writer, st *pb.StatusReply) error {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster       %s\n", st.Cluster)
	if len(st.Problems) == 0 {
		b.WriteString("health        all is well\n")
	}
	for _, p := range st.Problems {
		fmt.Fprintf(&b, "PROBLEM       %s\n", p)
	}
	fmt.Fprintf(&b, "files         %d\n", st.Inodes)
	fmt.Fprintf(&b, "data          %s in %d chunks\n", humanSize(st.FileBytes), st.Chunks)
	fmt.Fprintf(&b, "still fits    %s\n", humanSize(st.GetSpace().GetAvailable()))
	fmt.Fprintf(&b, "raw space     %s free of %s\n", humanSize(st.GetSpace().GetFree()), humanSize(st.GetSpace().GetCapacity()))
	if l := st.Layout; l != nil {
		fmt.Fprintf(&b, "new data      %s\n", layoutString(l))
	}
	fmt.Fprintf(&b, "sessions      %d\n", st.Sessions)
	if st.Deletions > 0 {
		fmt.Fprintf(&b, "deletions     %d chunk copies wait to be deleted\n", st.Deletions)
	}
	b.WriteString("\nmetaservers\n")
	rows := [][]string{}
	for _, m := range st.Metaservers {
		role := m.State
		if m.Leader {
			role = "leads"
		}
		rows = append(rows, []string{"  " + strconv.FormatUint(m.Id, 10), m.Address, role})
	}
	if err := table(&b, rows); err != nil {
		return err
	}
	b.WriteString("\nchunk servers\n")
	if err := writeServers(&b, st.Servers); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func layoutString(l *pb.Layout) string {
	layout := chunk.LayoutOf(l)
	layout.Cell = 0
	return fmt.Sprintf("%v, %d of %d before a write counts", layout, layout.Min, layout.Width())
}

func writeServers(w io.Writer, list []*pb.ServerInfo) error {
	rows := [][]string{{"ID", "Address", "State", "Seen", "Capacity", "Free", "Chunks", "Where", "Problem"}}
	for _, s := range byID(list) {
		seen := "now"
		if s.LastSeenMs >= 2000 {
			seen = (time.Duration(s.LastSeenMs) * time.Millisecond).Round(time.Second).String() + " ago"
		}
		rows = append(rows, []string{strconv.FormatUint(uint64(s.Id), 10), s.Address, serverState(s.State), seen, humanSize(s.Capacity), humanSize(s.Free),
			strconv.FormatUint(s.Chunks, 10), where(s.Domain), s.Problem})
	}
	return table(w, rows, 0, 4, 5, 6)
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
