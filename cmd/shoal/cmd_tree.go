package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
)

func newTree(c *cli) *cobra.Command {
	var d drawing
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "tree [PATH…]",
		Short: "Draw trees of the cluster",
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := remotePaths(args)
			if err != nil {
				return err
			}
			return c.withFS(cmd.Context(), func(fsys *client.FS) error {
				out := bufio.NewWriter(c.out)
				d.tree, d.out = remoteTree{fsys}, out
				_, d.terminal = isTerminal(c.out)
				list := []jsonEntry{}
				for _, p := range paths {
					if asJSON {
						list = append(list, d.gatherTop(cmd.Context(), p)...)
					} else {
						d.drawTop(cmd.Context(), p)
					}
				}
				if asJSON {
					if err := writeJSON(out, list); err != nil {
						return err
					}
				} else {
					d.printf("\n%s, %s\n", plural(d.dirs, "directory"), plural(d.files, "file"))
				}
				if err := out.Flush(); err != nil {
					return err
				}
				return c.report(cmd, &d.failed)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&d.all, "all", "a", false, "show names that begin with a dot too")
	f.IntVarP(&d.levels, "level", "L", 0, "show only so many levels (0: all)")
	f.BoolVarP(&d.sizes, "size", "s", false, "show sizes")
	f.BoolVar(&asJSON, "json", false, "write JSON: an array of nested objects")
	return cmd
}

// drawing is a picture of trees in the making.
type drawing struct {
	tree        tree
	out         io.Writer
	terminal    bool
	all, sizes  bool
	levels      int
	dirs, files uint64
	failed      failures
}

func (d *drawing) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(d.out, format, args...); err != nil {
		d.failed.add(err)
	}
}

func (d *drawing) drawTop(ctx context.Context, p string) {
	e, err := d.tree.Stat(ctx, p)
	if err != nil {
		d.failed.addUnlessDone(ctx, at(d.tree, p, err))
		return
	}
	d.printf("%s\n", shown(d.tree.Show(p), d.terminal))
	if e.isDir() {
		d.draw(ctx, p, "", 1)
	}
}

// children lists what is to be shown of a directory.
func (d *drawing) children(ctx context.Context, p string) []*entry {
	list, err := d.tree.ReadDir(ctx, p)
	if err != nil {
		d.failed.addUnlessDone(ctx, at(d.tree, p, err))
	}
	var out []*entry
	for _, e := range list {
		if d.all || !strings.HasPrefix(e.Name, ".") {
			out = append(out, e)
		}
	}
	return out
}

func (d *drawing) draw(ctx context.Context, p, indent string, level int) {
	list := d.children(ctx, p)
	for i, e := range list {
		if ctx.Err() != nil {
			return
		}
		branch, below := "├── ", "│   "
		if i == len(list)-1 {
			branch, below = "└── ", "    "
		}
		name := shown(e.Name, d.terminal)
		if e.isSymlink() {
			name += " -> " + shown(e.LinkTarget, d.terminal)
		}
		if d.sizes {
			name = fmt.Sprintf("[%5s]  %s", humanSize(uint64(e.Size)), name)
		}
		d.printf("%s%s%s\n", indent, branch, name)
		if !e.isDir() {
			d.files++
			continue
		}
		d.dirs++
		if d.levels <= 0 || level < d.levels {
			d.draw(ctx, d.tree.Join(p, e.Name), indent+below, level+1)
		}
	}
}

func (d *drawing) gatherTop(ctx context.Context, p string) []jsonEntry {
	e, err := d.tree.Stat(ctx, p)
	if err != nil {
		d.failed.addUnlessDone(ctx, at(d.tree, p, err))
		return nil
	}
	return []jsonEntry{d.gather(ctx, p, e, 1)}
}

func (d *drawing) gather(ctx context.Context, p string, e *entry, level int) jsonEntry {
	j := toJSON(p, e)
	if !e.isDir() || (d.levels > 0 && level > d.levels) {
		return j
	}
	for _, child := range d.children(ctx, p) {
		if ctx.Err() != nil {
			return j
		}
		j.Children = append(j.Children, d.gather(ctx, d.tree.Join(p, child.Name), child, level+1))
	}
	return j
}
