package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

// Command lines that make no sense are refused with status 2, before anybody is asked.
func TestUsageErrors(t *testing.T) {
	t.Setenv("SHOAL_CLUSTER", "127.0.0.1:1") // nobody answers there
	for _, c := range []struct {
		args string
		want string
	}{
		{"", "a command is missing"},
		{"frobnicate", "unknown command"},
		{"lss", "did you mean ls"},
		{"ls --frobnicate", "unknown flag"},
		{"ls local", "shoal:/path"},
		{"ls shoal:/ --log-level loud", "--log-level"},
		{"--timeout soon ls", "invalid argument"},
		{"--cluster nonsense ls", "HOST:PORT"},
		{"--cluster host:99999 ls", "no port"},
		{"cp shoal:/a", "missing"},
		{"cp a b", "neither source nor target"},
		{"cp a shoal:/b shoal:/c", "one side"},
		{"cp shoal:/a b c", "one side"},
		{"cp - -", "neither"},
		{"cp - shoal:/a shoal:/b", "exactly one"},
		{"cp shoal:/a shoal:/b -", "exactly one"},
		{"cp --parallel 0 a shoal:/b", "--parallel"},
		{"mv - shoal:/a", "cannot be moved"},
		{"mv shoal:/ shoal:/a", "cannot be moved"},
		{"rm", "a path is missing"},
		{"rm -r shoal:/", "root"},
		{"rm -r shoal:/a/..", "root"},
		{"rm local", "local path"},
		{"mkdir -m 999 shoal:/a", "octal"},
		{"df shoal:/", "unexpected argument"},
		{"servers drain", "the number of a chunk server is missing"},
		{"servers drain three", "chunk server three"},
		{"servers undrain 0", "chunk server 0"},
		{"servers remove 4294967296", "chunk server 4294967296"},
		{"servers remove 1 2", "unexpected argument \"2\""},
		{"servers lose 1", "unexpected argument \"lose\""},
		{"chunk --data d --meta h:1 --scrub-rate fast", "--scrub-rate fast: invalid argument, want bytes a second, such as 8M, or off"},
		{"chunk --data d --meta h:1 --scrub-rate 0", "--scrub-rate 0"},
		{"chunk --data d --meta h:1 --scrub-rate unlimited", "or off"},
		{"up --scrub-rate -1", "--scrub-rate -1"},
		{"up --repair-rate off", "or unlimited"},
		{"meta --id 1 --data d --repair-rate 1e3", "--repair-rate 1e3"},
		{"scrub all", "unexpected argument \"all\""},
		{"fsck shoal:/x", "unexpected argument"},
		{"policy", "policy get"},
		{"policy mend x", "unknown command"},
		{"policy apply x", "local path"},
		{"policy get local", "shoal:/path"},
		{"policy set shoal:/x", "a path or a policy is missing"},
		{"policy set local replicas=2", "shoal:/path"},
		{"policy set shoal:/x replicas=0", "replicas=0"},
		{"policy set shoal:/x ec=4", "ec=4"},
		{"policy set shoal:/x ec=4+0", "ec=K+M"},
		{"policy set shoal:/x ec=4+2,min-copies=3", "min-copies=3"},
		{"policy set shoal:/x many", "want replicas=N or ec=K+M, and perhaps min-copies=N, or default\n"},
		{"policy set shoal:/x ,", "want replicas=N or ec=K+M, or default\n"},
		{"policy set shoal:/x replicas=1,min-copies=2", "min-copies=2: a write counts with 1 to 1 of its shards\n"},
		{"completion tcsh", "unknown shell"},
		{"help nothing", "no such command"},
		{"meta --data d", "--id"},
		{"meta --id 1", "--data"},
		{"meta --id 1 --data d --listen x", "HOST:PORT"},
		{"meta --id 1 --data d --listen 0.0.0.0:7400", "--advertise"},
		{"meta --id 4 --data d --peers 1=h:1,2=h:2,3=h:3", "does not name"},
		{"meta --id 1 --data d --peers 1=h:1,2=h:2", "1, 3 or 5"},
		{"meta --id 1 --data d --peers 1=h:1,1=h:2,3=h:3", "twice"},
		{"meta --id 1 --data d --peers 1=h:1 --advertise h:2", "--advertise"},
		{"chunk --meta h:1", "--data"},
		{"chunk --data d", "--meta"},
		{"chunk --data d --meta h:1 --domain shelf=3", "--domain"},
		{"mount", "missing"},
		{"mount a b c", "unexpected"},
		{"mount nonsense dir", "HOST:PORT"},
		{"up --metaservers 2", "1, 3 or 5"},
		{"up --chunkservers 0", "at least 1"},
		{"up extra", "unexpected"},
		{"umount", "missing"},
	} {
		fails(t, exitUsage, []string{c.want, "--help"}, strings.Fields(c.args)...)
	}
}

