package main

import (
	"context"
	"errors"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/shoalfs/shoalfs/client"
)

func newRm(c *cli) *cobra.Command {
	var r remover
	cmd := &cobra.Command{
		Use:   "rm [-r] [-f] PATH…",
		Short: "Remove files and trees from the cluster",
		Long: `rm removes files, and with -r directories with all that is in them. What could not be removed is listed, and the exit
status is 1. The root of the cluster is not removed.`,
		Args: atLeast(1, "a path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := remotePaths(args)
			if err != nil {
				return err
			}
			for _, p := range paths {
				if p == "/" {
					return usagef("the root of the cluster cannot be removed")
				}
			}
			return c.withFS(cmd.Context(), func(fsys *client.FS) error {
				r.tree, r.parallel = remoteTree{fsys}, defaultParallel
				r.run(cmd.Context(), paths)
				return c.report(cmd, &r.failed)
			})
		},
	}
	cmd.Flags().BoolVarP(&r.recursive, "recursive", "r", false, "remove directories with all that is in them")
	cmd.Flags().BoolVarP(&r.force, "force", "f", false, "say nothing about paths that do not exist")
	return cmd
}

// remover removes files and trees, several files at a time, and goes on after a failure.
type remover struct {
	tree             tree
	recursive, force bool
	parallel         int
	failed           failures
}

func (r *remover) run(ctx context.Context, paths []string) {
	for _, p := range paths {
		e, err := r.tree.Lstat(ctx, p)
		switch {
		case errors.Is(err, syscall.ENOENT) && r.force:
		case err != nil:
			r.fail(ctx, p, err)
		case e.isDir() && !r.recursive:
			r.fail(ctx, p, errors.New("is a directory: remove it with -r"))
		case e.isDir():
			r.dir(ctx, p)
		default:
			r.one(ctx, p)
		}
	}
	if ctx.Err() != nil {
		r.failed.add(errors.New("interrupted: not everything was removed"))
	}
}

func (r *remover) fail(ctx context.Context, path string, err error) {
	r.failed.addUnlessDone(ctx, &pathError{r.tree.Show(path), err})
}

// dir removes a directory from below; what somebody else removed meanwhile is no failure.
func (r *remover) dir(ctx context.Context, path string) {
	list, err := r.tree.ReadDir(ctx, path)
	if err != nil && !errors.Is(err, syscall.ENOENT) {
		r.fail(ctx, path, err)
		return
	}
	before := r.failed.count
	var g errgroup.Group
	g.SetLimit(max(1, r.parallel))
	for _, e := range list {
		if ctx.Err() != nil {
			break
		}
		child := r.tree.Join(path, e.Name)
		if e.isDir() {
			r.dir(ctx, child)
			continue
		}
		g.Go(func() error {
			r.one(ctx, child)
			return nil
		})
	}
	_ = g.Wait() // its functions report to r.failed
	if r.failed.count == before && ctx.Err() == nil {
		r.one(ctx, path)
	}
}

func (r *remover) one(ctx context.Context, path string) {
	if err := r.tree.Remove(ctx, path); err != nil && !errors.Is(err, syscall.ENOENT) {
		r.fail(ctx, path, err)
	}
}
