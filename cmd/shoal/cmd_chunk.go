package main

import (
	"errors"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/chunkserver"
	"github.com/shoalfs/shoalfs/internal/httpd"
)

type chunkOptions struct {
	listen, advertise, meta, domain string
	data                            []string
	scrub                           rate
	web                             webFlags
}

func newChunk(c *cli) *cobra.Command {
	var o chunkOptions
	cmd := &cobra.Command{
		Use:   "chunk --listen HOST:PORT --data DIR[,DIR…] --meta HOST:PORT[,…]",
		Short: "Run a chunk server",
		Long: `chunk runs one chunk server until it is interrupted. Give it a directory of each disk with --data, and where it stands with
--domain: copies of a chunk are kept in different zones, racks or hosts as far as there are any.
It writes "ready" to standard output when a metaserver has let it in.`,
		Example: `  shoal chunk --listen 10.0.1.1:7500 --data /disk1/shoal,/disk2/shoal --meta 10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400 --domain rack=r1`,
		Args:    exactly(0, "nothing"),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.chunk(cmd, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "127.0.0.1:7500", "HOST:PORT to listen on; port 0: any free one")
	f.StringVar(&o.advertise, "advertise", "", "HOST:PORT that others reach this one at (default: --listen)")
	f.StringSliceVar(&o.data, "data", nil, "directories of its data, one a disk")
	f.StringVar(&o.meta, "meta", "", "the metaservers, HOST:PORT,…")
	f.StringVar(&o.domain, "domain", "", "where it stands: zone=Z,rack=R,host=H, or some of these")
	o.scrub.add(cmd, scrubRate)
	o.web.add(cmd, "")
	return cmd
}

func (c *cli) chunk(cmd *cobra.Command, o chunkOptions) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	log, err := c.logger(slog.LevelInfo)
	if err != nil {
		return err
	}
	reg := httpd.NewRegistry()
	cfg.Logger, cfg.Registerer = log, reg
	var s *chunkserver.Server
	w, err := o.web.open(log, reg, func() error { return s.Health() }, httpd.ChunkPage(func() httpd.ChunkStatus { return chunkPage(s, cfg.Meta) }))
	if err != nil {
		return err
	}
	if s, err = chunkserver.New(cfg); err != nil {
		return errors.Join(listenError(err, o.listen), w.Close())
	}
	w.start()
	return errors.Join(c.runPart(cmd.Context(), log, s, o.advertise, w), w.Close())
}

func (o chunkOptions) config() (chunkserver.Config, error) {
	cfg := chunkserver.Config{Listen: o.listen, Advertise: o.advertise, Dirs: o.data, ScrubRate: o.scrub.bytes}
	switch {
	case len(o.data) == 0:
		return cfg, usagef("--data is missing: the directories of its data")
	case o.meta == "":
		return cfg, usagef("--meta is missing: the metaservers")
	}
	if err := checkAddress(o.listen, true); err != nil {
		return cfg, err
	}
	if o.advertise != "" {
		if err := checkAddress(o.advertise, false); err != nil {
			return cfg, err
		}
	}
	if err := checkAddresses(o.meta); err != nil {
		return cfg, err
	}
	for addr := range strings.SplitSeq(o.meta, ",") {
		cfg.Meta = append(cfg.Meta, strings.TrimSpace(addr))
	}
	var err error
	cfg.Domain, err = parseDomain(o.domain)
	return cfg, err
}

// parseDomain reads zone=Z,rack=R,host=H.
func parseDomain(s string) (map[string]string, error) {
	if s == "" {
		return nil, nil
	}
	domain := map[string]string{}
	for part := range strings.SplitSeq(s, ",") {
		kind, name, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || name == "" || (kind != "zone" && kind != "rack" && kind != "host") {
			return nil, usagef("--domain: %q is not zone=…, rack=… or host=…", part)
		}
		if _, ok := domain[kind]; ok {
			return nil, usagef("--domain: %s is there twice", kind)
		}
		domain[kind] = name
	}
	return domain, nil
}
