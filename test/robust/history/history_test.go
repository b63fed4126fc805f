package history

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func record(t *testing.T) (*Recorder, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal")
	r, err := NewRecorder(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() }) // a second time, at worst
	return r, path
}

func load(t *testing.T, path string) []Operation {
	t.Helper()
	ops, err := Load("client", path)
	if err != nil {
		t.Fatal(err)
	}
	return ops
}

func TestOutcomes(t *testing.T) {
	r, path := record(t)
	answer := Output{Errno: syscall.EEXIST}
	for _, err := range []error{nil, ErrCancelled, errors.New("oops")} {
		if _, got := r.Do(1, "names/1", Input{Op: Create, Name: "a"}, func() (Output, error) { return answer, err }); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
	ops := load(t, path)
	if len(ops) != 3 {
		t.Fatalf("%d operations", len(ops))
	}
	known, cancelled, failed := ops[0], ops[1], ops[2]
	if !reflect.DeepEqual(known.Output, &answer) || known.Return < known.Call || known.Err != "" || known.Worker != 1 || known.Object != "names/1" {
		t.Errorf("%+v", known)
	}
	if cancelled.Output != nil || cancelled.Return != Never || cancelled.Err != "" {
		t.Errorf("one that was given up is %+v", cancelled)
	}
	if failed.Output != nil || failed.Return != Never || failed.Err != "oops" {
		t.Errorf("one that failed is %+v", failed)
	}
}

// TestDeath cuts a journal off at every byte, as the death of a client can.
func TestDeath(t *testing.T) {
	r, path := record(t)
	for range 2 {
		if _, err := r.Do(0, "file/1", Input{Op: Append, Value: 7}, func() (Output, error) { return Output{}, nil }); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if err := os.WriteFile(path, whole[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		lines := strings.Count(string(whole[:n]), "\n")
		ops := load(t, path)
		if len(ops) != (lines+1)/2 {
			t.Fatalf("%d bytes: %d operations", n, len(ops))
		}
		if lines%2 == 1 && ops[len(ops)-1].Output != nil {
			t.Fatalf("%d bytes: the outcome of the last is known", n)
		}
	}
}

func TestDamage(t *testing.T) {
	for _, text := range []string{"{\n", `{"n":1,"at":1,"out":{}}` + "\n"} {
		path := filepath.Join(t.TempDir(), "journal")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Load("client", path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestWorkersAtOnce(t *testing.T) {
	r, path := record(t)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 50 {
				v := uint64(100*w + i)
				if _, err := r.Do(w, "file/1", Input{Op: Write, Value: v}, func() (Output, error) { return Output{List: []uint64{v}}, nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	ops := load(t, path)
	if len(ops) != 400 {
		t.Fatalf("%d operations", len(ops))
	}
	for _, o := range ops {
		if o.Output == nil || o.Output.List[0] != o.Input.Value || int(o.Input.Value)/100 != o.Worker {
			t.Errorf("%v", &o)
		}
	}
}
