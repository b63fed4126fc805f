package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

// server is a command that serves, run by a test.
type server struct {
	t      *testing.T
	cancel context.CancelFunc
	lines  *bufio.Scanner
	status chan int
	log    testenv.Log
}

// serve starts a command and returns without waiting for it.
func serve(t *testing.T, args ...string) *server {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	s := &server{t: t, cancel: cancel, lines: bufio.NewScanner(r), status: make(chan int, 1)}
	go func() {
		status := run(ctx, args, strings.NewReader(""), w, &s.log)
		_ = w.Close() // of a pipe: never fails
		s.status <- status
	}()
	t.Cleanup(func() {
		cancel()
		_ = r.Close() // of a pipe: never fails
	})
	return s
}

// ready waits until the command serves and returns what it wrote before, by the first word of each line.
func (s *server) ready() map[string]string {
	s.t.Helper()
	said := map[string]string{}
	for s.lines.Scan() {
		if s.lines.Text() == "ready" {
			return said
		}
		word, rest, _ := strings.Cut(s.lines.Text(), " ")
		said[word] = strings.TrimSpace(rest)
	}
	s.t.Fatalf("ended before it was ready: status %d\n%s", <-s.status, s.log.String())
	return nil
}

// stop interrupts the command, which has to end well.
func (s *server) stop() {
	s.t.Helper()
	s.cancel()
	if status := <-s.status; status != exitOK {
		s.t.Errorf("status %d after an interrupt\n%s", status, s.log.String())
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }() // it was only read
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func TestUp(t *testing.T) {
	dir := t.TempDir()
	args := []string{"up", "--data", filepath.Join(dir, "data"), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--chunkservers", "2"}
	s := serve(t, args...)
	said := s.ready()
	t.Setenv("SHOAL_CLUSTER", said["cluster"])
	url := said["http"]

	if code, body := get(t, url+"healthz"); code != http.StatusOK {
		t.Errorf("healthz: %d %s", code, body)
	}
	if code, body := get(t, url); code != http.StatusOK || !strings.Contains(body, "2 of 2 healthy") {
		t.Errorf("status page: %d %s", code, body)
	}
	_, metrics := get(t, url+"metrics")
	for _, want := range []string{`part="meta-1"`, `part="chunk-2"`, "go_goroutines", "shoal_meta_inodes", "shoal_chunkserver_disk_free_bytes"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s among the metrics", want)
		}
	}
	if r := shoalIn(t, "kept", "cp", "-", "shoal:/file"); r.status != exitOK {
		t.Fatal(r.err)
	}
	fails(t, exitFailed, []string{"another `shoal up`", "--data"}, "up", "--data", filepath.Join(dir, "data"), "--http", "")
	fails(t, exitFailed, []string{said["cluster"], "--listen"}, "up", "--data", filepath.Join(dir, "other"), "--listen", said["cluster"], "--http", "")
	busy := strings.Trim(strings.TrimPrefix(url, "http://"), "/")
	fails(t, exitFailed, []string{busy, "--http"}, "up", "--data", filepath.Join(dir, "other"), "--listen", "127.0.0.1:0", "--http", busy)
	s.stop()

	s = serve(t, "up", "--data", filepath.Join(dir, "data"), "--http", "")
	if again := s.ready(); again["cluster"] != said["cluster"] || again["http"] != "" {
		t.Errorf("after a restart: %v, before: %v", again, said)
	}
	if got := must(t, "cat", "shoal:/file"); got != "kept" {
		t.Errorf("%q", got)
	}
	s.stop()
}

// The same parts run apart, in the wrong order.
func TestSeparateServers(t *testing.T) {
	dir := t.TempDir()
	meta := freeAddress(t)
	var chunks []*server
	for _, name := range []string{"c1", "c2"} {
		chunks = append(chunks, serve(t, "chunk", "--listen", "127.0.0.1:0", "--data", filepath.Join(dir, name), "--meta", meta, "--http", "127.0.0.1:0", "--domain", "host="+name))
	}
	m := serve(t, "meta", "--id", "1", "--listen", meta, "--data", filepath.Join(dir, "m"), "--peers", "1="+meta, "--http", "127.0.0.1:0")
	said := m.ready()
	for i, c := range chunks {
		url := c.ready()["http"]
		if code, body := get(t, url); code != http.StatusOK || !strings.Contains(body, "connected to "+meta) {
			t.Errorf("chunk server %d: %d %s", i+1, code, body)
		}
		if code, body := get(t, url+"healthz"); code != http.StatusOK {
			t.Errorf("chunk server %d: %d %s", i+1, code, body)
		}
	}
	if code, body := get(t, said["http"]); code != http.StatusOK || !strings.Contains(body, "host=c2") {
		t.Errorf("metaserver: %d %s", code, body)
	}
	t.Setenv("SHOAL_CLUSTER", meta)
	if got := must(t, "policy", "get", "shoal:/"); got != "shoal:/: replicas=3, 2 of 3 before a write counts; the cluster's default\n" {
		t.Errorf("%q", got)
	}
	fails(t, exitFailed, []string{meta}, "meta", "--id", "1", "--listen", meta, "--data", filepath.Join(dir, "m2"))
	for _, c := range chunks {
		c.stop()
	}
	m.stop()
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func TestMountAndUmount(t *testing.T) {
	testenv.NeedFUSE(t)
	remote := onCluster(t)
	if r := shoalIn(t, "hello", "cp", "-", remote+"/file"); r.status != exitOK {
		t.Fatal(r.err)
	}
	dir := filepath.Join(t.TempDir(), "made", "for it")
	address := shared.c.Address()
	s := serve(t, "mount", address+":"+strings.TrimPrefix(remote, "shoal:"), dir, "--http", "127.0.0.1:0")
	said := s.ready()
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	write(t, filepath.Join(dir, "new"), []byte("through the mount"), 0o600)
	if _, metrics := get(t, said["http"]+"metrics"); !strings.Contains(metrics, "shoal_fuse_requests_total") || !strings.Contains(metrics, "shoal_client_") {
		t.Error("a mount's metrics are missing")
	}
	fails(t, exitFailed, []string{"mounted there already", "umount"}, "mount", address, dir)
	s.stop()
	if got := must(t, "cat", remote+"/new"); got != "through the mount" {
		t.Errorf("%q", got)
	}

	// `shoal umount` ends the process, too.
	s = serve(t, "mount", "--cluster", address, dir)
	s.ready()
	must(t, "umount", dir)
	if status := <-s.status; status != exitOK {
		t.Errorf("status %d\n%s", status, s.log.String())
	}
	fails(t, exitFailed, []string{"nothing is mounted"}, "umount", dir)
}

// What the mount of `shoal up` does is among the metrics, told from that of the servers.
func TestUpMounts(t *testing.T) {
	testenv.NeedFUSE(t)
	dir := t.TempDir()
	mnt := filepath.Join(dir, "mnt")
	s := serve(t, "up", "--data", filepath.Join(dir, "data"), "--mount", mnt, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
	url := s.ready()["http"]
	write(t, filepath.Join(mnt, "new"), []byte("through the mount"), 0o600)
	_, metrics := get(t, url+"metrics")
	for _, want := range []string{`shoal_fuse_requests_total{errno="OK",op="create",part="mount"} 1`, "shoal_client_"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s among the metrics", want)
		}
	}
	s.stop()
}

// Where nothing can be mounted no cluster is made.
func TestUpChecksMountPointFirst(t *testing.T) {
	dir := t.TempDir()
	file, data := filepath.Join(dir, "file"), filepath.Join(dir, "data")
	write(t, file, nil, 0o600)
	args := []string{"up", "--data", data, "--listen", "127.0.0.1:0", "--http", "", "--log-level", "error"}
	fails(t, exitFailed, []string{file, "not a directory"}, append(args, "--mount", file)...)
	fails(t, exitFailed, []string{file, "not a directory"}, append(args, "--mount", filepath.Join(file, "below"))...)
	if _, err := os.Lstat(data); !os.IsNotExist(err) {
		t.Errorf("the data directory is there: %v", err)
	}

	s := serve(t, args...)
	s.ready()
	fails(t, exitFailed, []string{data + " is in use by another `shoal up`"}, append(args, "--mount", file)...) // which is to be told first
	s.stop()
	fails(t, exitFailed, []string{file, "not a directory"}, append(args, "--mount", file)...)

	testenv.NeedFUSE(t)
	mnt, other := filepath.Join(dir, "mnt"), filepath.Join(dir, "other")
	s = serve(t, append(args, "--mount", mnt)...)
	s.ready()
	fails(t, exitFailed, []string{mnt, "mounted there already", "umount"}, "up", "--data", other, "--mount", mnt, "--listen", "127.0.0.1:0", "--http", "", "--log-level", "error")
	if _, err := os.Lstat(other); !os.IsNotExist(err) {
		t.Errorf("the data directory is there: %v", err)
	}
	s.stop()
}

// What was made to mount on goes again when nothing was mounted; what was there stays.
func TestFailedMountLeavesNothing(t *testing.T) {
	testenv.NeedFUSE(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	busy, dir := l.Addr().String(), t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "there"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, mnt := range []string{"made/for it", "there/below", "there"} {
		fails(t, exitFailed, []string{busy, "--http"}, "mount", freeAddress(t), filepath.Join(dir, mnt), "--http", busy)
		fails(t, exitFailed, []string{"no cluster answers"}, "mount", freeAddress(t), filepath.Join(dir, mnt), "--timeout", "50ms", "--log-level", "error")
		fails(t, exitFailed, []string{busy, "--http"}, "up", "--data", filepath.Join(dir, "there", "data"), "--mount", filepath.Join(dir, mnt), "--listen", "127.0.0.1:0", "--http", busy)
		if err := os.RemoveAll(filepath.Join(dir, "there", "data")); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{dir, filepath.Join(dir, "there")} {
			if list, err := os.ReadDir(path); err != nil || path == dir && len(list) != 1 || path != dir && len(list) != 0 {
				t.Errorf("%s: %v, %v", mnt, list, err)
			}
		}
	}
}

// A mount waits for a cluster that is not there yet, and an interrupt ends the wait.
// What is made for a mount is what is mounted on, and is taken away, where the path goes back out of a symlink.
func TestMountPointBehindSymlink(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755), os.Symlink("a/b", filepath.Join(dir, "link"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	p := &mountPoint{dir: dir + "/link/../new"}
	_ = p.prepare(slog.New(slog.DiscardHandler)) // which may say that there is no FUSE here
	if st, err := os.Stat(filepath.Join(dir, "new")); err != nil || !st.IsDir() {
		t.Errorf("it was not made: %v", err)
	}
	p.abandon()
	for _, left := range []string{"new", "a/new"} {
		if _, err := os.Lstat(filepath.Join(dir, left)); err == nil {
			t.Errorf("%s is left", left)
		}
	}
}

func TestMountWaits(t *testing.T) {
	testenv.NeedFUSE(t)
	s := serve(t, "mount", freeAddress(t), t.TempDir(), "--http", "127.0.0.1:0")
	s.cancel()
	if status := <-s.status; status != exitFailed {
		t.Errorf("status %d\n%s", status, s.log.String())
	}
	fails(t, exitFailed, []string{"no cluster answers"}, "mount", freeAddress(t), t.TempDir(), "--timeout", "50ms", "--log-level", "error")
}

// copyOut to a reader that goes away ends with an error, not a hang.
func TestBrokenPipe(t *testing.T) {
	dir := onCluster(t)
	if r := shoalIn(t, string(pattern(1, 4<<20)), "cp", "-", dir+"/file"); r.status != exitOK {
		t.Fatal(r.err)
	}
	r, w := io.Pipe()
	_ = r.CloseWithError(syscall.EPIPE) // of a pipe: never fails
	var errOut bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if status := run(ctx, []string{"cat", dir + "/file"}, strings.NewReader(""), w, &errOut); status != exitFailed || !strings.Contains(errOut.String(), "broken pipe") {
		t.Errorf("status %d, %s", status, errOut.String())
	}
}
