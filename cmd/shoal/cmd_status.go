package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

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
		Long: `status shows how the cluster is. Its first line says whether the data is safe and, if it is not as safe as it should be, when it
will be; then come what is wrong, space, and the servers. The exit status is 0 whenever the cluster answers.

With --json the object "redundancy" has that line (summary) and its numbers: of sealed chunks, how many are full (all their shards are
there), degraded (fewer, and one more loss does no harm), endangered (one more loss makes them unreadable) and unreadable; shards
being made (moving) and bytes left to copy. Only where "known" is true do they count all chunks. The object "rewriting" tells of bytes
in chunks that no file uses any more (garbage), what of them can be given back (reclaimable), and of 'shoal policy apply'.`,
		Args: exactly(0, "nothing"),
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
	Redundancy   *redundancy  `json:"redundancy,omitempty"` // from the leader only
	Rewriting    *rewriting   `json:"rewriting,omitempty"`  // likewise
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

type redundancy struct {
	Summary        string `json:"summary"`
	Known          bool   `json:"known"`
	Full           uint64 `json:"full"` // chunks, as are the next three
	Degraded       uint64 `json:"degraded"`
	Endangered     uint64 `json:"endangered"`
	Unreadable     uint64 `json:"unreadable"`
	Moving         uint64 `json:"moving"` // shards
	BytesLeft      uint64 `json:"bytes_left"`
	BytesPerSecond uint64 `json:"bytes_per_second"`
	ETASeconds     uint64 `json:"eta_seconds"` // 0: not known
	HeldBack       string `json:"held_back"`
	Drains         uint64 `json:"drains"`    // shards on servers that are being drained
	Misplaced      uint64 `json:"misplaced"` // what rebalancing would move
}

func statusToJSON(st *pb.StatusReply) jsonStatus {
	j := jsonStatus{
		Cluster: st.Cluster, Problems: append([]string{}, st.Problems...), Files: st.Inodes, Bytes: st.FileBytes, Chunks: st.Chunks,
		Deletions: st.Deletions, Sessions: st.Sessions, Available: st.GetSpace().GetAvailable(), RawSize: st.GetSpace().GetCapacity(),
		RawFree: st.GetSpace().GetFree(), Index: st.Index, Metaservers: []jsonMember{}, Chunkservers: serversToJSON(st.Servers),
	}
	if r := st.Redundancy; r != nil {
		j.Redundancy = &redundancy{r.Summary, r.Known, r.Full, r.Degraded, r.Endangered, r.Unreadable, r.Moving, r.BytesLeft, r.BytesPerSecond,
			r.EtaSeconds, r.HeldBack, r.Drains, r.Misplaced}
	}
	j.Rewriting = rewritingToJSON(st.Rewriting)
	if l := st.Layout; l != nil {
		layout := layoutToJSON(chunk.LayoutOf(l))
		j.Layout = &layout
	}
	for _, m := range st.Metaservers {
		j.Metaservers = append(j.Metaservers, jsonMember{m.Id, m.Address, m.Leader, m.State})
	}
	return j
}

func writeStatus(w io.Writer, st *pb.StatusReply) error {
	var b strings.Builder
	if s := st.GetRedundancy().GetSummary(); s != "" {
		b.WriteString(s + "\n\n")
	}
	fmt.Fprintf(&b, "cluster       %s\n", st.Cluster)
	if len(st.Problems) == 0 {
		b.WriteString("health        all is well\n")
	}
	for _, p := range st.Problems {
		fmt.Fprintf(&b, "PROBLEM       %s\n", p)
	}
	fmt.Fprintf(&b, "files         %d\n", st.Inodes)
	fmt.Fprintf(&b, "data          %s in %s\n", humanSize(st.FileBytes), plural(st.Chunks, "chunk"))
	b.WriteString(rewritingLines(st.Rewriting))
	fmt.Fprintf(&b, "still fits    %s\n", humanSize(st.GetSpace().GetAvailable()))
	fmt.Fprintf(&b, "raw space     %s free of %s\n", humanSize(st.GetSpace().GetFree()), humanSize(st.GetSpace().GetCapacity()))
	if l := st.Layout; l != nil {
		fmt.Fprintf(&b, "new data      %s\n", layoutString(l))
	}
	fmt.Fprintf(&b, "sessions      %d\n", st.Sessions)
	if st.Deletions > 0 {
		fmt.Fprintf(&b, "deletions     %s to be deleted\n", plural(st.Deletions, "chunk copy"))
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
	return fmt.Sprintf("%v, %s", layout, counts(layout.Min, layout.Width()))
}
