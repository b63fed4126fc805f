package chunkserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	registerTimeout = 5 * time.Second
	minBackoff      = 50 * time.Millisecond
	maxBackoff      = 2 * time.Second
	// beatGap is how much time passes at least between heartbeats that are sent because something happened: what happens often
	// is told together.
	beatGap = 10 * time.Millisecond
	// inventoryPage is how many chunks one message lists.
	inventoryPage = 4096
	// corruptPage bounds the damaged chunks named in one heartbeat, and those that wait to be named. When there are more, an
	// inventory is sent.
	corruptPage = 4096
)

// errFatal is an error that waiting does not mend.
type errFatal struct{ error }

func (e errFatal) Unwrap() error { return e.error }

// runRegistry keeps the server registered with the leading metaserver until ctx ends.
func (s *Server) runRegistry(ctx context.Context) error {
	backoff := minBackoff
	hint := ""
	for next := 0; ctx.Err() == nil; {
		addr := hint
		if addr == "" {
			addr = s.cfg.Meta[next%len(s.cfg.Meta)]
			next++
		}
		followed := hint != ""
		joined, err := s.serveLeader(ctx, addr)
		if ctx.Err() != nil {
			return nil
		}
		var fatal errFatal
		if errors.As(err, &fatal) {
			return fmt.Errorf("metaserver %s: %w", addr, fatal.error)
		}
		hint = ""
		switch rpc.Kind(err) {
		case rpc.NotLeader:
			hint = rpc.Detail(err).Leader
		case rpc.Removed:
			if !s.removed.Swap(true) {
				s.log.Error(s.errRemoved().Error(), "metaserver", addr)
			}
		}
		if joined && !s.removed.Load() {
			backoff = minBackoff
			s.log.Warn("lost the metaserver; looking for the leader", "address", addr, "err", err)
			continue
		}
		s.log.Debug("not registered", "address", addr, "err", err)
		if hint != "" && hint != addr && !followed {
			continue // straight to the leader
		}
		if hint == "" && next%len(s.cfg.Meta) != 0 {
			continue // the others first
		}
		if !wait(ctx, backoff/2+rand.N(backoff/2)) {
			return nil
		}
		if backoff = min(2*backoff, maxBackoff); backoff == maxBackoff && !s.removed.Load() {
			s.unreachable.Do(func() {
				s.log.Warn("no metaserver takes this chunk server in; trying on", "addresses", s.cfg.Meta, "err", err)
			})
		}
	}
	return nil
}

// errRemoved is what is wrong with a server that the metaserver has said was removed. It goes on asking: the metadata may be
// restored.
func (s *Server) errRemoved() error {
	return fmt.Errorf("this chunk server, number %d, was removed from the cluster: stop it; with an empty data directory it joins anew", s.store.identity().Server)
}

// wait returns false if ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// serveLeader registers with a metaserver and beats until that breaks. joined says that it did so for a while.
func (s *Server) serveLeader(ctx context.Context, addr string) (joined bool, err error) {
	conn, err := s.pool.Get(addr)
	if err != nil {
		return false, err
	}
	client := pb.NewRegistryClient(conn)
	if err := s.register(ctx, client, addr); err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Heartbeat(ctx)
	if err != nil {
		return false, err
	}
	b := &beater{s: s, stream: stream, inventory: make(chan struct{}, 1), paced: make(chan struct{}, 1), ended: make(chan error, 1)}
	s.follow(b)
	s.receivers.Go(b.receive)
	err = b.run(ctx, addr)
	s.connected.Store(false)
	return b.lasted, wrongCluster(err)
}

func (s *Server) register(ctx context.Context, client pb.RegistryClient, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	id := s.store.identity()
	address, err := s.advertise(addr)
	if err != nil {
		return err
	}
	req := &pb.RegisterRequest{Uuid: s.store.uuid[:], Server: uint32(id.Server), Address: address, Domain: s.cfg.Domain}
	if !id.Cluster.IsZero() {
		req.Cluster = id.Cluster[:]
	}
	reply, err := client.Register(ctx, req)
	if err != nil {
		return wrongCluster(err)
	}
	got := disk.Identity{UUID: s.store.uuid, Server: chunk.ServerID(reply.Server)}
	if len(reply.Cluster) != len(got.Cluster) || reply.Server == 0 {
		return fmt.Errorf("the metaserver answered with a cluster id of %d bytes and server %d", len(reply.Cluster), reply.Server)
	}
	copy(got.Cluster[:], reply.Cluster)
	if err := s.store.setIdentity(got); err != nil {
		if errors.Is(err, disk.ErrCluster) {
			return errFatal{err}
		}
		return err
	}
	return nil
}

// wrongCluster makes the one refusal fatal that no retry changes.
func wrongCluster(err error) error {
	if rpc.Kind(err) == rpc.WrongCluster {
		return errFatal{fmt.Errorf("the data directories belong to another cluster: %w", err)}
	}
	return err
}

