package test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

// TestMemoryStaysBounded: a mount that copied a tree ten times holds no more memory than after the first three times, within
// a third. What it holds is what is left on its heap after garbage was collected: how much address space the runtime keeps
// resident beside that differs from run to run. SHOAL_TREE is the tree. With the standard one, which is small, the caches
// are made smaller too: what is tested is that they have bounds.
func TestMemoryStaysBounded(t *testing.T) {
	testenv.NeedPrograms(t, "bash", "diff")
	tree, address := os.Getenv("SHOAL_TREE"), freeAddresses(t, 1)[0]
	flags := []string{"--debug", "--http", address}
	if tree == "" {
		tree = filepath.Join(strings.TrimSpace(sh(t, ".", "go env GOROOT")), "src", "net")
		flags = append(flags, "--memory", "16", "--cache", "8", "--cache-attrs", "2000")
	}
	c := startProcesses(t, 1, 3, flags...)
	early := 0.0
	for round := 1; round <= 10; round++ {
		sh(t, c.mountDir, fmt.Sprintf(`cp -r "$TREE" t%[1]d; diff -r "$TREE" t%[1]d`, round), "TREE="+tree)
		if round != 3 && round != 10 {
			continue
		}
		held := heapBytes(t, address)
		for _, p := range c.everything() {
			t.Logf("after %d copies %s has %d KiB resident", round, p.name, residentKiB(t, p.cmd.Process.Pid))
		}
		t.Logf("after %d copies %.0f KiB on the mount's heap", round, held/1024)
		if round == 3 {
			early = held
		} else if held > early*4/3 {
			t.Errorf("the mount held %.0f KiB after 3 copies and %.0f after 10", early/1024, held/1024)
		}
	}
}

// heapBytes is what is left on the heap of a process that serves its profiles and metrics at an address.
func heapBytes(t *testing.T, address string) float64 {
	t.Helper()
	for range 2 { // what pools keep survives one collection
		get(t, "http://"+address+"/debug/pprof/heap?gc=1")
	}
	for line := range strings.Lines(get(t, "http://"+address+"/metrics")) {
		if rest, ok := strings.CutPrefix(line, "go_memstats_heap_alloc_bytes "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			return v
		}
	}
	t.Fatal("the metrics do not tell the size of the heap")
	return 0
}

func get(t *testing.T, url string) string {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }() // only read
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, r.Status, err)
	}
	return string(b)
}

// residentKiB is the memory that a process has in use, without what it shares with the page cache.
func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			return kib
		}
	}
	t.Fatalf("process %d has no RssAnon", pid)
	return 0
}
