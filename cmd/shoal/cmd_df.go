package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
)

func newDf(c *cli) *cobra.Command {
	var human, asJSON bool
	cmd := &cobra.Command{
		Use:   "df [-h]",
		Short: "Show how much the cluster holds and how much still fits",
		Long: `df shows how many bytes of file data fit into the cluster, with as many copies as new data gets, and how many still do,
in units of 1024 bytes; and the raw space of the disks below. What other programs keep on these disks counts as used.`,
		Args: exactly(0, "nothing"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withFS(cmd.Context(), func(fsys *client.FS) error {
				s, err := fsys.StatFS(cmd.Context())
				if err != nil {
					return err
				}
				d := diskFree{Cluster: c.cluster, Size: s.Total, Used: s.Total - min(s.Total, s.Available), Available: s.Available,
					Files: s.Inodes, RawSize: s.Capacity, RawFree: s.Free}
				if asJSON {
					return writeJSON(c.out, d)
				}
				return table(c.out, [][]string{
					{"Filesystem", "Size", "Used", "Avail", "Use%", "Files", "Raw size", "Raw free"},
					{"shoal:/", blocks(d.Size, human), blocks(d.Used, human), blocks(d.Available, human), usePercent(d.Used, d.Available),
						fmt.Sprint(d.Files), blocks(d.RawSize, human), blocks(d.RawFree, human)},
				}, 1, 2, 3, 4, 5, 6, 7)
			})
		},
	}
	cmd.Flags().BoolVarP(&human, "human-readable", "h", false, "sizes such as 1.5K, 23M")
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON, sizes in bytes")
	longHelpOnly(cmd)
	return cmd
}

type diskFree struct {
	Cluster   string `json:"cluster"`
	Size      uint64 `json:"size"`
	Used      uint64 `json:"used"`
	Available uint64 `json:"available"`
	Files     uint64 `json:"files"`
	RawSize   uint64 `json:"raw_size"`
	RawFree   uint64 `json:"raw_free"`
}

// usePercent rounds up, as df(1) does.
func usePercent(used, available uint64) string {
	if used+available == 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", int((float64(used)/float64(used+available))*100+0.999999))
}
