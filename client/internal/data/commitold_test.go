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
				for deadline := time.Now().Add(time.Minute); x.meta.attr(f.inode).Size != published; time.Sleep(time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("%d bytes are published, want %d", x.meta.attr(f.inode).Size, published)
					}
				}
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
