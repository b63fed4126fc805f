package kv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func sumOf(t *testing.T, db *DB) [32]byte {
	t.Helper()
	f, err := db.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	sum, err := f.Sum(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// TestSumIsOfTheState: databases that the same commands were applied to have one sum, however they were flushed and copied; one that differs in
// a bit, a key or the bucket of a key has another.
func TestSumIsOfTheState(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	lazy, eager := openTest(t, Options{FlushInterval: 1 << 40}), openTest(t, Options{FlushInterval: 1 << 40})
	apply := func(db *DB, index uint64, fn func(Txn)) {
		t.Helper()
		if err := db.Update(index, func(x Txn) error { fn(x); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(3000) {
		k, v, drop := []byte(fmt.Sprint(rng.IntN(500))), []byte(fmt.Sprint(rng.Uint64())), rng.IntN(3) == 0
		fn := func(x Txn) {
			if b := Bucket(i % 2); drop {
				x.Delete(b, k)
			} else {
				x.Put(b, k, v)
			}
		}
		apply(lazy, i+1, fn)
		apply(eager, i+1, fn)
		if i%100 == 0 {
			if err := eager.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := sumOf(t, eager)
	if got := sumOf(t, lazy); got != want {
		t.Fatalf("sums %x and %x of one state", got, want)
	}
	r, _, _, err := eager.Stream()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if err := lazy.Replace(r); err != nil {
		t.Fatal(err)
	}
	if got := sumOf(t, lazy); got != want {
		t.Fatalf("sums %x of a copy, %x of the original", got, want)
	}
	for i, fn := range []func(Txn){
		func(x Txn) { x.Put(0, []byte("x"), []byte("1")) },
		func(x Txn) { x.Put(0, []byte("x"), []byte("0")) },
		func(x Txn) { x.Put(0, []byte("x"), nil); x.Put(1, []byte("1"), nil) },
		func(x Txn) { x.Delete(0, []byte("x")); x.Put(1, []byte("1"), nil); x.Put(1, []byte("x"), nil) },
	} {
		apply(eager, 3001+uint64(i), fn)
		got := sumOf(t, eager)
		if got == want {
			t.Fatalf("the sum is the same after change %d", i)
		}
		want = got
	}
}

// TestSumOfMoreBuckets: a newer version, which has another bucket, has the same state as an older one until it puts something there.
func TestSumOfMoreBuckets(t *testing.T) {
	older := openTest(t, Options{})
	newer, err := Open(filepath.Join(t.TempDir(), "db"), Options{Buckets: append(slices.Clone(testBuckets), "newer")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := newer.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, db := range []*DB{older, newer} {
		put(t, db, 1, "k", "v")
	}
	want := sumOf(t, older)
	if got := sumOf(t, newer); got != want {
		t.Errorf("sums %x and %x of one state", got, want)
	}
	if err := newer.Update(2, func(x Txn) error { x.Put(Bucket(len(testBuckets)), []byte("k"), nil); return nil }); err != nil {
		t.Fatal(err)
	}
	if got := sumOf(t, newer); got == want {
		t.Error("what is in the new bucket does not count")
	}
}

// TestSumOfADamagedFile: pages that make no sense or cannot be read, also those that only the sum reads, stop the database and not the process.
func TestSumOfADamagedFile(t *testing.T) {
	page := int64(os.Getpagesize())
	garbage := bytes.Repeat([]byte{0xff}, int(page))
	for _, tc := range []struct {
		name  string
		value int
		spoil func(f *os.File, size int64) error
	}{
		{"the end of a value is gone", 1 << 20, func(f *os.File, size int64) error { return f.Truncate(size / 2) }},
		{"pages are gone", 100, func(f *os.File, _ int64) error { return f.Truncate(3 * page) }},
		{"pages are garbage", 100, func(f *os.File, size int64) error {
			for at := 2 * page; at < size; at += page {
				if _, err := f.WriteAt(garbage, at); err != nil {
					return err
				}
			}
			return nil
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			db := openTest(t, Options{})
			for i := range uint64(1 << 20 / tc.value) {
				put(t, db, i+1, fmt.Sprint("key ", i), strings.Repeat("v", tc.value))
			}
			f, err := db.Freeze()
			if err != nil {
				t.Fatal(err)
			}
			file, err := os.OpenFile(db.path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(tc.spoil(file, f.tx.Size()), file.Close()); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Sum(t.Context()); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "is damaged") {
				t.Errorf("sum: %v", err)
			}
			if db.Failure() == nil {
				t.Error("the database goes on")
			}
		})
	}
}

// TestSumIsOfItsMoment: what is applied meanwhile does not count.
func TestSumIsOfItsMoment(t *testing.T) {
	db := openTest(t, Options{FlushInterval: time.Millisecond})
	for i := range uint64(4) {
		put(t, db, i+1, fmt.Sprint("k", i), string(make([]byte, sumPiece)))
	}
	want := sumOf(t, db)
	f, err := db.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	if f.Index() != 4 {
		t.Fatalf("it is of index %d", f.Index())
	}
	stop, index := make(chan struct{}), uint64(4)
	var writer sync.WaitGroup
	writer.Go(func() {
		for {
			index++
			if err := db.Update(index, func(x Txn) error { x.Put(0, []byte("k2"), []byte(fmt.Sprint(index))); return nil }); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	got, err := f.Sum(t.Context())
	close(stop)
	writer.Wait()
	if err != nil || got != want {
		t.Fatalf("sum %x, %v; want %x", got, err, want)
	}
	if got := sumOf(t, db); got == want {
		t.Error("later commands do not count at all")
	}
}

// TestSumGivesWay: it holds up neither the end of the database nor its replacement, and ends with its context.
func TestSumGivesWay(t *testing.T) {
	for _, tc := range []struct {
		name string
		need func(*DB) error
	}{
		{"close", (*DB).Close},
		{"replace", func(db *DB) error {
			r, _, _, err := db.Stream()
			if err != nil {
				return err
			}
			return errors.Join(db.Replace(r), r.Close())
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			db := openTest(t, Options{})
			for i := range uint64(8) {
				put(t, db, i+1, fmt.Sprint("k", i), string(make([]byte, sumPiece)))
			}
			f, err := db.Freeze()
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- tc.need(db) }()
			waitFor(t, "somebody to need the file", func() bool { return db.reopening.Load() > 0 })
			if _, err := f.Sum(t.Context()); !errors.Is(err, errGiveWay) {
				t.Errorf("sum: %v", err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("context", func(t *testing.T) {
		db := openTest(t, Options{})
		put(t, db, 1, "k", string(make([]byte, sumPiece)))
		f, err := db.Freeze()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := f.Sum(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("sum: %v", err)
		}
	})
	t.Run("closed", func(t *testing.T) {
		db := openTest(t, Options{})
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Freeze(); !errors.Is(err, ErrClosed) {
			t.Errorf("freeze: %v", err)
		}
	})
}

// BenchmarkSum is what a sum takes of a state of about 100 MiB, three quarters of it rests, and for how long commands wait before it.
func BenchmarkSum(b *testing.B) {
	db, err := Open(b.TempDir()+"/db", Options{Buckets: []string{"a", "b"}})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	const n = 300_000
	index := uint64(0)
	for i := range n {
		index++
		if err := db.Update(index, func(x Txn) error {
			x.Put(Bucket(i%2), fmt.Appendf(nil, "%016x", i*7919), make([]byte, 300))
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	var frozen time.Duration
	for b.Loop() {
		index++
		if err := db.Update(index, func(x Txn) error { x.Put(0, []byte("k"), []byte("v")); return nil }); err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		f, err := db.Freeze()
		if err != nil {
			b.Fatal(err)
		}
		frozen += time.Since(began)
		if _, err := f.Sum(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	info, err := os.Stat(db.path)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(info.Size())
	b.ReportMetric(frozen.Seconds()/float64(b.N)*1e3, "ms-frozen/op")
}
