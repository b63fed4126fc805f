package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/internal/fserr"
)

type fsckOptions struct {
	repair, quiet, json bool
}

func newFsck(c *cli) *cobra.Command {
	var o fsckOptions
	cmd := &cobra.Command{
		Use:   "fsck [--repair]",
		Short: "Check the metadata, and what chunk servers hold against it",
		Long: `fsck checks the metadata of the cluster, and what every chunk server holds against it, while the cluster works. It writes a line
for each problem, and with --repair one for each that it repaired. What has lost its name gets its inode number as its name in
shoal:/lost+found.

The exit status is 0 when there is no problem or all were repaired, and 1 when problems are left or the check did not get to its end.
fsck reads no data: that is what scrub does.`,
		Args: exactly(0, "nothing"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withFS(cmd.Context(), func(fsys *client.FS) error { return c.fsck(cmd, fsys, o) })
		},
	}
	cmd.Flags().BoolVar(&o.repair, "repair", false, "repair what can be repaired")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "write problems only: nothing when there is none")
	cmd.Flags().BoolVar(&o.json, "json", false, "write JSON, when the check is over")
	return cmd
}

type jsonFsck struct {
	Clean    bool     `json:"clean"`    // nothing was found
	Left     int      `json:"left"`     // problems that were not repaired
	Problems []string `json:"problems"` // all that were found, but what was only told as repaired
	Repaired []string `json:"repaired"`
	Inodes   uint64   `json:"inodes"` // checked, as are the next two
	Chunks   uint64   `json:"chunks"`
	Shards   uint64   `json:"shards"`
}

func (c *cli) fsck(cmd *cobra.Command, fsys *client.FS, o fsckOptions) error {
	g := c.newGauge()
	defer g.stop()
	j := jsonFsck{Problems: []string{}, Repaired: []string{}}
	var writing error
	_, isTTY := isTerminal(c.out)
	lines := func(what string, list []string) {
		for _, text := range list {
			if writing == nil {
				writing = g.println(c.out, what+": "+shown(text, isTTY))
			}
		}
	}
	r, err := fsys.Fsck(cmd.Context(), o.repair, func(p client.FsckProgress) {
		if p.Phase != "" {
			g.show(p.Phase, p.Done, p.Total, countOf(p.Done, p.Total))
		}
		if o.json {
			j.Problems, j.Repaired = append(j.Problems, p.Problems...), append(j.Repaired, p.Repaired...)
			return
		}
		lines("problem", p.Problems)
		lines("repaired", p.Repaired)
	})
	g.stop()
	if err != nil {
		return plain(err)
	}
	j.Clean, j.Left, j.Inodes, j.Chunks, j.Shards = r.Found == 0, r.Left, r.Inodes, r.Chunks, r.Shards
	switch {
	case writing != nil:
		return writing
	case o.json:
		err = writeJSON(c.out, j)
	case !o.quiet:
		err = c.announce(verdict(r))
	}
	if err == nil && r.Left > 0 {
		return errReported // what is wrong is in the output
	}
	return err
}

// verdict sums a check up.
func verdict(r client.FsckResult) string {
	checked := fmt.Sprintf("%s, %s, %s checked", plural(r.Inodes, "inode"), plural(r.Chunks, "chunk"), plural(r.Shards, "shard"))
	switch {
	case r.Found == 0:
		return "clean: " + checked
	case r.Repaired == 0:
		return plural(uint64(r.Found), "problem") + ": " + checked
	}
	return fmt.Sprintf("%s, %d repaired, %d left: %s", plural(uint64(r.Found), "problem"), r.Repaired, r.Left, checked)
}

// countOf is how far a count is, of a total where that is known.
func countOf(done, total uint64) string {
	if total == 0 {
		return fmt.Sprint(done)
	}
	return fmt.Sprintf("%d / %d", done, total)
}

// plain takes out what names an operation and the root directory, for commands whose name says it already.
func plain(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	if said := (*fserr.Error)(nil); errors.As(err, &said) && said.Detail != "" {
		return errors.New(said.Detail)
	}
	return errors.New(reason(err))
}
