package main

import (
	"context"
	"errors"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
)

func newMv(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mv SOURCE… TARGET",
		Short: "Rename within the cluster, or move into or out of it",
		Long: `mv renames files and directories within the cluster, which takes one step however large they are and replaces a file
that has the new name. Between this machine and the cluster it copies like "shoal cp -r" and removes each source of which everything
was copied.

If TARGET is a directory, the sources go into it under their own names.`,
		Args: atLeast(2, "a source or the target"),
		RunE: func(cmd *cobra.Command, args []string) error { return c.mv(cmd, args) },
	}
	return cmd
}

func (c *cli) mv(cmd *cobra.Command, args []string) error {
	sources, target, err := splitArgs(args)
	if err != nil {
		return err
	}
	for _, l := range append(sources, target) {
		if l.std {
			return usagef("standard input and output cannot be moved")
		}
		if l != target && l.base == "" {
			return usagef("%s cannot be moved", quoted(l.String()))
		}
	}
	return c.withFS(cmd.Context(), func(fsys *client.FS) error {
		ctx := cmd.Context()
		src, dst := treeOf(fsys, sources[0]), treeOf(fsys, target)
		pairs, err := plan(ctx, dst, sources, target)
		if err != nil {
			return err
		}
		if !src.Same(dst) {
			return c.report(cmd, c.moveAcross(ctx, fsys, sources, target))
		}
		var failed failures
		for _, p := range pairs {
			if err := rename(ctx, dst, p); err != nil {
				failed.add(err)
			}
		}
		return c.report(cmd, &failed)
	})
}

func rename(ctx context.Context, t tree, p pair) error {
	from, err := t.Lstat(ctx, p.from)
	if err != nil {
		return &pathError{t.Show(p.from), err}
	}
	if p.dirOnly && !from.isDir() {
		return p.refuseFile(t)
	}
	switch at, err := t.Lstat(ctx, p.to); {
	case err == nil && at.ID == from.ID:
		return &pathError{t.Show(p.to), errors.New("source and target are the same file")}
	case err == nil && at.isDir() && !from.isDir():
		return &pathError{t.Show(p.to), errors.New("is a directory and stays: a file would replace it")}
	}
	if err := t.Rename(ctx, p.from, p.to); err != nil {
		if errors.Is(err, syscall.EINVAL) && within(p.to, p.from) {
			err = errors.New("cannot be moved into itself")
		}
		return &pathError{quoted(t.Show(p.from)) + " to " + quoted(t.Show(p.to)), err}
	}
	return nil
}

// moveAcross copies each source and removes it if all of it was copied.
func (c *cli) moveAcross(ctx context.Context, fsys *client.FS, sources []location, target location) *failures {
	var failed failures
	for _, s := range sources {
		f := c.copyTrees(ctx, fsys, []location{s}, target, copyOptions{recursive: true, parallel: defaultParallel})
		if f.count == 0 {
			r := remover{tree: treeOf(fsys, s), recursive: true, parallel: defaultParallel}
			r.run(ctx, []string{s.path})
			f = &r.failed
		}
		failed.list = append(failed.list, f.list...)
		failed.count += f.count
	}
	return &failed
}
