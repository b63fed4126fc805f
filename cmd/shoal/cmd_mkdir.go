package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
)

func newMkdir(c *cli) *cobra.Command {
	var parents bool
	var mode string
	cmd := &cobra.Command{
		Use:   "mkdir [-p] [-m MODE] PATH…",
		Short: "Make directories in the cluster",
		Args:  atLeast(1, "a path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := remotePaths(args)
			if err != nil {
				return err
			}
			perm, err := parseMode(mode)
			if err != nil {
				return err
			}
			return c.withFS(cmd.Context(), func(fsys *client.FS) error {
				var failed failures
				for _, p := range paths {
					if err := makeDirs(cmd.Context(), remoteTree{fsys}, p, perm, parents); err != nil {
						failed.add(err)
					}
				}
				return c.report(cmd, &failed)
			})
		},
	}
	cmd.Flags().BoolVarP(&parents, "parents", "p", false, "make missing parents too, and accept directories that exist")
	cmd.Flags().StringVarP(&mode, "mode", "m", "", "permission bits, octal (default: 777 less the umask)")
	return cmd
}

// parseMode reads octal permission bits; "" is what mkdir(1) does.
func parseMode(s string) (uint32, error) {
	if s == "" {
		return 0o777 &^ umask(), nil
	}
	m, err := strconv.ParseUint(s, 8, 32)
	if err != nil || m > 0o7777 {
		return 0, usagef("--mode %q: want octal permission bits such as 755", s)
	}
	return uint32(m), nil
}

func makeDirs(ctx context.Context, t tree, p string, perm uint32, parents bool) error {
	err := t.Mkdir(ctx, p, perm)
	if errors.Is(err, syscall.ENOENT) && !parents {
		if dir := missingParent(ctx, t, p); dir != "" {
			return at(t, p, fmt.Errorf("%w; -p makes missing ones", missingError(t, dir)))
		}
	}
	if err == nil || !parents {
		return at(t, p, err)
	}
	if errors.Is(err, syscall.ENOENT) && p != "/" {
		if err := makeDirs(ctx, t, path.Dir(p), 0o777&^umask()|0o300, true); err != nil {
			return err
		}
		return makeDirs(ctx, t, p, perm, true)
	}
	if e, serr := t.Stat(ctx, p); serr == nil && e.isDir() {
		return nil
	}
	return at(t, p, err)
}

// at names the path that an error is about.
func at(t tree, path string, err error) error {
	if err == nil {
		return nil
	}
	return &pathError{t.Show(path), err}
}