func TestHelpAndVersionNeedNoCluster(t *testing.T) {
	if out := must(t, "--help"); !strings.Contains(out, "\n  help        Show what a command does, and its flags\n") {
		t.Errorf("%s", out)
	}
	for _, args := range []string{"--help", "help", "help cp", "cp --help", "ls --help", "version", "version --json", "completion bash", "completion fish"} {
		if out := must(t, strings.Fields(args)...); out == "" {
			t.Errorf("%s: nothing", args)
		}
	}
	if v := fromJSON[version](t, must(t, "version", "--json")); v.Go == "" || v.Version == "" {
		t.Errorf("%+v", v)
	}
}

func TestNoClusterAnswers(t *testing.T) {
	fails(t, exitFailed, []string{"shoal ls: ", "127.0.0.1:1", "--cluster"}, "--cluster", "127.0.0.1:1", "--timeout", "50ms", "ls")
}

func TestCopyTreesBothWays(t *testing.T) {
	dir := onCluster(t)
	from := makeTree(t)
	out := treeDir(t)

	must(t, "cp", "-r", from, dir+"/new")
	must(t, "cp", "-r", dir+"/new", filepath.Join(out, "back"))
	sameTrees(t, from, filepath.Join(out, "back"))

	// Into a directory that is there: under its own name.
	must(t, "mkdir", dir+"/into")
	must(t, "cp", "-r", from, dir+"/into")
	must(t, "cp", "-r", dir+"/into/tree", out)
	sameTrees(t, from, filepath.Join(out, "tree"))

	// Within the cluster.
	must(t, "cp", "-r", dir+"/new", dir+"/twin")
	must(t, "cp", "-r", dir+"/twin", filepath.Join(out, "twin"))
	sameTrees(t, from, filepath.Join(out, "twin"))

	if left := must(t, "ls", "-a", "-R", dir); strings.Contains(left, ".shoal-") {
		t.Errorf("temporary files are left:\n%s", left)
	}
}

func TestCopySingleFiles(t *testing.T) {
	dir := onCluster(t)
	local := t.TempDir()
	at := func(name string) string { return filepath.Join(local, name) }
	write(t, at("a"), pattern(1, 5<<20+77), 0o640)
	write(t, at("b"), []byte("b\n"), 0o755)

	must(t, "cp", at("a"), dir)
	must(t, "cp", dir+"/a", at("a2"))
	sameTrees(t, at("a"), at("a2"))

	must(t, "cp", at("a"), at("b"), dir+"/")
	if got := must(t, "ls", dir); got != "a\nb\n" {
		t.Errorf("%q", got)
	}
	must(t, "cp", dir+"/a", dir+"/b", local) // over what is there
	must(t, "cp", at("b"), dir+"/a")         // a shorter one over a longer one
	if got := must(t, "cat", dir+"/a"); got != "b\n" {
		t.Errorf("%q", got)
	}

	for _, c := range []struct {
		want string
		args []string
	}{
		{"-r", []string{local, dir}},
		{"no such file", []string{at("nothing"), dir}},
		{"no such file", []string{at("a"), dir + "/no/such/dir/a"}},
		{"same file", []string{dir + "/a", dir + "/a"}},
		{"into itself", []string{"-r", dir, dir + "/inside"}},
		{"into itself", []string{"-r", dir, dir}},
		{"need", []string{at("a"), at("b"), dir + "/a"}},
	} {
		fails(t, exitFailed, []string{c.want, "shoal cp: "}, append([]string{"cp"}, c.args...)...)
	}
}

