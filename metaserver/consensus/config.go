package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Config says how a Node is made. The zero value of every tunable stands for its default.
type Config struct {
	ID      uint64 // of this member, at least 1
	Address string // host:port under which the other members and clients reach it
	Dir     string // where log and snapshots go, in a directory raft below it
	// Peers are all members with their addresses, this one too; empty: it is alone. They decide who is a member only when
	// there is no log yet; afterwards the log does. Their addresses are always preferred to those in the log.
	Peers map[uint64]string
	DB    *kv.DB // opened, and closed after the Node is
	// Apply applies a command. It must be a pure function of its arguments.
	Apply func(kv.Txn, uint64, *pb.Command) *pb.Result
	// Commands is the newest version of commands that Apply knows; 1. A newer one in the log stops the Node.
	Commands uint32
	// Check says what is wrong with the database, which stops the Node. It is asked before any command is applied, and after
	// a copy took the database's place. It may be nil.
	Check func() error
	Pool  *rpc.Pool
	// Cluster returns the id of the cluster that the database belongs to, nil while it is unknown. Members of different
	// clusters do not talk.
	Cluster    func() []byte
	Logger     *slog.Logger
	Registerer prometheus.Registerer // may be nil

	HeartbeatTimeout  time.Duration // without word from a leader a follower stands for election after one to two of these; 500 ms
	ElectionTimeout   time.Duration // an election is tried again after one to two of these; 500 ms
	LeaderLease       time.Duration // a leader without a majority steps down after this; 400 ms, at most HeartbeatTimeout
	CommitTimeout     time.Duration // idle followers learn of the last commit after one to two of these; 50 ms
	SnapshotInterval  time.Duration // every one to two of these it is seen whether a snapshot is due; 20 s
	SnapshotThreshold uint64        // entries since the last snapshot that make one due; 32768
	TrailingLogs      uint64        // entries kept before a snapshot, for followers that are behind; 32768
	SegmentSize       int           // of a log file, bytes, allocated ahead; 16 MiB
}

const (
	// maxCommand bounds an entry of the log, in bytes.
	maxCommand = 4 << 20
	// maxAppend bounds the entries of a group commit and of a message to a follower, and the proposals in flight.
	maxAppend = 256
)

func (c Config) withDefaults() (Config, error) {
	c.Commands = max(c.Commands, 1)
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.HeartbeatTimeout, 500*time.Millisecond)
	def(&c.ElectionTimeout, c.HeartbeatTimeout)
	def(&c.LeaderLease, c.HeartbeatTimeout*4/5)
	def(&c.CommitTimeout, 50*time.Millisecond)
	def(&c.SnapshotInterval, 20*time.Second)
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = 32 << 10
	}
	if c.TrailingLogs == 0 {
		c.TrailingLogs = 32 << 10
	}
	if c.SegmentSize <= 0 {
		c.SegmentSize = 16 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Cluster == nil {
		c.Cluster = func() []byte { return nil }
	}
	if c.Check == nil {
		c.Check = func() error { return nil }
	}
	if len(c.Peers) == 0 {
		c.Peers = map[uint64]string{c.ID: c.Address}
	}
	return c, c.check()
}

func (c Config) check() error {
	switch n := len(c.Peers); {
	case c.ID == 0:
		return errors.New("consensus: a metaserver's id is at least 1")
	case c.Address == "" || c.Dir == "":
		return errors.New("consensus: address and directory are needed")
	case c.DB == nil || c.Apply == nil || c.Pool == nil:
		return errors.New("consensus: database, state machine and connections are needed")
	case c.Peers[c.ID] == "":
		return fmt.Errorf("consensus: metaserver %d is not among its peers %v", c.ID, c.Peers)
	case c.Peers[c.ID] != c.Address:
		return fmt.Errorf("consensus: metaserver %d is at %s, but at %s for its peers", c.ID, c.Address, c.Peers[c.ID])
	case n != 1 && n != 3 && n != 5:
		return fmt.Errorf("consensus: %d metaservers; possible are 1, 3 or 5", n)
	}
	seen := map[string]uint64{}
	for id, address := range c.Peers {
		if id == 0 || address == "" {
			return fmt.Errorf("consensus: metaserver %d at %q is not possible", id, address)
		}
		if other, ok := seen[address]; ok {
			return fmt.Errorf("consensus: metaservers %d and %d have one address, %s", min(id, other), max(id, other), address)
		}
		seen[address] = id
	}
	return nil
}
