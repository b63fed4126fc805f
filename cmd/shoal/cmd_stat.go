package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
)

func newStat(c *cli) *cobra.Command {
	var follow, asJSON bool
	cmd := &cobra.Command{
		Use:   "stat PATH…",
		Short: "Show all that is known about files of the cluster",
		Args:  atLeast(1, "a path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := remotePaths(args)
			if err != nil {
				return err
			}
			return c.withFS(cmd.Context(), func(fsys *client.FS) error {
				t := remoteTree{fsys}
				stat := t.Lstat
				if follow {
					stat = t.Stat
				}
				var failed failures
				var n names
				list := []jsonEntry{}
				for _, p := range paths {
					e, err := stat(cmd.Context(), p)
					switch {
					case err != nil:
						failed.add(at(t, p, err))
						continue
					case asJSON:
						list = append(list, toJSON(p, e))
						continue
					}
					if err := writeStat(c.out, t.Show(p), e, &n); err != nil {
						return err
					}
				}
				if asJSON {
					if err := writeJSON(c.out, list); err != nil {
						return err
					}
				}
				return c.report(cmd, &failed)
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "dereference", "L", false, "show what a symlink points to")
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON: an array with an object for each path")
	return cmd
}

func writeStat(w io.Writer, path string, e *entry, n *names) error {
	name := path
	if e.isSymlink() {
		name += " -> " + e.LinkTarget
	}
	stamp := func(t time.Time) string { return t.Format("2006-01-02 15:04:05.000000000 -0700") }
	_, err := fmt.Fprintf(w, `  File: %s
  Type: %s
  Size: %s, %d allocated
 Inode: %d, %s
  Mode: %04o/%s  owner %d/%s  group %d/%s
Access: %s
Modify: %s
Change: %s
 Birth: %s
`, name, kindName(e.Mode), plural(uint64(e.Size), "byte"), e.Allocated, e.ID.ino, plural(e.Nlink, "link"), e.permBits(), modeString(e.Mode), e.UID, n.user(e.UID), e.GID, n.group(e.GID),
		stamp(e.Atime), stamp(e.Mtime), stamp(e.Ctime), stamp(e.Btime))
	return err
}