func TestStreams(t *testing.T) {
	dir := onCluster(t)
	data := string(pattern(7, 3<<20+5))
	if r := shoalIn(t, data, "cp", "-", dir+"/stream"); r.status != exitOK {
		t.Fatal(r.err)
	}
	if got := must(t, "cp", dir+"/stream", "-"); got != data {
		t.Errorf("%d bytes came back, want %d", len(got), len(data))
	}
	if r := shoalIn(t, "middle", "cat", dir+"/stream", "-", dir+"/stream"); r.out != data+"middle"+data {
		t.Errorf("cat: %d bytes, %s", len(r.out), r.err)
	}
	r := shoal(t, "cat", dir+"/stream", dir+"/nothing", dir)
	if r.status != exitFailed || r.out != data || strings.Count(r.err, "shoal cat: ") != 2 {
		t.Errorf("cat of something that is not there: %d, %d bytes, %q", r.status, len(r.out), r.err)
	}
	fails(t, exitFailed, []string{"directory"}, "cp", "-", dir)
}

// What cannot be copied is listed at the end; the rest is copied.
func TestPartialFailure(t *testing.T) {
	dir := onCluster(t)
	from := t.TempDir()
	for _, name := range []string{"a", "b", "c"} {
		write(t, filepath.Join(from, name), []byte(name), 0o600)
	}
	must(t, "mkdir", "-p", dir+"/to/b/full")
	r := shoal(t, "cp", "-r", from+"/.", dir+"/to")
	if r.status != exitFailed || !strings.Contains(r.err, "/to/b: is a directory") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("%d %q", r.status, r.err)
	}
	if got := must(t, "cat", dir+"/to/a", dir+"/to/c"); got != "ac" {
		t.Errorf("%q", got)
	}
}

