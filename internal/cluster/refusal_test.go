package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoalfs/shoalfs/chunkserver"
	"github.com/shoalfs/shoalfs/metaserver"
)

// The directory of a server that runs apart is not made a cluster, and stays as it is.
func TestDirectoriesOfServers(t *testing.T) {
	meta, chunk := t.TempDir(), t.TempDir()
	m, err := metaserver.New(metaserver.Config{ID: 1, Listen: "127.0.0.1:0", Dir: meta})
	if err != nil {
		t.Fatal(err)
	}
	s, err := chunkserver.New(chunkserver.Config{Listen: "127.0.0.1:0", Dirs: []string{chunk}, Meta: []string{m.Address()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), m.Close()); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{meta: "`shoal meta`", chunk: "`shoal chunk`"} {
		c, err := New(Config{Dir: dir, Listen: "127.0.0.1:0"})
		if err == nil {
			_ = c.Close() // the test has failed already
			t.Errorf("a cluster was made in the directory of a %s", want)
		} else if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--data") {
			t.Errorf("no %s in %q", want, err)
		}
		for _, name := range []string{lockFile, stateFile} {
			if _, err := os.Lstat(filepath.Join(dir, name)); !os.IsNotExist(err) {
				t.Errorf("%s in the directory of a %s: %v", name, want, err)
			}
		}
	}
}

// Prepare runs when nobody else has the directory, and before anything in it is made.
func TestPrepare(t *testing.T) {
	dir := t.TempDir()
	refused := errors.New("refused")
	if _, err := New(Config{Dir: dir, Listen: "127.0.0.1:0", Prepare: func() error { return refused }}); !errors.Is(err, refused) {
		t.Fatal(err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 || list[0].Name() != lockFile {
		t.Errorf("%v, %v", list, err)
	}
	called := 0
	cfg := Config{Dir: dir, Listen: "127.0.0.1:0", Prepare: func() error { called++; return nil }}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "another `shoal up`") || called != 1 {
		t.Errorf("%v, called %d times", err, called)
	}
	stop(t, c)
}
