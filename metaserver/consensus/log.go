package consensus

import (
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// logStore is the raft log, with the small things that raft keeps beside it.
//
// The WAL begins a new segment in the background after an append filled one, and a DeleteRange that comes before it is done
// spoils the log: the background takes the segment that DeleteRange made for the full one. So StoreLogs waits for it.
type logStore struct {
	*wal.WAL
	meta  *metadb.BoltMetaDB
	segs  *segments
	fail  func(error)
	mu    sync.Mutex // of StoreLogs against DeleteRange
	close sync.Once
}

// openLog opens the log in a directory that nobody else uses. fail is told when it takes nothing more.
func openLog(dir string, segmentSize int, log hclog.Logger, fail func(error)) (_ *logStore, err error) {
	segs, err := newSegments(dir)
	if err != nil {
		return nil, fmt.Errorf("consensus: %w", err)
	}
	s := &logStore{meta: &metadb.BoltMetaDB{}, segs: segs, fail: fail}
	defer func() {
		if r := recover(); r != nil { // bbolt, which holds the log's table of contents, trusts its pages
			err = fmt.Errorf("consensus: the log in %s is damaged: %v", dir, r)
		}
	}()
	if err = repairLog(dir, s.meta); err == nil {
		s.WAL, err = wal.Open(dir, wal.WithMetaStore(contents{s.meta, s.segs}), wal.WithSegmentFiler(s.segs),
			wal.WithSegmentSize(segmentSize), wal.WithLogger(log.Named("wal")))
	}
	if err != nil {
		segs.files.close()
		return nil, errors.Join(fmt.Errorf("consensus: the log in %s cannot be opened: %w", dir, err), s.meta.Close())
	}
	return s, nil
}

// StoreLogs implements raft.LogStore. After an error the WAL takes nothing more until it is opened again.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.WAL.StoreLogs(logs)
	if err == nil {
		err = s.segs.wait()
	}
	if err != nil {
		s.fail(fmt.Errorf("append to the log, free some space or replace the disk and start again: %w", err))
	}
	return err
}

// StoreLog implements raft.LogStore.
func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// DeleteRange implements raft.LogStore.
func (s *logStore) DeleteRange(from, to uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.WAL.DeleteRange(from, to)
}

// Close closes the log after raft stopped using it. The WAL does not close its table of contents by itself.
func (s *logStore) Close() (err error) {
	s.close.Do(func() {
		err = errors.Join(s.WAL.Close(), s.meta.Close())
		s.segs.files.close()
	})
	return err
}

// segments are the WAL's files. They know whether a full one waits for its successor.
type segments struct {
	*segment.Filer
	files     *zeroedFS
	mu        sync.Mutex
	successor chan error // has room for the outcome; nil while none is waited for
}

func newSegments(dir string) (*segments, error) {
	files, err := newZeroedFS(dir)
	if err != nil {
		return nil, err
	}
	return &segments{Filer: segment.NewFiler(dir, files), files: files}, nil
}

// full begins the wait for a successor.
func (s *segments) full() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.successor = make(chan error, 1)
}

// succeeded tells the outcome.
func (s *segments) succeeded(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.successor != nil {
		select {
		case s.successor <- err:
		default: // the first one counts
		}
	}
}

// wait returns when no full segment waits for its successor, with what became of the last one.
func (s *segments) wait() error {
	s.mu.Lock()
	c := s.successor
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	err := <-c
	s.mu.Lock()
	defer s.mu.Unlock()
	s.successor = nil
	return err
}

// Create implements types.SegmentFiler.
func (s *segments) Create(info types.SegmentInfo) (types.SegmentWriter, error) {
	w, err := s.Filer.Create(info)
	s.succeeded(err)
	if err != nil {
		return nil, err
	}
	return writer{w, s}, nil
}

// RecoverTail implements types.SegmentFiler.
func (s *segments) RecoverTail(info types.SegmentInfo) (types.SegmentWriter, error) {
	w, err := s.Filer.RecoverTail(info)
	if err != nil {
		return nil, err
	}
	return writer{w, s}, nil
}

type writer struct {
	types.SegmentWriter
	segments *segments
}

// Sealed is asked after each append.
func (w writer) Sealed() (bool, uint64, error) {
	full, start, err := w.SegmentWriter.Sealed()
	if full && err == nil {
		w.segments.full()
	}
	return full, start, err
}

// contents is the WAL's table of contents.
type contents struct {
	*metadb.BoltMetaDB
	segments *segments
}

// CommitState implements types.MetaStore.
func (c contents) CommitState(s types.PersistentState) error {
	err := c.BoltMetaDB.CommitState(s)
	if err != nil {
		c.segments.succeeded(err)
	}
	return err
}
