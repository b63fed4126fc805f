package main

import (
	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/fuse"
)

func newUmount(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "umount DIR…",
		Short: "Take a mount away, also one whose process has died",
		Long: `umount takes away mounts of shoalfs. The processes that served them commit what is open; "shoal mount" then ends, "shoal up"
goes on without its mount. A mount whose process has died is taken away too, even while programs stand in it.`,
		Args: atLeast(1, "the directory of a mount"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var failed failures
			for _, dir := range args {
				if err := fuse.Unmount(dir); err != nil {
					failed.add(err)
				}
			}
			return c.report(cmd, &failed)
		},
	}
}
