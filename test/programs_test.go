package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

// sh runs a script in a directory and returns what it printed; the test ends if it fails.
func sh(t testing.TB, dir, script string, env ...string) string {
	t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%.4000s", err, script, out)
	}
	return string(out)
}

// TestPrograms runs programs that people use on a mount.
func TestPrograms(t *testing.T) {
	testenv.NeedPrograms(t, "bash", "diff", "git", "sqlite3", "rsync", "tar")
	c := startProcesses(t, 1, 3)
	t.Run("git", func(t *testing.T) { gitWorks(t, c.mountDir) })
	t.Run("go build", func(t *testing.T) { goBuildWorks(t, c.mountDir) })
	for _, mode := range []string{"delete", "wal"} {
		t.Run("sqlite "+mode, func(t *testing.T) { sqliteWorks(t, c.mountDir, mode) })
	}
	t.Run("tar", func(t *testing.T) { tarWorks(t, c.mountDir) })
	t.Run("rsync", func(t *testing.T) { rsyncWorks(t, c.mountDir) })
}

// gitWorks clones a repository, checks and repacks it, and commits to it.
func gitWorks(t *testing.T, mnt string) {
	origin := t.TempDir()
	identity := []string{"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org"}
	sh(t, origin, `git init -q -b main
for c in $(seq 20); do
  for f in $(seq 15); do mkdir -p d$((f % 5)); seq $((c * f)) $((c * f + 200)) > d$((f % 5))/f$f; done
  git add -A; git commit -q -m "commit $c"
done`, identity...)
	sh(t, mnt, `git clone -q --no-hardlinks "$ORIGIN" repo
cd repo
git fsck --full --strict
test "$(git rev-parse HEAD)" = "$(git -C "$ORIGIN" rev-parse HEAD)"
test -z "$(git status --porcelain)"
git checkout -q -b topic; echo new > new; git add new; git commit -q -m new
git gc -q --prune=now
git fsck --full --strict
git checkout -q main; test ! -e new; git merge -q topic; test -e new
git worktree add -q ../tree topic 2>/dev/null || git worktree add -q ../tree HEAD --detach
rm -rf ../tree; git worktree prune`, append(identity, "ORIGIN="+origin)...)
}

// goBuildWorks builds with source, module cache's output and GOCACHE on the mount. SHOAL_LONG=1 builds all of shoalfs.
func goBuildWorks(t *testing.T, mnt string) {
	testenv.NeedPrograms(t, "go")
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	what := "./internal/posix ./internal/fserr"
	if os.Getenv("SHOAL_LONG") != "" {
		what = "./..."
	}
	script := fmt.Sprintf(`mkdir src gocache gotmp
tar -C "$ROOT" --exclude=./.git --exclude=./.cache --exclude=./data --exclude=./mnt -cf - . | tar -C src -xf -
cd src
go build %[1]s
go vet ./internal/posix
go build %[1]s`, what)
	sh(t, mnt, script, "ROOT="+root, "GOCACHE="+filepath.Join(mnt, "gocache"), "GOTMPDIR="+filepath.Join(mnt, "gotmp"), "GOFLAGS=-buildvcs=false")
}

// sqliteWorks fills a database in many small transactions, from two processes at once, and checks it.
func sqliteWorks(t *testing.T, mnt, journal string) {
	db := filepath.Join(mnt, "db-"+journal)
	out := sh(t, mnt, `sqlite3 "$DB" "pragma journal_mode=$MODE; create table t(k integer primary key, v text);"
fill() { for i in $(seq $1 $2); do echo "begin immediate; insert into t values($i, hex(randomblob(200))); update t set v = v || 'x' where k = $i - 1; commit;"; done; }
(echo ".timeout 30000"; fill 1 300) | sqlite3 -bail "$DB" &
(echo ".timeout 30000"; fill 1001 1300) | sqlite3 -bail "$DB"
wait $!
sqlite3 "$DB" "pragma integrity_check; select count(*) from t;"`, "DB="+db, "MODE="+journal)
	if got := strings.Fields(out); len(got) < 2 || got[len(got)-2] != "ok" || got[len(got)-1] != "600" {
		t.Errorf("integrity check and count: %q, want ok and 600", out)
	}
}

// tarWorks unpacks an archive with every kind of entry and packs it again.
func tarWorks(t *testing.T, mnt string) {
	src := t.TempDir()
	sh(t, src, `mkdir -p a/b/c empty; echo x > a/x; ln a/x a/hard; ln -s x a/soft; ln -s /nowhere a/dangling; mkfifo a/fifo
head -c 300000 /dev/urandom > a/b/blob; truncate -s 10M a/sparse; touch -d '2001-02-03 04:05:06.789' a/old; chmod 4750 a/x; chmod 2775 a/b`)
	listing := `find . ! -path . -printf '%p %y %m %n %l %T@ ' \( -type f -printf '%s' -o -true \) -printf '\n' | sort`
	sh(t, mnt, `mkdir tar; tar -C "$SRC" --format=posix --sparse -cf - . | tar -C tar -xpf -; diff -r --no-dereference "$SRC/a/b" tar/a/b; cmp "$SRC/a/sparse" tar/a/sparse`, "SRC="+src)
	want, got := sh(t, src, listing), sh(t, filepath.Join(mnt, "tar"), listing)
	if want != got {
		t.Errorf("unpacked:\n%s\npacked:\n%s", got, want)
	}
}

// rsyncWorks copies a tree twice: the second time nothing is to be done.
func rsyncWorks(t *testing.T, mnt string) {
	src := t.TempDir()
	sh(t, src, `for i in $(seq 200); do mkdir -p d$((i % 7)); head -c $((i * 100)) /dev/urandom > d$((i % 7))/f$i; done; ln -s d1 link`)
	sh(t, mnt, `rsync -a "$SRC/" rsync/; diff -r "$SRC" rsync`, "SRC="+src)
	if out := sh(t, mnt, `rsync -ai "$SRC/" rsync/`, "SRC="+src); out != "" {
		t.Errorf("the second rsync still copied:\n%s", out)
	}
	if out := sh(t, mnt, `rsync -aic "$SRC/" rsync/`, "SRC="+src); out != "" {
		t.Errorf("by checksum, rsync still copied:\n%s", out)
	}
}
