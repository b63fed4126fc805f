package fuse_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/fuse"
	"github.com/shoalfs/shoalfs/internal/cluster"
	"github.com/shoalfs/shoalfs/internal/testenv"
)

// ownCluster starts a cluster that the test may stop. Port 0 keeps the ports of an earlier run in the same directory.
func ownCluster(t *testing.T, dir string) *cluster.Cluster {
	t.Helper()
	testenv.NeedFUSE(t)
	c, err := cluster.New(cluster.Config{Dir: dir, Metaservers: 1, Chunkservers: 3, Listen: "127.0.0.1:0", Logger: logger()})
	must(t, err)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close the cluster: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must(t, c.Start(ctx))
	return c
}

// TestMountSurvivesRestart: while the servers are gone calls wait, and then they go on.
func TestMountSurvivesRestart(t *testing.T) {
	data := t.TempDir()
	c := ownCluster(t, data)
	fs := dialTo(t, c.Address())
	dir, s := mountOf(t, fs, fuse.Options{})
	write(t, dir+"/before", "written before")
	f, err := os.Create(dir + "/during")
	must(t, err)
	_, err = f.WriteString("first, ")
	must(t, err)
	must(t, c.Close())
	done := make(chan error, 2)
	go func() {
		_, err := f.WriteString("then the rest")
		done <- errors.Join(err, f.Close())
	}()
	go func() { done <- os.Mkdir(dir+"/made", 0o755) }()
	ownCluster(t, data)
	must(t, errors.Join(<-done, <-done))
	for name, want := range map[string]string{"/before": "written before", "/during": "first, then the rest"} {
		if got := string(read(t, dir+name)); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if stat(t, dir+"/made").Mode&syscall.S_IFMT != syscall.S_IFDIR {
		t.Error("the directory made meanwhile is not there")
	}
	must(t, errors.Join(s.Unmount(), fs.Close())) // before the cluster goes
}

// TestClusterStaysAway: programs that wait for it can be killed, and the mount goes away.
func TestClusterStaysAway(t *testing.T) {
	c := ownCluster(t, t.TempDir())
	fs := dialTo(t, c.Address())
	dir, s := mountOf(t, fs, fuse.Options{})
	must(t, os.Mkdir(dir+"/d", 0o755))
	must(t, c.Close())
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "mkdir", dir+"/d/never")
	var out bytes.Buffer
	cmd.Stderr = &out
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		t.Errorf("mkdir ended without a cluster: %v, %s", err, out.String())
	case <-time.After(200 * time.Millisecond): // it waits, as it should
		must(t, cmd.Process.Kill())
		<-ended
	}
	must(t, s.Unmount())
	if err := fs.Close(); err != nil {
		t.Logf("close without a cluster: %v", err) // it says what it could not do
	}
}
