package metaserver

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// askPatience is how long metaservers have to say which commands they know.
const askPatience = 5 * time.Second

// commands is the newest command set that the log may hold.
func (s *Server) commands() (set uint32, err error) {
	err = s.db.View(func(r kv.Reader) error { set, err = namespace.Commands(r); return err })
	return set, err
}

// checkCommands refuses a state that a newer version may have written commands for that this one does not know.
func (s *Server) checkCommands() error {
	set, err := s.commands()
	if err == nil && set > s.cfg.knows {
		err = fmt.Errorf("%s belongs to a cluster that uses command set %d, this version of shoalfs knows up to %d: start the version that the other metaservers run",
			s.cfg.Dir, set, s.cfg.knows)
	}
	return err
}

// admit refuses an operation that a metaserver might not know, which would stop it, until all are known to know it.
func (l *leader) admit(op *pb.Op) error {
	version := namespace.VersionOf(op)
	if _, raises := op.GetOp().(*pb.Op_RaiseCommands); raises || version <= namespace.BaseCommands {
		return nil
	}
	set, err := l.s.commands()
	if err == nil && version > set {
		err = fserr.New(syscall.EOPNOTSUPP, "some metaservers may run an older version, which does not know this yet: once all run this one, and are up, it works")
	}
	return err
}

// raiseCommands begins to use newer commands once every metaserver says that it knows them. There is no way back: an older version
// cannot read the log any more.
func (l *leader) raiseCommands() error {
	set, err := l.s.commands()
	if err != nil || set >= l.s.cfg.knows {
		return err
	}
	ctx, cancel := context.WithTimeout(l.ctx, askPatience)
	defer cancel()
	known, err := l.s.node.Commands(ctx)
	if err != nil {
		l.log.Debug("it is not known which commands all metaservers know", "error", err)
		return nil // one is down, or too old to say
	}
	if known <= set {
		return nil
	}
	if _, err := l.own(&pb.Op{Op: &pb.Op_RaiseCommands{RaiseCommands: &pb.RaiseCommands{Version: known}}}); err != nil {
		return err
	}
	l.log.Info("all metaservers know newer commands, which are used from now on; older versions cannot join any more", "commands", known)
	return nil
}
