package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/internal/httpd"
	"github.com/shoalfs/shoalfs/metaserver"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

type metaOptions struct {
	id                             uint64
	listen, advertise, data, peers string
	repair                         rate
	silence                        silence
	stateCheck                     time.Duration
	web                            webFlags
}

// leastStateCheck leaves the disk time for something else than hashing.
const leastStateCheck = time.Second

func newMeta(c *cli) *cobra.Command {
	var o metaOptions
	cmd := &cobra.Command{
		Use:   "meta --id N --listen HOST:PORT --data DIR [--peers 1=HOST:PORT,…]",
		Short: "Run a metaserver",
		Long: `meta runs one metaserver until it is interrupted. A cluster has 1, 3 or 5; each is given the same --peers, its own --id
and a --data directory of its own. --peers matters when the cluster is made; afterwards the members are in the replicated log.
It writes "ready" to standard output when it serves.`,
		Example: `  shoal meta --id 1 --listen 10.0.0.1:7400 --data /var/lib/shoal --peers 1=10.0.0.1:7400,2=10.0.0.2:7400,3=10.0.0.3:7400`,
		Args:    exactly(0, "nothing"),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.meta(cmd, o) },
	}
	f := cmd.Flags()
	f.Uint64Var(&o.id, "id", 0, "number of this metaserver, from 1")
	f.StringVar(&o.listen, "listen", "127.0.0.1:7400", "HOST:PORT to listen on")
	f.StringVar(&o.advertise, "advertise", "", "HOST:PORT that others reach this one at (default: its address in --peers, else --listen)")
	f.StringVar(&o.data, "data", "", "directory of its data")
	f.StringVar(&o.peers, "peers", "", "all metaservers of a new cluster, ID=HOST:PORT,…, this one among them")
	o.repair.add(cmd, repairRate)
	o.silence.add(cmd)
	f.DurationVar(&o.stateCheck, "state-check", metaserver.DefaultStateCheckEvery, "how often the leader has all metaservers hash their state, and compares")
	o.web.add(cmd, "")
	return cmd
}

func (c *cli) meta(cmd *cobra.Command, o metaOptions) error {
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
	var s *metaserver.Server
	w, err := o.web.open(log, reg, func() error { return s.Health() }, httpd.MetaPage(fmt.Sprintf("seen by metaserver %d", o.id),
		func(ctx context.Context) (*pb.StatusReply, error) { return s.Status(ctx) }))
	if err != nil {
		return err
	}
	if s, err = metaserver.New(cfg); err != nil {
		return errors.Join(listenError(err, o.listen), w.Close())
	}
	w.start()
	return errors.Join(c.runPart(cmd.Context(), log, s, s.Address(), w), w.Close())
}

func (o metaOptions) config() (metaserver.Config, error) {
	if err := o.silence.check(); err != nil {
		return metaserver.Config{}, err
	}
	cfg := metaserver.Config{ID: o.id, Listen: o.listen, Advertise: o.advertise, Dir: o.data, RepairRate: o.repair.bytes, SuspectAfter: o.silence.suspect, DeadAfter: o.silence.dead, StateCheckEvery: o.stateCheck}
	switch {
	case o.stateCheck < leastStateCheck:
		return cfg, usagef("--state-check %v: want at least %v", o.stateCheck, leastStateCheck)
	case o.id == 0:
		return cfg, usagef("--id is missing: the number of this metaserver, from 1")
	case o.data == "":
		return cfg, usagef("--data is missing: the directory of its data")
	}
	if err := checkAddress(o.listen, true); err != nil {
		return cfg, err
	}
	var err error
	if cfg.Peers, err = parsePeers(o.peers); err != nil {
		return cfg, err
	}
	mine, listed := cfg.Peers[o.id]
	if cfg.Advertise == "" {
		cfg.Advertise = mine
	}
	if cfg.Advertise != "" {
		if err := checkAddress(cfg.Advertise, false); err != nil {
			return cfg, err
		}
	}
	switch {
	case cfg.Advertise == "" && anyHost(o.listen):
		return cfg, usagef("--listen %s: say with --advertise which address others are to connect to", o.listen)
	case len(cfg.Peers) == 0:
	case !listed:
		return cfg, usagef("--peers %s does not name this metaserver, %d", o.peers, o.id)
	case mine != cfg.Advertise:
		return cfg, usagef("--advertise %s is not what --peers says of metaserver %d (%s)", cfg.Advertise, o.id, mine)
	}
	return cfg, nil
}

// parsePeers reads 1=HOST:PORT,2=HOST:PORT,…
func parsePeers(s string) (map[uint64]string, error) {
	if s == "" {
		return nil, nil
	}
	peers := map[uint64]string{}
	taken := map[string]bool{}
	for p := range strings.SplitSeq(s, ",") {
		id, addr, ok := strings.Cut(strings.TrimSpace(p), "=")
		n, err := strconv.ParseUint(id, 10, 64)
		if !ok || err != nil || n == 0 {
			return nil, usagef("--peers: %q is not ID=HOST:PORT", p)
		}
		if err := checkAddress(addr, false); err != nil {
			return nil, usagef("--peers: %w", err)
		}
		if _, ok := peers[n]; ok || taken[addr] {
			return nil, usagef("--peers: %q is there twice", p)
		}
		peers[n], taken[addr] = addr, true
	}
	if n := len(peers); n != 1 && n != 3 && n != 5 {
		return nil, usagef("--peers names %d metaservers: there can be 1, 3 or 5", n)
	}
	return peers, nil
}
