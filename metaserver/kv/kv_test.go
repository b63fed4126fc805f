package kv

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		fmt.Fprintln(os.Stderr, applyForEver(path))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

var testBuckets = []string{"red", "green"}

func open(t rapid.TB, path string, o Options) *DB {
	t.Helper()
	o.Buckets = testBuckets
	db, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func openTest(t testing.TB, o Options) *DB {
	t.Helper()
	db := open(t, filepath.Join(t.TempDir(), "db"), o)
	t.Cleanup(func() {
		if err := db.Close(); err != nil && !errors.Is(err, ErrFailed) {
			t.Error(err)
		}
	})
	return db
}

// model is what the database should hold, by bucket and key.
type model [2]map[string]string

func newModel() model { return model{{}, {}} }

func (m model) clone() model { return model{maps.Clone(m[0]), maps.Clone(m[1])} }

// check compares everything that a Reader can be asked with the model.
func (m model) check(t rapid.TB, r Reader) {
	t.Helper()
	for b := range m {
		want := slices.Sorted(maps.Keys(m[b]))
		for _, from := range append([]string{"", "k", "k5", "z"}, want...) {
			i, _ := slices.BinarySearch(want, from)
			rest := want[i:]
			r.Scan(Bucket(b), []byte(from), func(k, v []byte) bool {
				if len(rest) == 0 || string(k) != rest[0] || string(v) != m[b][rest[0]] {
					t.Fatalf("bucket %d from %q: got %q=%q, want the first of %q", b, from, k, v, rest)
				}
				rest = rest[1:]
				return true
			})
			if len(rest) > 0 {
				t.Fatalf("bucket %d from %q: the scan ended before %q", b, from, rest)
			}
		}
		for i := range 10 {
			k := fmt.Sprintf("k%d", i)
			got := r.Get(Bucket(b), []byte(k))
			want, ok := m[b][k]
			if (got != nil) != ok || string(got) != want {
				t.Fatalf("bucket %d key %q: got %q (%v), want %q (%v)", b, k, got, got != nil, want, ok)
			}
		}
	}
}

func TestDatabaseIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "kv")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		path := filepath.Join(dir, "db")
		// A tiny map, so that the file is opened again with a larger one now and then.
		o := Options{FlushInterval: time.Hour, MaxBuffered: 1 << 20, mapSize: mapMargin + 64<<10}
		db := open(t, path, o)
		defer func() { _ = db.Close() }()
		state, index := newModel(), uint64(0)
		saved, savedIndex, stream := state.clone(), uint64(0), []byte(nil)
		write := func(t *rapid.T, tx Txn, m model) {
			b := rapid.IntRange(0, 1).Draw(t, "bucket")
			k := fmt.Sprintf("k%d", rapid.IntRange(0, 9).Draw(t, "key"))
			if rapid.IntRange(0, 2).Draw(t, "delete") == 0 {
				tx.Delete(Bucket(b), []byte(k))
				delete(m[b], k)
				return
			}
			v := strings.Repeat("v", rapid.SampledFrom([]int{0, 1, 100, 20000}).Draw(t, "size"))
			tx.Put(Bucket(b), []byte(k), []byte(v))
			m[b][k] = v
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				if err := db.View(func(r Reader) error { state.check(t, r); return nil }); err != nil {
					t.Fatal(err)
				}
				if db.Applied() != index || db.Durable() > index {
					t.Fatalf("applied %d, durable %d, want %d", db.Applied(), db.Durable(), index)
				}
			},
			"update": func(t *rapid.T) {
				next := state.clone()
				how := rapid.SampledFrom([]string{"commit", "fail", "reset"}).Draw(t, "how")
				sentinel := errors.New("no")
				err := db.Update(index+1, func(tx Txn) error {
					for range rapid.IntRange(0, 6).Draw(t, "writes") {
						write(t, tx, next)
						next.check(t, tx)
					}
					switch how {
					case "fail":
						return sentinel
					case "reset":
						tx.Reset()
						next = state.clone()
						write(t, tx, next)
						next.check(t, tx)
					}
					return nil
				})
				if how == "fail" {
					if !errors.Is(err, sentinel) {
						t.Fatal(err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				state, index = next, index+1
			},
			"write while scanning": func(t *rapid.T) {
				next := state.clone()
				if err := db.Update(index+1, func(tx Txn) error {
					tx.Put(0, []byte("k3"), []byte("x"))
					next[0]["k3"] = "x"
					tx.Scan(0, nil, func(k, _ []byte) bool {
						tx.Delete(0, k)
						delete(next[0], string(k))
						tx.Put(1, k, k)
						next[1][string(k)] = string(k)
						return true
					})
					next.check(t, tx)
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				state, index = next, index+1
			},
			"flush": func(t *rapid.T) {
				if err := db.Flush(); err != nil {
					t.Fatal(err)
				}
				if db.Durable() != index {
					t.Fatalf("durable %d after a flush at %d", db.Durable(), index)
				}
			},
			"half a flush": func(t *rapid.T) { // so that three layers are read
				db.flushMu.Lock()
				defer db.flushMu.Unlock()
				if db.view.flushing != nil {
					return
				}
				g, err := db.rotate()
				if err != nil {
					t.Fatal(err)
				}
				if g == nil {
					return
				}
				next := state.clone()
				if err := db.Update(index+1, func(tx Txn) error { write(t, tx, next); next.check(t, tx); return nil }); err != nil {
					t.Fatal(err)
				}
				state, index = next, index+1
				if err := db.View(func(r Reader) error { state.check(t, r); return nil }); err != nil {
					t.Fatal(err)
				}
				if err := db.land(g); err != nil {
					t.Fatal(err)
				}
			},
			"reopen": func(t *rapid.T) {
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				db = open(t, path, o)
			},
			"stream": func(t *rapid.T) {
				if err := db.Flush(); err != nil {
					t.Fatal(err)
				}
				stream = read(t, db)
				saved, savedIndex = state.clone(), index
			},
			"replace": func(t *rapid.T) {
				if stream == nil {
					return
				}
				if err := db.Replace(bytes.NewReader(stream)); err != nil {
					t.Fatal(err)
				}
				state, index = saved.clone(), savedIndex
			},
			"replace with half a stream": func(t *rapid.T) {
				if stream == nil {
					return
				}
				if err := db.Replace(bytes.NewReader(stream[:len(stream)/2])); err == nil {
					t.Fatal("half a database was taken for a whole one")
				}
			},
		})
	})
}

