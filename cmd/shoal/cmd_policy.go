package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/internal/chunk"
)

func newPolicy(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Show how new data is stored",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q", args[0])
			}
			return nil
		},
		RunE: func(*cobra.Command, []string) error { return usagef("a command is missing: policy get PATH") },
	}
	var asJSON bool
	get := &cobra.Command{
		Use:   "get PATH",
		Short: "Show how data that is written to a file or directory from now on is stored",
		Long: `get shows how many copies of new data are made (replicas), and how many of these have to be there before a write counts
(min-copies). In this release one policy holds for the whole cluster.`,
		Args: exactly(1, "a path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := remotePath(args[0])
			if err != nil {
				return err
			}
			return c.withFS(cmd.Context(), func(fsys *client.FS) error {
				t := remoteTree{fsys}
				if _, err := t.Stat(cmd.Context(), p); err != nil {
					return at(t, p, err)
				}
				st, err := fsys.Status(cmd.Context())
				if err != nil {
					return err
				}
				switch {
				case st.Layout == nil:
					return errors.New("the metaserver does not say how data is stored")
				case asJSON:
					return writeJSON(c.out, jsonPolicy{p, layoutToJSON(chunk.LayoutOf(st.Layout))})
				}
				_, err = fmt.Fprintf(c.out, "%s: %s\n", t.Show(p), layoutString(st.Layout))
				return err
			})
		},
	}
	get.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	cmd.AddCommand(get)
	return cmd
}

type jsonPolicy struct {
	Path string `json:"path"`
	jsonLayout
}