func TestMoveAndRemove(t *testing.T) {
	dir := onCluster(t)
	local := treeDir(t)
	from := makeTree(t)
	if !testenv.IsRoot() { // out of a directory that may not be written to only root can move: TestMoveOutOfReadOnlyDirectory
		if err := os.Chmod(filepath.Join(from, "read only"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	want := snapshot(t, from)

	must(t, "cp", "-r", from, dir+"/a")
	must(t, "mv", dir+"/a", dir+"/b")
	must(t, "mkdir", dir+"/d")
	must(t, "mv", dir+"/b", dir+"/d")
	fails(t, exitFailed, []string{"into itself"}, "mv", dir+"/d", dir+"/d/b/x")
	fails(t, exitFailed, []string{"no such file"}, "mv", dir+"/a", dir+"/x")

	must(t, "mv", dir+"/d/b", filepath.Join(local, "out")) // out of the cluster
	sameTrees(t, from, filepath.Join(local, "out"))
	fails(t, exitFailed, []string{"no such file"}, "stat", dir+"/d/b")

	must(t, "mv", filepath.Join(local, "out"), dir+"/again") // and back
	if _, err := os.Lstat(filepath.Join(local, "out")); !os.IsNotExist(err) {
		t.Errorf("the source of a move is still there: %v", err)
	}
	if n := len(fromJSON[[]jsonEntry](t, must(t, "ls", "-a", "-R", "--json", dir+"/again"))); n != len(want)-1 {
		t.Errorf("%d entries, want %d", n, len(want)-1)
	}

	fails(t, exitFailed, []string{"-r"}, "rm", dir+"/again")
	fails(t, exitFailed, []string{"no such file"}, "rm", dir+"/nothing")
	must(t, "rm", "-f", dir+"/nothing")
	must(t, "rm", dir+"/again/file-1")
	must(t, "rm", "-r", dir+"/again")
	if got := must(t, "ls", "-a", dir); got != "d\n" {
		t.Errorf("%q", got)
	}
}

// Out of a directory that may not be written to nothing can be removed, except by root: a move leaves the original there,
// and says so.
func TestMoveOutOfReadOnlyDirectory(t *testing.T) {
	dir := onCluster(t)
	local := treeDir(t)
	at := func(name string) string { return filepath.Join(local, name) }
	if err := os.Mkdir(at("ro"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, at("ro/file"), []byte("data"), 0o640)
	if err := os.Chmod(at("ro"), 0o555); err != nil {
		t.Fatal(err)
	}
	want := snapshot(t, at("ro"))
	must(t, "cp", "-r", at("ro"), dir+"/ro")
	for _, c := range []struct{ from, to string }{{dir + "/ro", at("out")}, {at("ro"), dir + "/in"}} {
		if testenv.IsRoot() {
			must(t, "mv", c.from, c.to)
		} else {
			fails(t, exitFailed, []string{"shoal mv: " + c.from + "/file: permission denied"}, "mv", c.from, c.to)
		}
	}
	must(t, "cp", "-r", dir+"/in", at("in"))
	for _, copied := range []string{"out", "in"} {
		if got := snapshot(t, at(copied)); !maps.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", copied, got, want)
		}
	}
	_, err := os.Lstat(at("ro/file"))
	for where, stays := range map[string]bool{"on this machine": err == nil, "in the cluster": shoal(t, "stat", dir+"/ro/file").status == exitOK} {
		if stays == testenv.IsRoot() {
			t.Errorf("the original %s is still there: %v", where, stays)
		}
	}
}

func TestList(t *testing.T) {
	dir := onCluster(t)
	local := t.TempDir()
	for i, name := range []string{"big", "old", ".hidden"} {
		write(t, filepath.Join(local, name), make([]byte, 3000>>(i*5)), 0o640)
	}
	at := unix.NsecToTimespec(time.Date(1999, 12, 31, 23, 59, 59, 5, time.Local).UnixNano())
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(local, "old"), []unix.Timespec{at, at}, 0); err != nil {
		t.Fatal(err)
	}
	must(t, "cp", "-r", local+"/.", dir)
	must(t, "mkdir", "-m", "1777", dir+"/sub")
	for _, c := range []struct {
		flags string
		want  string
	}{
		{"", "big\nold\nsub\n"},
		{"-a", ".hidden\nbig\nold\nsub\n"},
		{"-r", "sub\nold\nbig\n"},
		{"-S", "big\nold\nsub\n"},
		{"-R", dir + ":\nbig\nold\nsub\n\n" + dir + "/sub:\n"},
	} {
		if got := must(t, append([]string{"ls", dir}, strings.Fields(c.flags)...)...); got != c.want {
			t.Errorf("ls %s: %q, want %q", c.flags, got, c.want)
		}
	}
	if got := must(t, "ls", "-t", dir); !strings.HasSuffix(got, "old\n") {
		t.Errorf("ls -t: %q", got)
	}
	long := must(t, "ls", "-ln", dir)
	for _, want := range []string{"total ", "-rw-r----- 1 ", " 3000 ", "Dec 31  1999 old\n", "drwxrwxrwt 2 "} {
		if !strings.Contains(long, want) {
			t.Errorf("ls -l: no %q in\n%s", want, long)
		}
	}
	for args, want := range map[string]string{
		"-d " + dir: dir + "\n", dir + "/big": dir + "/big\n", dir + "/old " + dir + "/big": dir + "/big\n" + dir + "/old\n", // to be pasted
	} {
		if got := must(t, append([]string{"ls"}, strings.Fields(args)...)...); got != want {
			t.Errorf("ls %s: %q, want %q", args, got, want)
		}
	}
	if got := must(t, "ls", "-l", dir+"/big"); !strings.HasSuffix(got, " "+dir+"/big\n") {
		t.Errorf("ls -l: %q", got)
	}
	if list := fromJSON[[]jsonEntry](t, must(t, "ls", "--json", dir+"/big")); len(list) != 1 || "shoal:"+list[0].Path != dir+"/big" {
		t.Errorf("%+v", list)
	}
	list := fromJSON[[]jsonEntry](t, must(t, "ls", "--json", dir))
	if len(list) != 3 || list[0].Name != "big" || list[0].Size != 3000 || list[0].Mode != "0640" || list[1].Modified.Year() > 2000 || list[2].Type != "directory" {
		t.Errorf("%+v", list)
	}
	fails(t, exitFailed, []string{"shoal ls: " + dir + "/nothing: no such file"}, "ls", dir+"/nothing")
}

func TestStatDuTree(t *testing.T) {
	dir := onCluster(t)
	local := filepath.Join(t.TempDir(), "t")
	if err := os.MkdirAll(filepath.Join(local, "x/y"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(local, "x/y/f"), pattern(1, 100_000), 0o600)
	if err := os.Symlink("x/y/f", filepath.Join(local, "link")); err != nil {
		t.Fatal(err)
	}
	must(t, "cp", "-r", local, dir)

	if got := must(t, "stat", dir+"/t/link"); !strings.Contains(got, "link -> x/y/f") || !strings.Contains(got, "Type: symlink") {
		t.Error(got)
	}
	st := fromJSON[[]jsonEntry](t, must(t, "stat", "-L", "--json", dir+"/t/link"))
	if len(st) != 1 || st[0].Size != 100_000 || st[0].Type != "file" {
		t.Errorf("%+v", st)
	}

	du := fromJSON[[]jsonUsage](t, must(t, "du", "-b", "--json", dir+"/t"))
	paths := []string{}
	for _, u := range du {
		paths = append(paths, strings.TrimPrefix("shoal:"+u.Path, dir))
	}
	if !slices.Equal(paths, []string{"/t/x/y", "/t/x", "/t"}) || du[1].Bytes != 100_000 || du[2].Files != 2 {
		t.Errorf("%+v", du)
	}
	if got := must(t, "tree", dir+"/t/x/y"); !strings.HasSuffix(got, "\n\n0 directories, 1 file\n") {
		t.Errorf("%q", got)
	}
	if got := must(t, "tree", "-L", "1", dir+"/t/x"); !strings.HasSuffix(got, "\n\n1 directory, 0 files\n") {
		t.Errorf("%q", got)
	}
	if got := must(t, "stat", dir+"/t/link"); !strings.Contains(got, ", 1 link\n") || !strings.Contains(got, "Size: 5 bytes, ") {
		t.Errorf("%q", got)
	}
	if got := must(t, "stat", dir+"/t/x"); !strings.Contains(got, ", 3 links\n") || !strings.Contains(got, "Size: 1 byte, ") {
		t.Errorf("%q", got)
	}
	if got := must(t, "du", "-s", dir+"/t/x"); !strings.HasSuffix(got, "\t"+dir+"/t/x\n") || strings.Count(got, "\n") != 1 {
		t.Errorf("%q", got)
	}

	want := dir + "/t\n├── link -> x/y/f\n└── x\n    └── y\n        └── f\n\n2 directories, 2 files\n"
	if got := must(t, "tree", dir+"/t"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	nested := fromJSON[[]jsonEntry](t, must(t, "tree", "--json", dir+"/t"))
	if len(nested) != 1 || len(nested[0].Children) != 2 || nested[0].Children[1].Children[0].Children[0].Size != 100_000 {
		t.Errorf("%+v", nested)
	}
}

func TestMkdir(t *testing.T) {
	dir := onCluster(t)
	fails(t, exitFailed, []string{"no such file"}, "mkdir", dir+"/a/b")
	must(t, "mkdir", "-p", "-m", "700", dir+"/a/b")
	must(t, "mkdir", "-p", dir+"/a/b")
	fails(t, exitFailed, []string{"exists"}, "mkdir", dir+"/a/b")
	st := fromJSON[[]jsonEntry](t, must(t, "stat", "--json", dir+"/a/b"))
	if st[0].Mode != "0700" {
		t.Errorf("%+v", st)
	}
	if r := shoalIn(t, "x", "cp", "-", dir+"/file"); r.status != exitOK {
		t.Fatal(r.err)
	}
	fails(t, exitFailed, []string{"file"}, "mkdir", "-p", dir+"/file")
}

func TestWhatTheClusterSaysOfItself(t *testing.T) {
	onCluster(t)
	st := fromJSON[jsonStatus](t, must(t, "status", "--json"))
	if len(st.Metaservers) != 1 || !st.Metaservers[0].Leader || len(st.Chunkservers) != 3 || st.RawSize == 0 || st.Cluster == "" {
		t.Errorf("%+v", st)
	}
	for _, s := range st.Chunkservers {
		if s.State != "healthy" || len(s.Disks) != 1 {
			t.Errorf("%+v", s)
		}
	}
	text := must(t, "status")
	for _, want := range []string{"cluster ", "metaservers", "leads", "chunk servers", "healthy"} {
		if !strings.Contains(text, want) {
			t.Errorf("status: no %q in\n%s", want, text)
		}
	}
	if a, b := must(t, "servers"), must(t, "servers", "ls"); strings.Count(a, "healthy") != 3 || strings.Count(b, "healthy") != 3 {
		t.Errorf("%s%s", a, b)
	}
	if n := len(fromJSON[[]jsonServer](t, must(t, "servers", "--json"))); n != 3 {
		t.Errorf("%d servers", n)
	}
	df := fromJSON[diskFree](t, must(t, "df", "--json"))
	if df.Size == 0 || df.Available == 0 || df.Available > df.Size || df.RawSize < df.Size {
		t.Errorf("%+v", df)
	}
	if got := must(t, "df", "-h"); !strings.Contains(got, "Avail") {
		t.Error(got)
	}
}