func read(t rapid.TB, db *DB) []byte {
	t.Helper()
	r, size, index, err := db.Stream()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != size || index < db.Durable() {
		t.Fatalf("%d bytes at index %d, promised %d; durable %d", len(b), index, size, db.Durable())
	}
	return b
}

const childEnv = "SHOAL_KV_TEST_CHILD"

// step is what the command at an index does in the crash test.
func step(index uint64, put func(k, v []byte), del func(k []byte)) {
	rnd := rand.New(rand.NewPCG(index, 1))
	for range rnd.IntN(20) {
		k := binary.BigEndian.AppendUint64(nil, rnd.Uint64N(5000))
		if rnd.IntN(3) == 0 {
			del(k)
		} else {
			put(k, binary.BigEndian.AppendUint64(nil, index))
		}
	}
}

func applyForEver(path string) error {
	db, err := Open(path, Options{Buckets: testBuckets, FlushInterval: 2 * time.Millisecond, MaxBuffered: 1000})
	for i := uint64(0); err == nil; {
		i = db.Applied() + 1
		err = db.Update(i, func(tx Txn) error {
			step(i, func(k, v []byte) { tx.Put(0, k, v) }, func(k []byte) { tx.Delete(0, k) })
			return nil
		})
	}
	return err
}

func TestKilledProcessLeavesAPrefix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	want, index := map[string]string{}, uint64(0)
	for range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+path)
		stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = stderr
		said := func() string {
			b, err := os.ReadFile(stderr.Name())
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// It is killed some random time after the file began to grow.
		waitFor(t, "the child to write", func() bool { return durableAtLeast(path, index+1) || said() != "" })
		for range rand.IntN(2000) {
			_, _ = os.Stat(path) // a random while
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if why := said(); why != "" {
			t.Fatal(why)
		}
		if err := stderr.Close(); err != nil {
			t.Fatal(err)
		}
		db := open(t, path, Options{})
		for ; index < db.Applied(); index++ {
			step(index+1, func(k, v []byte) { want[string(k)] = string(v) }, func(k []byte) { delete(want, string(k)) })
		}
		got := map[string]string{}
		if err := db.View(func(r Reader) error {
			r.Scan(0, nil, func(k, v []byte) bool { got[string(k)] = string(v); return true })
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(got, want) {
			t.Fatalf("after index %d the database holds other keys than were written up to it", index)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// durableAtLeast looks at the file without locking it.
func durableAtLeast(path string, index uint64) bool {
	b, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	i := bytes.LastIndex(b, appliedKey)
	return i >= 0 && len(b) >= i+len(appliedKey)+8 && binary.BigEndian.Uint64(b[i+len(appliedKey):]) >= index
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

func put(t testing.TB, db *DB, index uint64, key, value string) {
	t.Helper()
	if err := db.Update(index, func(tx Txn) error { tx.Put(0, []byte(key), []byte(value)); return nil }); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, db *DB, key string) (value string) {
	t.Helper()
	if err := db.View(func(r Reader) error { value = string(r.Get(0, []byte(key))); return nil }); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestFailedFlushStopsApplyingAndDropsNothing(t *testing.T) {
	db := openTest(t, Options{FlushInterval: time.Hour, MaxBuffered: 4})
	put(t, db, 1, "a", "1")
	db.mu.Lock()
	db.view.active.set(0, entry{make([]byte, bolt.MaxKeySize+1), []byte("the file refuses this one")})
	db.mu.Unlock()
	if err := db.Flush(); !errors.Is(err, ErrFailed) {
		t.Fatalf("a flush that cannot succeed: %v", err)
	}
	select {
	case <-db.Err():
	default:
		t.Fatal("nobody was told")
	}
	if err := db.Update(2, func(Txn) error { return nil }); !errors.Is(err, ErrFailed) {
		t.Fatalf("an update afterwards: %v", err)
	}
	if got := get(t, db, "a"); got != "1" {
		t.Fatalf("what was applied reads as %q", got)
	}
	if db.Durable() != 0 {
		t.Fatalf("durable %d", db.Durable())
	}
}

func TestFullBufferHoldsUpdatesUp(t *testing.T) {
	db := openTest(t, Options{FlushInterval: time.Hour, MaxBuffered: 4})
	db.flushMu.Lock() // no flush
	for i := range uint64(4) {
		put(t, db, i+1, fmt.Sprint(i), "v")
	}
	done := make(chan error, 1)
	go func() { done <- db.Update(5, func(tx Txn) error { tx.Put(0, []byte("5"), nil); return nil }) }()
	waitFor(t, "the update to begin", func() bool {
		locked := !db.updating.TryLock()
		if !locked {
			db.updating.Unlock()
		}
		return locked
	})
	select {
	case err := <-done:
		t.Fatalf("an update went through a full buffer: %v", err)
	default:
	}
	db.flushMu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestWaitForAWriterEndsWithTheContext: a reader that a waiting writer keeps out gets away, and leaves nothing locked.
func TestWaitForAWriterEndsWithTheContext(t *testing.T) {
	db := openTest(t, Options{})
	held, end := make(chan struct{}), make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		if err := db.View(func(Reader) error { close(held); <-end; return nil }); err != nil {
			t.Error(err)
		}
	})
	<-held
	group.Go(func() { put(t, db, 1, "k", "v") })
	waitFor(t, "a writer that waits", func() bool {
		free := db.mu.TryRLock()
		if free {
			db.mu.RUnlock()
		}
		return !free
	})
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { left <- db.ViewContext(ctx, func(Reader) error { return nil }) }()
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the reader got %v", err)
	}
	if err := db.ViewContext(ctx, func(Reader) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	close(end)
	group.Wait()
	if err := db.ViewContext(t.Context(), func(Reader) error { return nil }); err != nil || get(t, db, "k") != "v" {
		t.Errorf("afterwards: %v", err)
	}
	put(t, db, 2, "k", "w") // a reader's lock left over would hold this up for ever
}

func TestReadersSeeCommandsWhole(t *testing.T) {
	db := openTest(t, Options{FlushInterval: time.Millisecond, MaxBuffered: 64})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			for last := uint64(0); ; {
				select {
				case <-stop:
					return
				default:
				}
				if err := db.View(func(r Reader) error {
					var first []byte
					r.Scan(0, nil, func(_, v []byte) bool {
						if first == nil {
							first = v
						}
						if !bytes.Equal(v, first) {
							t.Errorf("two commands at once: %x and %x", first, v)
						}
						return true
					})
					if first != nil {
						if now := binary.BigEndian.Uint64(first); now < last {
							t.Errorf("went back from %d to %d", last, now)
						} else {
							last = now
						}
					}
					return nil
				}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := uint64(1); i <= 3000; i++ {
		if err := db.Update(i, func(tx Txn) error {
			for k := range uint64(8) {
				tx.Put(0, binary.BigEndian.AppendUint64(nil, k*uint64(1+i%3)), binary.BigEndian.AppendUint64(nil, i))
			}
			tx.Scan(0, nil, func(k, v []byte) bool {
				if binary.BigEndian.Uint64(v) != i {
					tx.Delete(0, k)
				}
				return true
			})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 0 {
			_ = read(t, db)
		}
	}
	close(stop)
	wg.Wait()
}

func TestMisuse(t *testing.T) {
	db := openTest(t, Options{})
	put(t, db, 5, "a", "1")
	if err := db.Update(5, func(Txn) error { return nil }); err == nil {
		t.Error("an index was applied twice")
	}
	if err := db.Update(6, func(tx Txn) error { tx.Put(0, nil, nil); return nil }); err == nil {
		t.Error("an empty key was taken")
	}
	if err := db.Update(6, func(tx Txn) error { tx.Put(0, make([]byte, bolt.MaxKeySize+1), nil); return nil }); err == nil {
		t.Error("a huge key was taken")
	}
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Update(7, func(Txn) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("an update of a closed database: %v", err)
	}
	if err := db.View(func(Reader) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("a view of a closed database: %v", err)
	}
	if _, _, _, err := db.Stream(); !errors.Is(err, ErrClosed) {
		t.Errorf("a copy of a closed database: %v", err)
	}
	if err := db.Replace(strings.NewReader("")); err == nil {
		t.Error("an empty stream replaced a closed database")
	}
}

// Where the system does not give all the address space that was asked for, the database knows how much it has: it would
// else let bbolt outgrow it, which waits for our own read transaction for ever.
func TestLessAddressSpaceThanAskedFor(t *testing.T) {
	const tooMuch = 1 << 47 // all that a process has
	db, err := Open(filepath.Join(t.TempDir(), "db"), Options{Buckets: []string{"a"}, mapSize: tooMuch})
	if err != nil {
		t.Fatal(err)
	}
	if db.mapped >= tooMuch {
		t.Errorf("it takes %d bytes for mapped", db.mapped)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// An Update that waits for room hears of a failure that a read found: the flusher makes no more room then.
func TestFailureEndsTheWaitForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, err := Open(filepath.Join(t.TempDir(), "db"), Options{Buckets: []string{"a"}})
		if err != nil {
			t.Fatal(err)
		}
		db.buffered.Store(int64(db.opts.MaxBuffered))
		done := make(chan error, 1)
		go func() { done <- db.Update(1, func(Txn) error { return nil }) }()
		synctest.Wait()
		if err := db.View(func(Reader) error { panic(damage{errors.New("a test")}) }); !errors.Is(err, ErrFailed) {
			t.Fatalf("a read of a damaged page: %v", err)
		}
		synctest.Wait()
		select {
		case err := <-done:
			if !errors.Is(err, ErrFailed) {
				t.Errorf("the update: %v", err)
			}
		default:
			t.Error("the update waits for room that nobody makes")
			db.room.Broadcast() // for Close to return
		}
		if err := db.Close(); !errors.Is(err, ErrFailed) {
			t.Errorf("close: %v", err)
		}
	})
}
