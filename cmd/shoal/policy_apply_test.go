package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/client"
)

func TestPolicyApply(t *testing.T) {
	dir := onCluster(t)
	local := filepath.Join(t.TempDir(), "file")
	write(t, local, pattern(1, 300_000), 0o644)
	must(t, "mkdir", dir+"/sub")
	must(t, "cp", local, dir+"/sub/file") // the client that wrote it has ended: its chunks are sealed
	if got := must(t, "policy", "apply", dir); got != dir+": 1 file as the policy says; 0 written anew\n" {
		t.Errorf("%q", got)
	}
	must(t, "policy", "set", dir, "ec=2+1")
	if got := must(t, "policy", "apply", dir); got != dir+": 1 file as the policy says; 0 written anew\n" {
		t.Errorf("%q", got)
	}
	if got := must(t, "policy", "apply", "--inherit", dir); got != dir+": 1 file as the policy says; 293K written anew\n" {
		t.Errorf("%q", got)
	}
	if got := must(t, "policy", "get", dir+"/sub/file"); !strings.Contains(got, "ec=2+1") {
		t.Errorf("%q", got)
	}
	if got := must(t, "cat", dir+"/sub/file"); got != string(pattern(1, 300_000)) {
		t.Error("the file is another one")
	}
	must(t, "policy", "set", dir+"/sub/file", "default")
	if got := must(t, "policy", "apply", "--no-wait", dir); got != dir+": 1 file being looked at, and written anew where the policy says\n" {
		t.Errorf("%q", got)
	}
	fails(t, exitFailed, []string{"shoal policy apply: " + dir + "/nothing: no such file"}, "policy", "apply", dir+"/nothing")
	fails(t, exitUsage, []string{"a path"}, "policy", "apply")
}

// An interrupt ends it, and says how much there is left. Before it is said what is waited for.
func TestPolicyApplyInterrupted(t *testing.T) {
	dir := onCluster(t)
	writer, err := client.Dial(t.Context(), shared.c.Address()) // which keeps the chunk that it writes to
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = writer.Close() }()
	path := strings.TrimPrefix(dir, remotePrefix) + "/file"
	if err := writer.WriteFile(t.Context(), path, pattern(1, 300_000), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "policy", "set", dir+"/file", "ec=2+1")
	ctx, cancel := context.WithCancel(t.Context())
	var out, errOut bytes.Buffer
	time.AfterFunc(stallAfter+4*time.Second, cancel)
	status := run(ctx, []string{"policy", "apply", dir}, strings.NewReader(""), &out, &errOut)
	want := "shoal policy apply: 293K left: " + dir + "/file: some of it is in chunks that clients still write to, or that cannot be read now\n" +
		"shoal policy apply: interrupted: 293K of 293K have yet to be written anew, as far as is known; run it again to go on\n"
	if status != exitFailed || out.Len() > 0 || errOut.String() != want {
		t.Errorf("%d %q\n%s\nwant\n%s", status, out.String(), errOut.String(), want)
	}
}

func TestPolicyApplyHeldUp(t *testing.T) {
	w, now := &applyWatch{show: remoteTree{}.Show}, time.Now()
	p := client.ApplyProgress{Files: 2, Total: 2048, Left: 1024}
	for _, c := range []struct {
		after   time.Duration
		waiting string // for a file where there is a colon
		left    uint64
		want    string
	}{
		{0, "this", 1024, ""}, {stallAfter - 1, "this", 1024, ""}, {stallAfter, "this", 1024, "1.0K left: this"}, {2 * stallAfter, "this", 1024, ""},
		{2 * stallAfter, "that", 1024, "1.0K left: that"}, {2 * stallAfter, "/f:that", 1024, "1.0K left: shoal:/f: that"}, {2 * stallAfter, "that", 1000, ""}, {3 * stallAfter, "", 1000, ""}, {4 * stallAfter, "that", 1000, "1000 left: that"},
	} {
		p.WaitingFor, p.Waiting, p.Left = "", c.waiting, c.left
		if path, why, ok := strings.Cut(c.waiting, ":"); ok {
			p.WaitingFor, p.Waiting = path, why
		}
		if got := w.look(now.Add(c.after), p); got != c.want {
			t.Errorf("%v: %q, want %q", c, got, c.want)
		}
	}
}
