package kv

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func makeCopy(t *testing.T, db *DB) *Copy {
	t.Helper()
	c, err := db.Copy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// A copy shows what was applied before it, buffered or not, whatever happens to the database afterwards.
func TestCopyIsOneMoment(t *testing.T) {
	db := openTest(t, Options{FlushInterval: 1 << 40})
	m := newModel()
	for i := range uint64(1000) {
		k := fmt.Sprint("k", i%300)
		put(t, db, i+1, k, fmt.Sprint(i))
		m[0][k] = fmt.Sprint(i)
	}
	c := makeCopy(t, db)
	put(t, db, 1001, "k1", "later")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if c.Index() != 1000 {
		t.Errorf("it holds index %d", c.Index())
	}
	if err := c.View(func(r Reader) error { m.check(t, r); return nil }); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(db.path + ".copy*"); err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
	if _, err := db.Copy(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("a copy of a closed database: %v", err)
	}
}

// Commands and flushes go on while a copy is read, and the file can be opened with more address space meanwhile.
func TestCopyHoldsNothingUp(t *testing.T) {
	db := openTest(t, Options{mapSize: minMapSize})
	put(t, db, 1, "a", "1")
	c := makeCopy(t, db)
	if err := c.View(func(r Reader) error {
		put(t, db, 2, "a", "2")
		if err := db.Flush(); err != nil {
			return err
		}
		db.flushMu.Lock()
		db.mapped = 0 // as if the file had outgrown it
		err := db.ensureMapped()
		db.flushMu.Unlock()
		if err != nil {
			return err
		}
		if v := r.Get(0, []byte("a")); string(v) != "1" {
			return fmt.Errorf("a reads as %q", v)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := get(t, db, "a"); got != "2" {
		t.Fatalf("a reads as %q", got)
	}
}

// A copy that is being made gives way to whoever needs the file, and begins again.
func TestCopyGivesWay(t *testing.T) {
	db := openTest(t, Options{})
	for i := range uint64(2000) {
		put(t, db, i+1, fmt.Sprint(i), strings.Repeat("v", 500))
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 5 {
				c, err := db.Copy(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				n := 0
				if err := c.View(func(r Reader) error {
					r.Scan(0, nil, func(_, _ []byte) bool { n++; return true })
					return nil
				}); err != nil || n != 2000 {
					t.Errorf("%d keys, %v", n, err)
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 20 {
		db.flushMu.Lock()
		db.mapped = 0
		err := db.ensureMapped()
		db.flushMu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	group.Wait()
	w := &copying{ctx: t.Context(), db: db}
	db.reopening.Add(1)
	if _, err := w.Write([]byte("x")); !errors.Is(err, errGiveWay) {
		t.Errorf("it wrote on: %v", err)
	}
	db.reopening.Add(-1)
}

func TestCopyIsCancelled(t *testing.T) {
	db := openTest(t, Options{})
	put(t, db, 1, "a", "1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := db.Copy(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("made with a context that has ended: %v", err)
	}
	w := &copying{ctx: ctx, db: db}
	if _, err := w.Write([]byte("x")); !errors.Is(err, context.Canceled) {
		t.Fatalf("it wrote on: %v", err)
	}
}

func TestCopyThatDoesNotFit(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	err = room(f, math.MaxInt64/4)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "MiB are free") {
		t.Errorf("%v", err)
	}
	if err := room(f, 1); err != nil {
		t.Error(err)
	}
}

// Damaged pages of the copy are an error of the View.
func TestDamagedCopy(t *testing.T) {
	db := openTest(t, Options{})
	for i := range uint64(5000) {
		put(t, db, i+1, fmt.Sprint("key ", i), strings.Repeat("v", 100))
	}
	c := makeCopy(t, db)
	err := c.View(func(Reader) error { panic(damage{errDamaged("x")}) })
	if err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("%v", err)
	}
}
