package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
)

func newCp(c *cli) *cobra.Command {
	var o copyOptions
	cmd := &cobra.Command{
		Use:   "cp [-r] SOURCE… TARGET",
		Short: "Copy files and trees into, out of and within the cluster",
		Long: `cp copies files, and with -r trees, between this machine and the cluster, or within the cluster.

Paths in the cluster are written shoal:/path, local ones as usual, - is standard input or output.

If TARGET is a directory the copies go into it, under the names of their sources; otherwise there is one source and TARGET is
the name of the copy. Modes and times are always kept (-p is --parallel, not what cp(1) means by it). Set-user-id and
set-group-id bits are kept only where the copy has the owner and group of its original. With -r symlinks are copied as
symlinks, FIFOs and device nodes made anew where that is permitted, and hard links become files of their own.

Several files are copied at a time (--parallel). A file gets its name when it is whole: until then, and after an
interruption, what was there before stays as it was. What could not be copied is listed at the end, and the exit status is 1.`,
		Example: `  shoal cp report.pdf shoal:/docs/
  shoal cp -r photos shoal:/photos
  shoal cp -r shoal:/photos backup
  tar c src | shoal cp - shoal:/src.tar`,
		Args: atLeast(2, "a source or the target"),
		RunE: func(cmd *cobra.Command, args []string) error { return c.cp(cmd, args, o) },
	}
	cmd.Flags().BoolVarP(&o.recursive, "recursive", "r", false, "copy directories with all that is in them")
	cmd.Flags().IntVarP(&o.parallel, "parallel", "p", defaultParallel, "how many files to copy at a time")
	return cmd
}

type copyOptions struct {
	recursive bool
	parallel  int
}

func (c *cli) cp(cmd *cobra.Command, args []string, o copyOptions) error {
	sources, target, err := splitArgs(args)
	if err != nil {
		return err
	}
	if o.parallel < 1 || o.parallel > maxParallel {
		return usagef("--parallel %d: want 1 to %d", o.parallel, maxParallel)
	}
	return c.withFS(cmd.Context(), func(fsys *client.FS) error {
		ctx := cmd.Context()
		switch {
		case target.std:
			return copyOut(ctx, treeOf(fsys, sources[0]), sources[0], c.out)
		case sources[0].std:
			return copyIn(ctx, treeOf(fsys, target), c.in, target)
		}
		return c.report(cmd, c.copyTrees(ctx, fsys, sources, target, o))
	})
}

// splitArgs reads SOURCE… TARGET.
func splitArgs(args []string) (sources []location, target location, err error) {
	anyRemote := false
	for _, a := range args {
		l := parseLocation(a)
		anyRemote = anyRemote || l.remote
		sources = append(sources, l)
	}
	target, sources = sources[len(sources)-1], sources[:len(sources)-1]
	if !anyRemote {
		return nil, target, usagef("neither source nor target is in the cluster: paths there are written shoal:/path")
	}
	for _, s := range sources {
		if (s.std || target.std) && (len(sources) > 1 || s.std == target.std) {
			return nil, target, usagef("standard input or output (-) goes with exactly one other path")
		}
		if target.remote && s.remote != sources[0].remote || !target.remote && !target.std && !s.remote {
			return nil, target, usagef("%s: all sources have to be on one side, and one of source and target in the cluster", quoted(s.String()))
		}
	}
	return sources, target, nil
}

func treeOf(fsys *client.FS, l location) tree {
	if l.remote {
		return remoteTree{fsys}
	}
	return localTree{}
}

// copyTrees copies and returns what failed.
func (c *cli) copyTrees(ctx context.Context, fsys *client.FS, sources []location, target location, o copyOptions) *failures {
	cp := &copier{src: treeOf(fsys, sources[0]), dst: treeOf(fsys, target), parallel: o.parallel, recursive: o.recursive}
	pairs, err := plan(ctx, cp.dst, sources, target)
	if err != nil {
		cp.failed.add(err)
		return &cp.failed
	}
	if _, ok := isTerminal(c.out); ok {
		if _, ok := isTerminal(c.err); ok {
			cp.meter = newMeter(c.err)
			c.log.redirect(cp.meter.progress)
		}
	}
	cp.run(ctx, pairs)
	c.log.redirect(c.err)
	cp.meter.stop()
	if ctx.Err() != nil {
		cp.failed.add(errors.New("interrupted: not everything was copied"))
	}
	return &cp.failed
}

// report lists failures on standard error and turns them into the command's outcome.
func (c *cli) report(cmd *cobra.Command, f *failures) error {
	if f.count == 0 {
		return nil
	}
	for _, err := range f.list {
		c.complain(cmd, err)
	}
	if more := f.count - len(f.list); more > 0 {
		c.complain(cmd, fmt.Errorf("and %d more", more))
	}
	return errReported
}

// copyOut streams one file to standard output.
func copyOut(ctx context.Context, t tree, l location, out io.Writer) error {
	in, err := t.Open(ctx, l.path)
	if err != nil {
		return &pathError{l.String(), err}
	}
	defer func() { _ = in.Close() }() // it was only read
	return pump(ctx, out, in, "standard output", l.String())
}

// copyIn makes a file of standard input.
func copyIn(ctx context.Context, t tree, in io.Reader, target location) error {
	to, err := follow(ctx, t, target.path)
	if err != nil {
		return err
	}
	if at, err := t.Lstat(ctx, to); (err == nil && at.isDir()) || target.slash {
		return &pathError{target.String(), errors.New("is a directory: standard input needs the name of a file")}
	}
	if dir := missingParent(ctx, t, to); dir != "" {
		return &pathError{target.String(), missingError(t, dir)}
	}
	return writeStream(ctx, t, to, in, "standard input")
}
