package metaserver

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/internal/fserr"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	roomInterval = time.Second
	// handOverAgain is how long after one that failed the lead is given away again: while that is tried nothing is proposed.
	handOverAgain = 15 * time.Second
	// handOverPatience is how long changes wait for a metaserver that has room and cannot lead yet, before they are refused.
	handOverPatience = 10 * time.Second
	// A metaserver with less free space than this, or a twentieth of a small disk, takes nothing that makes the metadata grow;
	// with less than a quarter of that, only what makes it shrink. The log and the database take room before they give any back.
	leastRoom = 256 << 20
	roomPart  = 20
)

// shortage is how short of disk this metaserver is.
type shortage int32

const (
	noShortage shortage = iota
	low
	critical
)

// room is what is known of the space of the data directory.
type room struct {
	short shortage
	free  uint64
	need  uint64
}

func (r room) String() string {
	return fmt.Sprintf("its disk has %d MiB free and needs %d: free some space, and it goes on by itself", r.free>>20, r.need>>20)
}

// roomOf asks the file system.
func roomOf(dir string) (room, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return room{}, fmt.Errorf("free space of %s: %w", dir, err)
		}
		break
	}
	return measure(st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)), nil
}

func measure(free, capacity uint64) room {
	r := room{free: free, need: min(leastRoom, capacity/roomPart)}
	switch {
	case free < r.need/4:
		r.short = critical
	case free < r.need:
		r.short = low
	}
	return r
}

// watchRoom keeps s.room up to date until ctx ends.
func (s *Server) watchRoom(ctx context.Context) error {
	t := time.NewTicker(roomInterval)
	defer t.Stop()
	was := noShortage
	var h handing
	for {
		if r, err := s.cfg.roomOf(s.cfg.Dir); err != nil {
			s.log.Warn("the free space of the data directory is not known", "error", err)
		} else {
			s.room.Store(&r)
			if r.short == noShortage || s.lead.Load() == nil {
				h.since = time.Time{}
				s.cornered.Store(false)
			} else {
				h.short = r.short
				s.cornered.Store(s.handOver(ctx, &h, time.Now()))
			}
			h.reached = s.db.Applied()
			if r.short != was {
				was = r.short
				if r.short == noShortage {
					s.log.Info("the data directory has room again; changes are taken")
				} else {
					s.log.Error("the data directory is nearly full; this metaserver gives the lead to one that has room, or refuses changes that need space", "dir", s.cfg.Dir, "free_bytes", r.free, "needed_bytes", r.need)
				}
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// handing is what is remembered of giving the lead away for want of room.
type handing struct {
	short     shortage  // of this metaserver
	since     time.Time // when there was none any more
	notBefore time.Time // when it is tried again
	reached   uint64    // what was applied here a while ago
}

// handOver has a metaserver with room lead, and tells whether none can: then changes are refused.
func (s *Server) handOver(ctx context.Context, h *handing, now time.Time) (cornered bool) {
	if h.since.IsZero() {
		h.since = now
	}
	waited := now.Sub(h.since) > handOverPatience
	if now.Before(h.notBefore) {
		return waited
	}
	heir, roomy := s.heir(ctx, h)
	if heir == nil {
		return waited || !roomy
	}
	if err := s.node.HandOver(heir.Id); err != nil {
		s.log.Warn("could not give the lead to a metaserver that has room", "to", heir.Id, "address", heir.Address, "error", err)
		h.notBefore = now.Add(handOverAgain)
		return waited
	}
	s.log.Info("gave the lead to a metaserver that has room", "to", heir.Id, "address", heir.Address)
	return false
}

// heir returns who can lead that is less short of disk than this metaserver, nil if nobody can now, and whether anybody is.
func (s *Server) heir(ctx context.Context, h *handing) (best *pb.MetaMember, roomy bool) {
	newest, least := uint64(0), uint32(h.short)
	for _, m := range s.node.Members() {
		if m.Id == s.cfg.ID || m.State == "unreachable" {
			continue
		}
		st, err := s.statusOf(ctx, m.Address)
		if err != nil || st.Shortage >= uint32(h.short) {
			continue
		}
		roomy = true
		if mayLead(st, h.reached) && (best == nil || st.Shortage < least || st.Shortage == least && st.Index > newest) {
			best, newest, least = m, st.Index, st.Shortage
		}
	}
	return best, roomy
}

// mayLead tells whether the lead can be given to a metaserver that has room and says this of itself. One that is behind, as it is being
// sent a snapshot or its disk hangs, would hold up every change for as long as that lasts: raft takes none from the moment on that it
// is told to give the lead away, and may not be able to end that while such a one does not answer.
func mayLead(st *pb.StatusReply, reached uint64) bool { return st.Index >= reached }

// statusOf asks another metaserver how it is.
func (s *Server) statusOf(ctx context.Context, address string) (*pb.StatusReply, error) {
	ctx, cancel := context.WithTimeout(ctx, roomInterval)
	defer cancel()
	conn, err := s.pool.Get(address)
	if err != nil {
		return nil, err
	}
	return pb.NewMetaClient(conn).Status(ctx, &pb.StatusRequest{})
}

// yields tells whether an operation has to wait, as there is no room for it here, until another metaserver leads or none can.
func (s *Server) yields(op *pb.Op) bool {
	return len(s.cfg.Peers) > 1 && !s.cornered.Load() && s.fits(op) != nil
}

// fits says why there is no room for an operation, nil if there is.
func (s *Server) fits(op *pb.Op) error {
	r := s.room.Load()
	if r == nil || r.short == noShortage || r.short <= tolerates(op) {
		return nil
	}
	return fserr.New(syscall.ENOSPC, "metaserver %d takes no changes that need space: %v", s.cfg.ID, *r)
}

// tolerates is the worst shortage in which an operation is still taken.
func tolerates(op *pb.Op) shortage {
	switch op := op.GetOp().(type) {
	case *pb.Op_Unlink, *pb.Op_ReleaseInodes, *pb.Op_SealChunks, *pb.Op_CloseSession, *pb.Op_RemoveXattr:
		return critical // these shrink it
	case *pb.Op_Rename, *pb.Op_SetAttr, *pb.Op_OpenSession, *pb.Op_SetLayout:
		return low
	case *pb.Op_Relocate: // the data was written while there was room
		return low
	case *pb.Op_Commit:
		if len(op.Commit.Chunks) > 0 { // the data was written while there was room
			return low
		}
	}
	return noShortage
}
