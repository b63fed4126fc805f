package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestMemoryStaysBounded: a mount that copied a tree ten times holds no more memory than after the first three times, within
// a third; nor do the servers, but for what they hold of each file and chunk. SHOAL_TREE is the tree. With the standard one,
// which is small, the caches are made smaller too: what is tested is that they have bounds.
func TestMemoryStaysBounded(t *testing.T) {
	tree, flags := os.Getenv("SHOAL_TREE"), []string(nil)
	if tree == "" {
		tree = filepath.Join(strings.TrimSpace(sh(t, ".", "go env GOROOT")), "src", "net")
		flags = []string{"--memory", "16", "--cache", "8", "--cache-attrs", "2000"}
	}
	c := startProcesses(t, 1, 3, flags...)
	early := map[string]int{}
	for round := 1; round <= 10; round++ {
		sh(t, c.mountDir, fmt.Sprintf(`cp -r "$TREE" t%[1]d; diff -r "$TREE" t%[1]d`, round), "TREE="+tree)
		if round != 3 && round != 10 {
			continue
		}
		for _, p := range c.everything() {
			kib := residentKiB(t, p.cmd.Process.Pid)
			t.Logf("after %d copies %s has %d KiB resident", round, p.name, kib)
			if before, ok := early[p.name]; ok && p == c.mount && kib > before*4/3 {
				t.Errorf("%s grew from %d KiB after 3 copies to %d after 10", p.name, before, kib)
			}
			early[p.name] = kib
		}
	}
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
