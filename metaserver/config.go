package metaserver

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoalfs/shoalfs/metaserver/lease"
	"github.com/shoalfs/shoalfs/metaserver/liveness"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
)

// Config is what New needs. Zero values of all from Logger on stand for the defaults.
type Config struct {
	ID        uint64            // of this metaserver among its peers, from 1
	Listen    string            // host:port; port 0: any free one
	Advertise string            // where peers and clients reach it; empty: where it listens
	Dir       string            // data directory; made if there is none
	Peers     map[uint64]string // all metaservers by id, this one included; empty: it is the only one

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics are kept where others see them

	SessionTTL   time.Duration // how long a client that went silent keeps its session; 60 s
	LeaseTTL     time.Duration // how long clients may use what they cached; 5 s
	LeaseMargin  time.Duration // how much longer the server waits; a tenth of that
	SuspectAfter time.Duration // silence that makes a chunk server suspect; 3 s
	DeadAfter    time.Duration // silence that makes it dead; 30 s
	Replicas     int           // copies of a chunk; 3
	RepairRate   int64         // bytes a second that one chunk server may write for repair; 256 MiB, negative: no limit

	// CompactBelow, CompactGain and CompactRest say when space is given back that files do not use any more: chunks of which less
	// than so many percent is used are written anew; when so many bytes are gained; and at most so often all are looked at.
	CompactBelow int           // 50
	CompactGain  int64         // 64 MiB; with less, a tenth of what is stored is enough, or that it was so for some minutes
	CompactRest  time.Duration // 10 s

	// StateCheckEvery is how often all metaservers hash their state, for the leader to compare; 10 min.
	StateCheckEvery time.Duration

	// Raft's election timeout and the interval of its heartbeats follow from this; 500 ms.
	HeartbeatTimeout time.Duration
	roomOf           func(dir string) (room, error) // asks the file system; tests answer themselves
	knows            uint32                         // the newest command set; tests play an older version

	// How long no leader may be known before Health complains; 15 s.
	LeaderlessAfter time.Duration
}

const (
	defaultReplicas        = 3
	defaultRepairRate      = 256 << 20
	defaultLeaderlessAfter = 15 * time.Second
)

// DefaultStateCheckEvery is Config.StateCheckEvery.
const DefaultStateCheckEvery = 10 * time.Minute

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.ID == 0:
		return c, errors.New("a metaserver's id must not be 0")
	case c.Dir == "":
		return c, errors.New("a metaserver needs a data directory")
	case c.Listen == "":
		return c, errors.New("a metaserver needs an address to listen on")
	case len(c.Peers) > 0 && c.Peers[c.ID] == "":
		return c, fmt.Errorf("the peers do not include this metaserver, %d", c.ID)
	}
	for id, address := range c.Peers {
		if _, _, err := net.SplitHostPort(address); err != nil || id == 0 {
			return c, fmt.Errorf("peer %d=%s: want id=host:port with an id from 1", id, address)
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.SessionTTL = orDefault(c.SessionTTL, lease.DefaultSession)
	c.LeaseTTL = orDefault(c.LeaseTTL, lease.DefaultLease)
	c.LeaseMargin = orDefault(c.LeaseMargin, c.LeaseTTL/10)
	c.SuspectAfter = orDefault(c.SuspectAfter, liveness.DefaultSuspectAfter)
	c.DeadAfter = orDefault(c.DeadAfter, liveness.DefaultDeadAfter)
	c.LeaderlessAfter = orDefault(c.LeaderlessAfter, defaultLeaderlessAfter)
	c.StateCheckEvery = orDefault(c.StateCheckEvery, DefaultStateCheckEvery)
	if c.RepairRate == 0 {
		c.RepairRate = defaultRepairRate
	}
	if c.knows == 0 {
		c.knows = namespace.CommandVersion
	}
	if c.roomOf == nil {
		c.roomOf = roomOf
	}
	if c.Replicas <= 0 {
		c.Replicas = defaultReplicas
	}
	if c.SessionTTL < c.LeaseTTL+c.LeaseMargin {
		return c, fmt.Errorf("a session of %v does not outlive its leases of %v", c.SessionTTL, c.LeaseTTL+c.LeaseMargin)
	}
	return c, nil
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}
