package consensus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// reconcile makes database, snapshots and log fit together before raft starts, or says why they do not.
func (n *Node) reconcile() error {
	first, err := n.logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	last, err := n.logs.LastIndex()
	if err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	if s := n.snapshots.newest(); s != nil {
		if err := n.catchUp(s); err != nil {
			return err
		}
		if last != 0 && last < s.Index {
			// A crash came between a copy from the leader and the removal of the log that it replaces.
			if err := n.logs.DeleteRange(first, last); err != nil {
				return fmt.Errorf("consensus: remove the log that a snapshot replaces: %w", err)
			}
			first, last = 0, 0
		}
		if last != 0 && first > s.Index+1 {
			return n.gap(first, fmt.Sprintf("the newest snapshot ends at %d", s.Index))
		}
		last = max(last, s.Index, s.Database)
	} else if first > 1 {
		return n.gap(first, "there is no snapshot")
	}
	if applied := n.cfg.DB.Applied(); applied > last {
		return fmt.Errorf("consensus: the database holds everything up to entry %d, but the log in %s ends at %d: the directory is not the one that belongs to the database, or it lost a part",
			applied, n.home.path, last)
	}
	return nil
}

// catchUp sees to it that the database holds what the newest snapshot says it does.
func (n *Node) catchUp(s *record) error {
	applied := n.cfg.DB.Applied()
	if applied < s.Database {
		f, err := os.Open(n.snapshots.path(s.ID, dataSuffix))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("consensus: the database holds everything up to entry %d only, snapshot %s needs %d and the log before it is gone: "+
				"the database is older than the directory %s; restore both from one backup, or, if there are peers and ALL of them run and have caught up, move both away and start again", applied, s.ID, s.Database, n.home.path)
		}
		if err != nil {
			return fmt.Errorf("consensus: %w", err)
		}
		if err := errors.Join(restore(n.cfg.DB, f), f.Close()); err != nil {
			return fmt.Errorf("consensus: restore the database from snapshot %s: %w", s.ID, err)
		}
		n.log.Info("restored the database from the newest snapshot", "snapshot", s.ID, "index", n.cfg.DB.Applied())
	}
	return n.snapshots.settled()
}

func (n *Node) gap(first uint64, but string) error {
	return fmt.Errorf("consensus: the log in %s begins at entry %d, but %s: a part is missing; restore the directory from a backup, or, if there are peers and ALL of them run and have caught up, move it and the database away and start again",
		n.home.path, first, but)
}
