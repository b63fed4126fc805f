package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A target written with a slash at the end is a directory; a file does not get its name.
func TestTargetWithSlash(t *testing.T) {
	dir := onCluster(t)
	local := t.TempDir()
	at := func(name string) string { return filepath.Join(local, name) }
	write(t, at("a"), []byte("a"), 0o644)
	if err := os.Mkdir(at("d"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, at("d/in"), []byte("in"), 0o644)
	if err := os.Symlink("d", at("link")); err != nil {
		t.Fatal(err)
	}
	must(t, "cp", at("a"), dir+"/a")

	for _, args := range [][]string{
		{"cp", at("a"), dir + "/no/"},
		{"cp", "-r", at("a"), dir + "/no/"},
		{"cp", "-r", at("link"), dir + "/no/"}, // copied as a symlink
		{"cp", dir + "/a", dir + "/no/"},
		{"cp", dir + "/a", at("no") + "/"},
		{"mv", at("a"), dir + "/no/"},
		{"mv", dir + "/a", dir + "/no/"},
	} {
		fails(t, exitFailed, []string{"shoal " + args[0] + ": ", "no/: ", "no such directory"}, args...)
	}
	if got := must(t, "ls", dir); got != "a\n" {
		t.Errorf("%q", got)
	}
	if _, err := os.Lstat(at("no")); !os.IsNotExist(err) {
		t.Error(err)
	}
	// A directory may get such a name, as with cp(1) and mv(1).
	must(t, "cp", "-r", at("d"), dir+"/copy/")
	must(t, "mv", dir+"/copy", dir+"/moved/")
	if got := must(t, "cat", dir+"/moved/in"); got != "in" {
		t.Errorf("%q", got)
	}
	fails(t, exitFailed, []string{"-r"}, "cp", at("d"), dir+"/no/")
}

// A cluster that does not let us in: which of the ways it is not there.
func TestUnanswered(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lonely := l.Addr().String()
	_ = l.Close() // for the metaserver
	dir := t.TempDir()
	fails(t, exitFailed, []string{"no cluster answers at " + lonely + " within 1s (connection refused)", "--cluster"}, "--cluster", lonely, "--timeout", "1s", "ls")

	s := serve(t, "meta", "--id", "1", "--listen", lonely, "--data", dir, "--peers", "1="+lonely+",2=127.0.0.1:1,3=127.0.0.1:2")
	if !s.lines.Scan() { // it listens
		t.Fatal(s.log.String())
	}
	for _, cmd := range []string{"ls", "status"} {
		fails(t, exitFailed, []string{"the metaserver at " + lonely + " answers, but no leader is known", "127.0.0.1:1: connection refused"},
			"--cluster", lonely+",127.0.0.1:1", "--timeout", "1s", cmd)
	}
	s.stop()
}

// Where a directory is missing on the way, that one is named.
func TestMissingParent(t *testing.T) {
	dir := onCluster(t)
	local := t.TempDir()
	file := filepath.Join(local, "f")
	write(t, file, []byte("f"), 0o644)
	missing := "directory " + dir + "/no is missing"
	fails(t, exitFailed, []string{dir + "/no/b/c: ", missing, "-p"}, "mkdir", dir+"/no/b/c")
	fails(t, exitFailed, []string{dir + "/no/f: ", missing}, "cp", file, dir+"/no/f")
	fails(t, exitFailed, []string{missing}, "cp", "-r", local, dir+"/no/b/c")
	fails(t, exitFailed, []string{missing}, "cp", "-", dir+"/no/f")
	fails(t, exitFailed, []string{missing}, "mv", file, dir+"/no/f")
	must(t, "cp", file, dir)
	fails(t, exitFailed, []string{missing}, "mv", dir+"/f", dir+"/no/f")
	fails(t, exitFailed, []string{local + "/no is missing"}, "cp", dir+"/f", local+"/no/f")
	if r := shoal(t, "mkdir", dir+"/f/x"); r.status != exitFailed || strings.Contains(r.err, "-p") {
		t.Errorf("%d %q", r.status, r.err)
	}
}

// Of a cluster that runs already the directory is named, not one of its ports.
func TestUpTwice(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	s := serve(t, "up", "--data", data, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--chunkservers", "1")
	said := s.ready()
	busy := strings.Trim(strings.TrimPrefix(said["http"], "http://"), "/")
	fails(t, exitFailed, []string{data + " is in use by another `shoal up`"}, "up", "--data", data, "--http", busy)
	s.stop()
}
