package main

import (
	"bufio"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
)

func newCat(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "cat PATH…",
		Short: "Write files to standard output, one after the other",
		Long:  "cat writes the files named to standard output, one after the other. Local files and - (standard input) may be among them.",
		Args:  atLeast(1, "a path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withFS(cmd.Context(), func(fsys *client.FS) error {
				var failed failures
				for _, arg := range args {
					if err := c.catOne(cmd, fsys, parseLocation(arg)); err != nil {
						failed.add(err)
					}
				}
				return c.report(cmd, &failed)
			})
		},
	}
}

func (c *cli) catOne(cmd *cobra.Command, fsys *client.FS, l location) error {
	if l.std {
		return pump(cmd.Context(), c.out, bufio.NewReader(c.in), "standard output", "standard input")
	}
	return copyOut(cmd.Context(), treeOf(fsys, l), l, c.out)
}
