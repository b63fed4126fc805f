package faultfs

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// space is how much of a disk is in use.
type space struct {
	backing string

	mu    sync.Mutex
	limit int64 // bytes; 0: as much as the backing directory has
	used  int64 // bytes, of whole blocks
}

// blocks is what a file takes.
func blocks(size int64) int64 { return beyond(size) * blockSize }

// change accounts for a file that grows or shrinks.
func (s *space) change(from, to int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	more := blocks(to) - blocks(from)
	if more > 0 && s.limit > 0 && s.used+more > s.limit {
		return unix.ENOSPC
	}
	s.used += more
	return nil
}

// force is change whether there is room or not.
func (s *space) force(from, to int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used += blocks(to) - blocks(from); s.used < 0 {
		return fmt.Errorf("faultfs: %d bytes in use", s.used)
	}
	return nil
}

// figures are what statfs tells, in blocks.
func (s *space) figures() (total, free uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limit > 0 {
		return uint64(s.limit / blockSize), uint64(max(0, s.limit-s.used) / blockSize), nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.backing, &st); err != nil {
		return 0, 0, err
	}
	unit := uint64(st.Bsize)
	return st.Blocks * unit / blockSize, st.Bavail * unit / blockSize, nil
}
