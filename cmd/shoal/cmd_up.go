package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/fuse"
	"github.com/shoalfs/shoalfs/internal/cluster"
	"github.com/shoalfs/shoalfs/internal/httpd"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

type upOptions struct {
	data, mount, listen       string
	metaservers, chunkservers int
	scrub, repair             rate
	silence                   silence
	mounting                  mountOptions
	web                       webFlags
}

func newUp(c *cli) *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up [--data DIR] [--mount DIR]",
		Short: "Run a whole cluster in this process",
		Long: `up runs metaservers and chunk servers in one process until it is interrupted, and mounts the cluster if asked to. The data is
kept under --data and is there again at the next start; a cluster keeps the number of its metaservers and their addresses, and
can be given more chunk servers.

It writes the address to connect to, and "ready" when the cluster serves and is mounted, to standard output.`,
		Example: `  shoal up --mount mnt
  shoal up --data /srv/shoal --metaservers 3 --chunkservers 5`,
		Args: exactly(0, "nothing"),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.up(cmd, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.data, "data", "data", "directory of the cluster's data")
	f.StringVar(&o.mount, "mount", "", "directory to mount the cluster on; made if it is not there")
	f.StringVar(&o.listen, "listen", cluster.DefaultListen, "HOST:PORT of the first metaserver; the others take the ports after it; port 0: free ones")
	f.IntVar(&o.metaservers, "metaservers", cluster.DefaultMetaservers, "1, 3 or 5")
	f.IntVar(&o.chunkservers, "chunkservers", cluster.DefaultChunkservers, "how many chunk servers")
	f.BoolVar(&o.mounting.allowOther, "allow-other", false, "let all users into the mount")
	o.scrub.add(cmd, scrubRate)
	o.repair.add(cmd, repairRate)
	o.silence.add(cmd)
	o.web.add(cmd, "127.0.0.1:7480")
	return cmd
}

// config leaves out what was not said: a cluster that exists keeps what it has.
func (o upOptions) config(cmd *cobra.Command) (cluster.Config, error) {
	cfg := cluster.Config{Dir: o.data, ScrubRate: o.scrub.bytes, RepairRate: o.repair.bytes, SuspectAfter: o.silence.suspect, DeadAfter: o.silence.dead}
	if err := o.silence.check(); err != nil {
		return cluster.Config{}, err
	}
	f := cmd.Flags()
	if f.Changed("listen") {
		if err := checkAddress(o.listen, true); err != nil {
			return cfg, err
		}
		cfg.Listen = o.listen
	}
	if f.Changed("metaservers") {
		if n := o.metaservers; n != 1 && n != 3 && n != 5 {
			return cfg, usagef("--metaservers %d: there can be 1, 3 or 5", n)
		}
		cfg.Metaservers = o.metaservers
	}
	if f.Changed("chunkservers") {
		if o.chunkservers < 1 {
			return cfg, usagef("--chunkservers %d: there has to be at least 1", o.chunkservers)
		}
		cfg.Chunkservers = o.chunkservers
	}
	if o.data == "" {
		return cfg, usagef("--data is empty")
	}
	return cfg, o.web.check()
}

func (c *cli) up(cmd *cobra.Command, o upOptions) error {
	cfg, err := o.config(cmd)
	if err != nil {
		return err
	}
	log, err := c.logger(slog.LevelInfo)
	if err != nil {
		return err
	}
	reg := httpd.NewRegistry()
	cfg.Logger, cfg.Registerer = log, reg
	var cl *cluster.Cluster
	w := &web{}
	point := &mountPoint{dir: o.mount}
	defer point.abandon()
	prepareMount := sync.OnceValue(func() error {
		if o.mount == "" {
			return nil
		}
		return point.prepare(log)
	})
	if _, err := os.Lstat(o.data); errors.Is(err, fs.ErrNotExist) { // so that nothing is made for what cannot be mounted
		if err := prepareMount(); err != nil {
			return err
		}
	}
	// The directory comes first: where another process has it, that one has the ports and the mount too, and is what is to be named.
	cfg.Prepare = func() error {
		if err := prepareMount(); err != nil {
			return err
		}
		opened, err := o.web.open(log, reg, func() error { return upHealth(cl) }, httpd.MetaPage("run by one process, shoal up",
			func(ctx context.Context) (*pb.StatusReply, error) { return cl.Status(ctx) }))
		if err == nil {
			w = opened
		}
		return err
	}
	if cl, err = cluster.New(cfg); err != nil {
		return errors.Join(err, w.Close())
	}
	w.start()
	ctx := cmd.Context()
	err = cl.Start(ctx)
	if err == nil {
		err = c.serveUp(ctx, cl, w, o, point, log, reg)
	}
	if ctx.Err() != nil {
		err = withoutCancel(err)
	}
	return errors.Join(err, w.Close(), cl.Close())
}

// upHealth is the health of a cluster that may still be starting.
func upHealth(cl *cluster.Cluster) error {
	select {
	case <-cl.Ready():
		return cl.Health()
	default:
		return errors.Join(errors.New("the cluster is starting"), cl.Err())
	}
}

// serveUp announces the running cluster, mounts it if asked to, and waits until ctx ends, or a part does.
func (c *cli) serveUp(ctx context.Context, cl *cluster.Cluster, w *web, o upOptions, point *mountPoint, log *slog.Logger, reg prometheus.Registerer) error {
	lines := []string{
		fmt.Sprintf("data    %s (metaservers: %d, chunk servers: %d)", filepath.Clean(o.data), cl.Metaservers(), cl.Chunkservers()),
		"cluster " + cl.Address(),
	}
	if u := w.url(); u != "" {
		lines = append(lines, "http    "+u)
	}
	var gone <-chan struct{} // the mount
	if o.mount != "" {
		log, reg := log.With("part", "mount"), prometheus.WrapRegistererWith(prometheus.Labels{"part": "mount"}, reg)
		fsys, err := connect(ctx, cl.Address(), 0, client.WithLogger(log), client.WithRegisterer(reg))
		if err != nil {
			return err
		}
		m, err := mountFS(ctx, fsys, o.mount, "", o.mounting, log, reg)
		if err != nil {
			return errors.Join(err, fsys.Close())
		}
		point.keep()
		defer closeMount(m, fsys, log)
		gone = m.Done()
		lines = append(lines, "mounted "+filepath.Clean(o.mount))
	}
	for _, line := range append(lines, "ready") {
		if err := c.announce(line); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			log.Info("stopping; a second signal ends at once")
			return nil
		case <-cl.Failed():
			return cl.Err()
		case <-gone:
			gone = nil
			log.Warn("the mount was taken away; the cluster goes on", "dir", o.mount)
		}
	}
}

func closeMount(m *fuse.Server, fsys *client.FS, log *slog.Logger) {
	if err := errors.Join(m.Unmount(), fsys.Close()); err != nil {
		log.Error("the mount did not end cleanly", "error", err)
	}
}
