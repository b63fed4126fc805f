package data

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue { // the model test waits for timeouts again and again
		if err := f.Value.Set(strconv.Itoa(20 / min(patience, 2))); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// fixture is a Store with a fake metadata service and fake chunk servers.
type fixture struct {
	t       testing.TB
	meta    *fakeMeta
	servers []*fakeServer
	pool    *rpc.Pool
	store   *Store
	inode   atomic.Uint64
	layout  chunk.Layout // policy of new files; zero: the default
}

const testStall = 10 * time.Second

func newFixture(t testing.TB, servers, replicas, minimum int, change ...func(*StoreConfig)) *fixture {
	t.Helper()
	x := &fixture{t: t, meta: newFakeMeta(replicas, minimum), pool: new(rpc.Pool)}
	for i := range servers {
		s := startFakeServer(t, chunk.ServerID(i+1))
		x.servers = append(x.servers, s)
		x.meta.servers[s.id] = s.address()
	}
	cfg := StoreConfig{Meta: x.meta, Pool: x.pool, Memory: 32 << 20, CacheBytes: 16 << 20, Logger: slog.New(slog.DiscardHandler),
		StallTimeout: testStall, IdleTimeout: time.Minute, CommitAfter: time.Hour, ReadTimeout: patience * 100 * time.Millisecond}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if x.store, err = NewStore(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range x.servers {
			s.heal()
		}
		if err := x.store.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
		if err := x.pool.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// file makes an empty file.
func (x *fixture) file() *File {
	inode := x.meta.create(x.inode.Add(1) + 100).Inode
	if !x.layout.IsZero() {
		x.meta.setLayout(inode, x.layout)
	}
	return x.open(inode)
}

// newCodedFixture has a policy for all files.
func newCodedFixture(t testing.TB, servers int, policy string, change ...func(*StoreConfig)) *fixture {
	t.Helper()
	x := newFixture(t, servers, 3, 2, change...)
	var err error
	if x.layout, err = chunk.ParseLayout(policy); err != nil {
		t.Fatal(err)
	}
	return x
}

func (x *fixture) open(inode uint64) *File { return x.store.File(inode, x.meta.attr(inode)) }

func (x *fixture) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	x.t.Cleanup(cancel)
	return ctx
}

func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

func mustWrite(t testing.TB, f *File, p []byte, off int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if n, err := f.WriteAt(ctx, p, off); err != nil || n != len(p) {
		t.Fatalf("write %d bytes at %d: %d, %v", len(p), off, n, err)
	}
}

func mustCommit(t testing.TB, f *File, durable bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := f.Commit(ctx, durable); err != nil {
		t.Fatalf("commit: %v", err)
	}
}

func mustClose(t testing.TB, f *File) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := f.Close(ctx); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// checkContent reads the whole file and compares.
func checkContent(t testing.TB, f *File, want []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if got := f.Size(); got != uint64(len(want)) {
		t.Fatalf("size %d, want %d", got, len(want))
	}
	got := make([]byte, len(want)+10)
	n, err := f.ReadAt(ctx, got, 0)
	if !errors.Is(err, io.EOF) {
		t.Fatalf("read: %d, %v", n, err)
	}
	if i := difference(got[:n], want); i >= 0 {
		t.Fatalf("%d bytes, want %d; the first difference is at %d", n, len(want), i)
	}
}

func difference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// eventually waits for a condition, which it asks for again and again.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("never: %s", what)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, size := range []int{1, 100, 4096, 4097, 10_000, 100_000, 1 << 20, 5<<20 + 123} {
		for _, durable := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d bytes, durable %v", size, durable), func(t *testing.T) {
				x := newFixture(t, 3, 3, 2)
				f := x.file()
				want := pattern(size, uint64(size))
				mustWrite(t, f, want, 0)
				checkContent(t, f, want)
				mustCommit(t, f, durable)
				checkContent(t, f, want)
				mustClose(t, f)
				f = x.open(f.inode)
				checkContent(t, f, want)
				if x.meta.commits != 1 {
					t.Errorf("%d commits", x.meta.commits)
				}
				for _, s := range x.servers {
					s.set(func(s *fakeServer) {
						if inline := size <= 4096; inline != (s.frames == 0) {
							t.Errorf("server %d got %d frames", s.id, s.frames)
						}
						if size > 4096 && size < maxRetained && durable != (s.syncs > 0) {
							t.Errorf("server %d was asked %d times for its disk", s.id, s.syncs)
						}
					})
				}
				mustClose(t, f)
			})
		}
	}
}
