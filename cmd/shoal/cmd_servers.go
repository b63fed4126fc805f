package main

import (
	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
)

func newServers(c *cli) *cobra.Command {
	var asJSON bool
	list := func(cmd *cobra.Command, _ []string) error {
		return c.withFS(cmd.Context(), func(fsys *client.FS) error {
			servers, err := fsys.Servers(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(c.out, serversToJSON(servers))
			}
			return writeServers(c.out, servers)
		})
	}
	cmd := &cobra.Command{
		Use:   "servers [ls]",
		Short: "List the chunk servers",
		Args:  exactly(0, "nothing"),
		RunE:  list,
	}
	ls := &cobra.Command{Use: "ls", Short: "List the chunk servers", Args: exactly(0, "nothing"), RunE: list}
	for _, one := range []*cobra.Command{cmd, ls} {
		one.Flags().BoolVar(&asJSON, "json", false, "write JSON: an array with an object for each server")
	}
	cmd.AddCommand(ls)
	return cmd
}
