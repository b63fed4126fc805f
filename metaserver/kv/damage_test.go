package kv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
)

func TestBadFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	db := open(t, good, Options{})
	put(t, db, 1, "a", "1")
	for i := range uint64(3000) {
		put(t, db, i+2, fmt.Sprintf("key %d", i), strings.Repeat("v", 100))
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	newer := filepath.Join(dir, "newer")
	edit(t, newer, whole, func(tx *bolt.Tx) error { return tx.Bucket(ownBucket).Put(formatKey, []byte{0, 0, 0, 2}) })
	foreign := filepath.Join(dir, "foreign")
	edit(t, foreign, whole, func(tx *bolt.Tx) error { return tx.DeleteBucket(ownBucket) })
	noIndex := filepath.Join(dir, "no-index")
	edit(t, noIndex, whole, func(tx *bolt.Tx) error { return tx.Bucket(ownBucket).Delete(appliedKey) })
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pages := slices.Clone(whole)
	for i := 2 * os.Getpagesize(); i < len(pages); i++ {
		pages[i] = 0xff
	}
	for path, want := range map[string]string{
		newer:                               "has format 2",
		foreign:                             "not one of a shoalfs metaserver",
		noIndex:                             "is damaged",
		write("empty", nil):                 "is damaged",
		write("text", []byte("hello")):      "is damaged",
		write("garbage", pages[1<<16:]):     "is damaged",
		write("zeros", make([]byte, 1<<16)): "is damaged",
		write("truncated", whole[:5*os.Getpagesize()]): "is damaged",
		write("pages", pages):                          "is damaged",
		dir:                                            "is no regular file",
	} {
		db, err := Open(path, Options{Buckets: testBuckets})
		if err == nil {
			t.Errorf("%s was opened", path)
			_ = db.Close()
			continue
		}
		if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v; want the path and %q", path, err, want)
		}
	}
}

func edit(t *testing.T, path string, content []byte, fn func(*bolt.Tx) error) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(fn), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedPagesAreAnErrorNotAPanic(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	db := open(t, good, Options{})
	for i := range uint64(5000) {
		put(t, db, i+1, fmt.Sprintf("key %d", i), strings.Repeat("v", 100))
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	for n := 4; n < 60; n += 7 {
		path := filepath.Join(dir, fmt.Sprint(n))
		b := slices.Clone(whole)
		for i := range page {
			b[n*page+i] = byte(i*7 + 3)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(path, Options{Buckets: testBuckets})
		if err != nil {
			continue
		}
		_ = db.View(func(r Reader) error { // an error or not, but no panic
			r.Scan(0, nil, func(_, _ []byte) bool { return true })
			return nil
		})
		_ = db.Update(db.Applied()+1, func(tx Txn) error {
			for i := range 5000 {
				tx.Put(0, fmt.Appendf(nil, "key %d", i), []byte("new"))
			}
			return nil
		})
		_ = db.Flush()
		_ = db.Close()
	}
}

func TestShrunkFileIsAnErrorNotACrash(t *testing.T) {
	db := openTest(t, Options{})
	for i := range uint64(5000) {
		put(t, db, i+1, fmt.Sprintf("key %d", i), strings.Repeat("v", 100))
	}
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(db.path, 4096*3); err != nil {
		t.Fatal(err)
	}
	err := db.View(func(r Reader) error {
		r.Scan(0, nil, func(_, _ []byte) bool { return true })
		return nil
	})
	if !errors.Is(err, ErrFailed) {
		t.Fatalf("reading a file that lost its tail: %v", err)
	}
}

func TestTwoProcessesCannotOpenOneDatabase(t *testing.T) {
	db := openTest(t, Options{})
	if _, err := Open(db.path, Options{Buckets: testBuckets}); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Fatalf("opened twice: %v", err)
	}
}

func TestCrashWhileReplacingLeavesTheOldOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := open(t, path, Options{})
	put(t, db, 1, "a", "1")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+newSuffix, []byte("half a data"), 0o600); err != nil {
		t.Fatal(err)
	}
	db = open(t, path, Options{})
	if got := get(t, db, "a"); got != "1" || db.Applied() != 1 {
		t.Fatalf("a reads as %q at %d", got, db.Applied())
	}
	if _, err := os.Stat(path + newSuffix); err == nil {
		t.Fatal("what the crash left is still there")
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