// advertise is the address that clients reach this server at: as configured, or where it listens. A server that listens
// everywhere names the local address that leads to the metaserver.
func (s *Server) advertise(meta string) (string, error) {
	if s.cfg.Advertise != "" {
		return s.cfg.Advertise, nil
	}
	host, port, err := net.SplitHostPort(s.Address())
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() {
		return s.Address(), nil
	}
	c, err := net.Dial("udp", meta) // sends nothing
	if err != nil {
		return "", fmt.Errorf("find the local address towards %s: %w", meta, err)
	}
	defer c.Close()
	host, _, err = net.SplitHostPort(c.LocalAddr().String())
	return net.JoinHostPort(host, port), err
}

// beater is one Heartbeat call.
type beater struct {
	s         *Server
	stream    pb.Registry_HeartbeatClient
	inventory chan struct{} // 1: an inventory is wanted
	paced     chan struct{} // 1: every has changed
	every     atomic.Uint32 // at most so many milliseconds are to pass between heartbeats
	ended     chan error    // why the stream ended
	lasted    bool          // a first interval has gone by
}

func (b *beater) receive() {
	for {
		reply, err := b.stream.Recv()
		if err != nil {
			b.ended <- err
			return
		}
		b.s.obey(b, reply)
		if reply.EveryMs > 0 && b.every.Swap(reply.EveryMs) != reply.EveryMs {
			notify(b.paced)
		}
		if reply.WantInventory {
			notify(b.inventory)
		}
	}
}

// run beats at once, sends the inventory, and goes on until the stream ends.
func (b *beater) run(ctx context.Context, addr string) error {
	s := b.s
	id := s.store.identity()
	first := s.heartbeat()
	first.Cluster, first.Server = id.Cluster[:], uint32(id.Server)
	if err := b.send(first); err != nil {
		return err
	}
	if err := b.sendInventory(); err != nil {
		return err
	}
	s.leader.Store(&addr)
	s.connected.Store(true)
	s.removed.Store(false)
	s.readyOnce.Do(func() {
		s.log.Info("registered", "server", id.Server, "cluster", id.Cluster, "metaserver", addr)
		close(s.ready)
	})
	tick := time.NewTicker(s.cfg.Heartbeat)
	defer tick.Stop()
	for last := time.Now(); ; {
		var err error
		select {
		case <-tick.C:
			b.lasted = true
			err = b.send(s.heartbeat())
		case <-b.paced:
			tick.Reset(min(s.cfg.Heartbeat, max(time.Duration(b.every.Load())*time.Millisecond, beatGap)))
		case <-s.beat:
			if !wait(ctx, time.Until(last.Add(beatGap))) {
				return ctx.Err()
			}
			last = time.Now()
			err = b.send(s.heartbeat())
		case <-b.inventory:
			err = b.sendInventory()
		case <-s.relist:
			err = b.sendInventory()
		case err := <-b.ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// send returns the stream's own error where there is one: it may name the leader.
func (b *beater) send(m *pb.HeartbeatRequest) error {
	if err := b.stream.Send(m); err != nil {
		return <-b.ended
	}
	return nil
}

func (b *beater) sendInventory() error {
	all := b.s.store.list()
	for page := range slices.Chunk(all, inventoryPage) {
		m := b.s.heartbeat() // every message says how the server is
		m.Inventory = make([]*pb.ChunkReport, len(page))
		for i, r := range page {
			m.Inventory[i] = &pb.ChunkReport{Id: uint64(r.ID), Length: r.Length, Bad: r.Bad}
		}
		if err := b.send(m); err != nil {
			return err
		}
	}
	end := b.s.heartbeat()
	end.InventoryEnd = true
	return b.send(end)
}

// heartbeat says how the server is, and what it has found and done since the last one.
func (s *Server) heartbeat() *pb.HeartbeatRequest {
	h := &pb.HeartbeatRequest{
		Deleted: s.deletions.report(), Corrupt: s.takeCorrupt(), Copied: s.copies.report(), Scrub: s.scrubs.progress(),
		BytesRead: s.metrics.bytesRead.Load(), BytesWritten: s.metrics.bytesWritten.Load(),
	}
	h.Disks = s.store.infos() // last: what it says it has made or deleted is in there
	return h
}

// foundBad notes a damaged chunk for the next heartbeat. One that was made anew on another disk is not missed.
func (s *Server) foundBad(id chunk.ID, _ error) {
	if !s.store.good(id) {
		s.reportCorrupt(id)
	}
}

func (s *Server) reportCorrupt(id chunk.ID) {
	s.corruptMu.Lock()
	if len(s.corrupt) < corruptPage {
		s.corrupt = append(s.corrupt, uint64(id))
	} else {
		notify(s.relist) // the inventory names all
	}
	s.corruptMu.Unlock()
	notify(s.beat)
}

func (s *Server) takeCorrupt() []uint64 {
	s.corruptMu.Lock()
	defer s.corruptMu.Unlock()
	ids := s.corrupt
	s.corrupt = nil
	return ids
}
