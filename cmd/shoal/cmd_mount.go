package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/fuse"
	"github.com/shoalfs/shoalfs/internal/httpd"
)

type mountOptions struct {
	allowOther, readOnly, trace bool
	memory, cache               int64 // MiB
	attrs                       int   // inodes and names
	web                         webFlags
}

func newMount(c *cli) *cobra.Command {
	var o mountOptions
	cmd := &cobra.Command{
		Use:   "mount [ADDR[,ADDR…][:/SUBDIR]] DIR",
		Short: "Mount the cluster as a directory",
		Long: `mount makes the cluster, or a directory of it, appear at DIR until it is interrupted or unmounted. DIR is made if it is not
there. ADDR is the HOST:PORT of a metaserver; what --cluster says is used where it is left out. It waits as long as it takes
for the cluster to answer, unless --timeout is given, and writes "ready" to standard output when DIR can be used.

Ordinary users need the program fusermount3 (package fuse3); root needs nothing.`,
		Example: `  shoal mount 127.0.0.1:7400 mnt
  shoal mount 10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400:/home /home --allow-other`,
		Args: between(1, 2, "the directory to mount on"),
		RunE: func(cmd *cobra.Command, args []string) error { return c.mount(cmd, args, o) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.allowOther, "allow-other", false, "let all users in; the kernel and the metaserver check their permissions")
	f.BoolVar(&o.readOnly, "read-only", false, "change nothing")
	f.BoolVar(&o.trace, "trace", false, "log every request of the kernel (with --log-level debug)")
	f.Int64Var(&o.memory, "memory", client.DefaultMemory>>20, "MiB of written data that may be on its way to the servers")
	f.Int64Var(&o.cache, "cache", client.DefaultCache>>20, "MiB of file data kept for reading; 0: none")
	f.IntVar(&o.attrs, "cache-attrs", client.DefaultAttrs, "inodes and names kept, half a KiB each")
	o.web.add(cmd, "")
	return cmd
}

func (c *cli) mount(cmd *cobra.Command, args []string, o mountOptions) error {
	ctx := cmd.Context()
	addrs, subdir, dir := c.cluster, "", args[len(args)-1]
	switch {
	case dir == "":
		return usagef("the directory to mount on is empty")
	case len(args) == 2:
		addrs, subdir = parseSource(args[0])
	case isSource(dir):
		return usagef("the directory to mount on is missing: %s looks like the address of a cluster (a directory of that name is written ./%s)", dir, dir)
	}
	if o.memory < 1 || o.cache < 0 || o.attrs < 1 {
		return usagef("--memory %d, --cache %d, --cache-attrs %d: want at least 1, 0 and 1", o.memory, o.cache, o.attrs)
	}
	if err := checkAddresses(addrs); err != nil {
		return err
	}
	log, err := c.logger(slog.LevelInfo)
	if err != nil {
		return err
	}
	point := &mountPoint{dir: dir}
	defer point.abandon()
	if err := point.prepare(log); err != nil {
		return err
	}
	timeout := c.timeout
	if !cmd.Flags().Changed("timeout") {
		timeout = 0
	}
	reg := httpd.NewRegistry()
	w, err := o.web.open(log, reg, nil, nil)
	if err != nil {
		return err
	}
	w.start()
	fsys, err := connect(ctx, addrs, timeout, client.WithLogger(log), client.WithRegisterer(reg), client.WithMemory(o.memory<<20), client.WithCache(o.cache<<20), client.WithAttrCache(o.attrs))
	if err != nil {
		return errors.Join(err, w.Close())
	}
	m, err := mountFS(ctx, fsys, dir, subdir, o, log, reg)
	if err == nil {
		point.keep()
		err = c.serveMount(ctx, m, log, w)
	}
	return errors.Join(err, fsys.Close(), w.Close())
}

// parseSource reads ADDR[,ADDR…][:/SUBDIR].
func parseSource(s string) (addrs, subdir string) {
	addrs, subdir, found := strings.Cut(s, ":/")
	if found {
		subdir = path.Clean("/" + subdir)
	}
	return addrs, subdir
}

// isSource tells whether an argument can be meant as ADDR[,ADDR…][:/SUBDIR].
func isSource(s string) bool {
	addrs, _ := parseSource(s)
	return !strings.Contains(addrs, "/") && checkAddresses(addrs) == nil
}

func mountFS(ctx context.Context, fsys *client.FS, dir, subdir string, o mountOptions, log *slog.Logger, reg prometheus.Registerer) (*fuse.Server, error) {
	return fuse.Mount(ctx, fsys, dir, fuse.Options{
		Subdir: subdir, AllowOther: o.allowOther, ReadOnly: o.readOnly, Debug: o.trace, Logger: log, Registerer: reg,
	})
}

// serveMount waits until the mount is taken away or ctx ends.
func (c *cli) serveMount(ctx context.Context, m *fuse.Server, log *slog.Logger, w *web) error {
	if u := w.url(); u != "" {
		if err := c.announce("http   " + u); err != nil {
			return errors.Join(err, m.Unmount())
		}
	}
	if err := c.announce("ready"); err != nil {
		return errors.Join(err, m.Unmount())
	}
	select {
	case <-m.Done():
		return m.Wait()
	case <-ctx.Done():
		log.Info("unmounting; a second signal ends at once")
		if err := m.Unmount(); err != nil {
			return fmt.Errorf("unmount: %w", err)
		}
		return nil
	}
}
