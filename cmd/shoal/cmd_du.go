package main

import (
	"bufio"
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
)

func newDu(c *cli) *cobra.Command {
	u := usage{maxDepth: -1}
	var summarize, asJSON bool
	cmd := &cobra.Command{
		Use:   "du [-s] [-h] [PATH…]",
		Short: "Sum up the space that trees of the cluster take",
		Long: `du sums up the data of each directory and all below it, in units of 1024 bytes, counting a file with several names once.
One copy of the data is counted, whatever the number of copies kept.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := remotePaths(args)
			if err != nil {
				return err
			}
			if summarize {
				u.maxDepth = 0
			}
			return c.withFS(cmd.Context(), func(fsys *client.FS) error {
				out := bufio.NewWriter(c.out)
				u.tree, u.seen, u.list = remoteTree{fsys}, map[fileID]bool{}, []jsonUsage{}
				if !asJSON {
					u.out = out
				}
				for _, p := range paths {
					u.path(cmd.Context(), p)
				}
				if asJSON {
					if err := writeJSON(out, u.list); err != nil {
						return err
					}
				}
				if err := out.Flush(); err != nil {
					return err
				}
				return c.report(cmd, &u.failed)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&summarize, "summarize", "s", false, "one line for each path")
	f.BoolVarP(&u.human, "human-readable", "h", false, "sizes such as 1.5K, 23M")
	f.BoolVarP(&u.apparent, "apparent-size", "b", false, "lengths in bytes instead of the space that is taken")
	f.BoolVarP(&u.files, "all", "a", false, "show files too")
	f.IntVarP(&u.maxDepth, "max-depth", "d", -1, "show only so many levels below each path")
	f.BoolVar(&asJSON, "json", false, "write JSON: an array with an object for each line")
	longHelpOnly(cmd)
	return cmd
}

// jsonUsage is a line of du. Bytes counts as asked for: the space taken, or the lengths.
type jsonUsage struct {
	Path  string `json:"path"`
	Bytes uint64 `json:"bytes"`
	Files uint64 `json:"files"` // all that is not a directory
}

// usage sums up trees.
type usage struct {
	tree                   tree
	out                    io.Writer // nil: gather the list
	list                   []jsonUsage
	seen                   map[fileID]bool // files with several names that were counted already
	human, apparent, files bool
	maxDepth               int // levels shown; below 0: all
	failed                 failures
}

func (u *usage) path(ctx context.Context, p string) {
	e, err := u.tree.Lstat(ctx, p)
	if err != nil {
		u.failed.addUnlessDone(ctx, at(u.tree, p, err))
		return
	}
	if e.isDir() {
		u.dir(ctx, p, 0)
		return
	}
	n, files := u.one(e)
	u.line(jsonUsage{p, n, files})
}

func (u *usage) dir(ctx context.Context, p string, depth int) (bytes, files uint64) {
	list, err := u.tree.ReadDir(ctx, p)
	if err != nil {
		u.failed.addUnlessDone(ctx, at(u.tree, p, err))
	}
	deeper := u.maxDepth < 0 || depth < u.maxDepth
	for _, e := range list {
		if ctx.Err() != nil {
			return bytes, files
		}
		child := u.tree.Join(p, e.Name)
		var n, f uint64
		if e.isDir() {
			n, f = u.dir(ctx, child, depth+1)
		} else if n, f = u.one(e); u.files && deeper && f > 0 {
			u.line(jsonUsage{child, n, f})
		}
		bytes += n
		files += f
	}
	if u.maxDepth < 0 || depth <= u.maxDepth {
		u.line(jsonUsage{p, bytes, files})
	}
	return bytes, files
}

// one counts a file, unless it was counted under another name.
func (u *usage) one(e *entry) (bytes, files uint64) {
	if e.Nlink > 1 {
		if u.seen[e.ID] {
			return 0, 0
		}
		u.seen[e.ID] = true
	}
	if u.apparent {
		return uint64(e.Size), 1
	}
	return uint64(e.Allocated), 1
}

func (u *usage) line(j jsonUsage) {
	if u.out == nil {
		u.list = append(u.list, j)
		return
	}
	size := blocks(j.Bytes, u.human)
	if u.apparent && !u.human {
		size = fmt.Sprint(j.Bytes)
	}
	if _, err := fmt.Fprintf(u.out, "%s\t%s\n", size, u.tree.Show(j.Path)); err != nil {
		u.failed.add(err)
	}
}
