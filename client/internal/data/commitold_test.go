package data

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/fserr"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// TestForgottenWritesAreCommitted: what is written to a file that stays open is published by itself, and again what is written later.
func TestForgottenWritesAreCommitted(t *testing.T) {
	for _, size := range []int{100, 100_000, 3 << 20} {
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) {
			x := newFixture(t, 3, 3, 2, func(c *StoreConfig) { c.CommitAfter = 50 * time.Millisecond })
			f := x.file()
			want := pattern(2*size, 1)
			for part := range 2 {
				mustWrite(t, f, want[part*size:(part+1)*size], int64(part*size))
				published := uint64((part + 1) * size)
				eventually(t, "it is published", func() bool { return x.meta.attr(f.inode).Size == published })
				checkContent(t, f, want[:published])
			}
			mustClose(t, f)
		})
	}
}

// TestForgottenWriteThatFails: an error of what is published by itself is that of the next operation, once.
func TestForgottenWriteThatFails(t *testing.T) {
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) { c.CommitAfter = 50 * time.Millisecond })
	refused := make(chan struct{}, 1)
	x.meta.with(func(m *fakeMeta) {
		m.onCommit = func(*pb.Commit) error {
			select {
			case refused <- struct{}{}:
			default:
			}
			return fserr.New(syscall.EDQUOT, "too much")
		}
	})
	f := x.file()
	mustWrite(t, f, pattern(100_000, 1), 0)
	<-refused
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := f.Commit(ctx, false); !errors.Is(err, syscall.EDQUOT) {
		t.Errorf("the next operation: %v, want EDQUOT", err)
	}
	mustClose(t, f)
}

// TestForgottenWriteThatFailsIsSaidInTheEnd: when no operation follows, the end of the Store says it.
func TestForgottenWriteThatFailsIsSaidInTheEnd(t *testing.T) {
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) { c.CommitAfter = 50 * time.Millisecond })
	x.meta.with(func(m *fakeMeta) {
		m.onCommit = func(*pb.Commit) error { return fserr.New(syscall.EDQUOT, "too much") }
	})
	f := x.file()
	mustWrite(t, f, pattern(100_000, 1), 0)
	eventually(t, "it has failed", func() bool { return f.Losses() > 0 })
	if err := x.store.Close(); !errors.Is(err, syscall.EDQUOT) {
		t.Errorf("close the store: %v, want EDQUOT", err)
	}
}

// TestForgottenAppendIsNotSplit: others cannot append in the midst of one append, however long that waits for memory.
func TestForgottenAppendIsNotSplit(t *testing.T) {
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) { c.CommitAfter, c.Memory = 50*time.Millisecond, minMemory })
	longest := uint64(0)
	x.meta.with(func(m *fakeMeta) {
		m.onCommit = func(c *pb.Commit) error {
			n := uint64(0)
			for _, e := range c.Extents {
				n += e.Length
			}
			longest = max(longest, n)
			return nil
		}
	})
	for _, s := range x.servers {
		s.set(func(s *fakeServer) { s.stall = true })
	}
	f := x.file()
	want := pattern(2*minMemory, 1)
	done := make(chan error, 1)
	go func() {
		_, err := f.Append(x.ctx(), want)
		done <- err
	}()
	eventually(t, "much is written", func() bool { return f.Size() > minMemory/2 })
	other := x.second().open(x.file().inode) // what another client writes later is published by itself meanwhile: it needs no server
	mustWrite(t, other, pattern(100, 2), 0)
	eventually(t, "it is published", func() bool { return x.meta.attr(other.inode).Size == 100 })
	for _, s := range x.servers {
		s.heal()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mustClose(t, other)
	mustClose(t, f)
	checkContent(t, x.second().open(f.inode), want)
	x.meta.with(func(*fakeMeta) {
		if longest != uint64(len(want)) {
			t.Errorf("the longest commit is of %d bytes, the append of %d", longest, len(want))
		}
	})
}
