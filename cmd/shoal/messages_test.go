package main

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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

// The directory forgotten is not taken for a directory called like an address.
func TestMountNeedsDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, args := range [][]string{{"127.0.0.1:7400"}, {"a:1,b:2"}, {"a:1:/sub"}, {"[::1]:7400"}} {
		fails(t, exitUsage, []string{"the directory to mount on is missing", "./" + args[0]}, append([]string{"mount"}, args...)...)
	}
	fails(t, exitUsage, []string{"the directory to mount on is empty"}, "mount", "127.0.0.1:1", "")
	fails(t, exitUsage, []string{"the directory to mount on is empty"}, "mount", "")
	fails(t, exitFailed, []string{"no cluster answers"}, "--cluster", "127.0.0.1:1", "--timeout", "50ms", "--log-level", "error", "mount", "./127.0.0.1:1")
	if list, err := os.ReadDir("."); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// A server says where it listens, and where others find it if that is elsewhere.
func TestServersSayWhereTheyListen(t *testing.T) {
	s := serve(t, "meta", "--id", "1", "--listen", "127.0.0.1:0", "--data", t.TempDir())
	said := s.ready()
	if said["listen"] == "" || said["reached"] != "" {
		t.Errorf("%v", said)
	}
	chunk := serve(t, "chunk", "--listen", "127.0.0.1:0", "--advertise", "127.0.0.1:1", "--data", t.TempDir(), "--meta", said["listen"])
	if got := chunk.ready(); got["reached"] != "at 127.0.0.1:1" || got["listen"] == "" || got["listen"] == "127.0.0.1:1" {
		t.Errorf("%v", got)
	}
	chunk.stop()

	fails(t, exitFailed, []string{said["listen"] + " is in use", "--listen"}, "meta", "--id", "1", "--listen", said["listen"], "--data", t.TempDir())
	fails(t, exitFailed, []string{said["listen"] + " is in use", "--listen"}, "chunk", "--listen", said["listen"], "--data", t.TempDir(), "--meta", "127.0.0.1:1")
	s.stop()

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other := l.Addr().String()
	_ = l.Close() // its port is free again
	s = serve(t, "meta", "--id", "1", "--listen", "127.0.0.1:0", "--data", t.TempDir(), "--peers", "1="+other)
	if !s.lines.Scan() || s.lines.Text() == "listen "+other || !strings.HasPrefix(s.lines.Text(), "listen 127.0.0.1:") {
		t.Errorf("%q", s.lines.Text())
	}
	if !s.lines.Scan() || s.lines.Text() != "reached at "+other {
		t.Errorf("%q", s.lines.Text())
	}
	s.cancel()
	<-s.status
}

// What is wrong with the value of a flag is said in words, and what would be right.
func TestFlagValues(t *testing.T) {
	for args, want := range map[string]string{
		"cp --parallel x a shoal:/b": `--parallel x: invalid argument, want a whole number`,
		"cp -p x a shoal:/b":         `--parallel x: invalid argument, want a whole number`,
		"--timeout 2 ls":             `--timeout 2: invalid argument, want a duration such as 2s or 1m`,
		"meta --id -1":               `--id -1: invalid argument, want a whole number from 0`,
		"meta --id x":                `--id x: invalid argument, want a whole number from 0`,
		"mount --cache 1x a":         `--cache 1x: invalid argument, want a whole number`,
		"ls --long=perhaps":          `--long perhaps: invalid argument, want true or false`,
		// A variable that is not set leaves the next flag where the value should be.
		"meta --id 1 --data d --peers --http h:1": "--peers needs a value",
		"chunk --data --meta h:1":                 "--data needs a value",
		"up --data --mount d":                     "--data needs a value",
		"ls --cluster --json":                     "--cluster needs a value",
		"mkdir -m --parents shoal:/x":             "--mode needs a value",
		"meta --id 1 --peers":                     "--peers needs a value",
	} {
		r := shoal(t, strings.Fields(args)...)
		if r.status != exitUsage || !strings.Contains(r.err, want) || strings.Contains(r.err, "strconv") || strings.Contains(r.err, "time:") {
			t.Errorf("%s: %d %q, want %q", args, r.status, r.err, want)
		}
	}
}

func TestVersionFlag(t *testing.T) {
	if got := must(t, "--version"); got != must(t, "version") {
		t.Errorf("%q", got)
	}
}

// Names that would command a terminal are quoted in messages.
func TestNamesInMessages(t *testing.T) {
	dir := onCluster(t)
	local := t.TempDir()
	evil := "evil\x1b[31m\nname"
	quoted := `evil\x1b[31m\nname"`
	for _, args := range [][]string{
		{"ls", dir + "/" + evil}, {"stat", dir + "/" + evil}, {"rm", dir + "/" + evil}, {"cat", dir + "/" + evil}, {"du", dir + "/" + evil}, {"tree", dir + "/" + evil},
		{"mkdir", dir + "/" + evil + "/x"}, {"mv", dir + "/" + evil, dir + "/y"}, {"cp", local + "/" + evil, dir}, {"cp", dir + "/" + evil, local}, {"ls", evil}, {evil},
	} {
		r := shoal(t, args...)
		if r.status == exitOK || !strings.Contains(r.err, quoted[:8]) || strings.ContainsRune(r.err, '\x1b') {
			t.Errorf("%q: %q", args, r.err)
		}
		if args[0] != evil && args[len(args)-1] != evil && !strings.Contains(r.err, `"`) {
			t.Errorf("%q: not quoted: %q", args, r.err)
		}
	}
	fails(t, exitFailed, []string{`"shoal:` + strings.TrimPrefix(dir, "shoal:") + "/" + quoted + ": no such file"}, "rm", dir+"/"+evil)
}

// What gRPC calls its errors is not for users.
func TestErrorsWithoutRPC(t *testing.T) {
	err := fmt.Errorf("connect to a:1: %w", status.Error(codes.FailedPrecondition, "it does not"))
	if got := describe(err); got != "connect to a:1: it does not" {
		t.Errorf("%q", got)
	}
	if got := describe(&fs.PathError{Op: "open", Path: "/a", Err: err}); got != "/a: connect to a:1: it does not" {
		t.Errorf("%q", got)
	}
}
