package robust

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/test/robust/history"
)

func TestJudge(t *testing.T) {
	create := history.Input{Op: history.Create, Name: "a"}
	ops := []history.Operation{
		{Client: "x", Object: "names/1", Input: create, Output: &history.Output{Inode: 7}, Call: 1, Return: 5},
		{Client: "x", Object: "names/1", Input: create, Output: &history.Output{Errno: syscall.EEXIST}, Call: 6, Return: 7},
		{Client: "x", Object: "names/1", Input: history.Input{Op: history.List}, Call: 8, Return: history.Never}, // given up
		{Client: "x", Object: "names/1", Input: history.Input{Op: history.Unlink, Name: "a"}, Call: 9, Return: history.Never},
	}
	r, err := judge(ops)
	if err != nil {
		t.Fatal(err)
	}
	if wrong := r.wrong(); len(wrong) > 0 || r.operations != 4 || r.acknowledged != 1 || r.unknown != 1 || r.worst.Return-r.worst.Call != 4 {
		t.Errorf("%v, wrong %v", r, wrong)
	}
	bad := append(ops,
		history.Operation{Client: "y", Object: "names/2", Input: create, Output: &history.Output{Inode: 7}, Call: 10, Return: 11}, // reused
		history.Operation{Client: "y", Object: "register/1", Input: history.Input{Op: history.Read}, Call: 12, Return: history.Never, Err: "input/output error"},
		history.Operation{Client: "y", Object: "register/2", Input: history.Input{Op: history.Read}, Output: &history.Output{List: []uint64{1}}, Call: 13, Return: 14},
	)
	if r, err = judge(bad); err != nil {
		t.Fatal(err)
	}
	wrong := strings.Join(r.wrong(), "\n")
	for _, part := range []string{"1 errors", "input/output error", "inode 7 was made twice", "register/2: its history is not linearizable"} {
		if !strings.Contains(wrong, part) {
			t.Errorf("%q is not in\n%s", part, wrong)
		}
	}
}

func TestText(t *testing.T) {
	got := text([]history.Operation{
		{Client: "x", Object: "log/1", Input: history.Input{Op: history.Append, Value: 3}, Call: 2 * time.Second, Return: history.Never},
		{Client: "y", Object: "log/1", Input: history.Input{Op: history.Read}, Output: &history.Output{List: []uint64{3}}, Call: time.Second, Return: 3 * time.Second},
	})
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "1s") || !strings.Contains(lines[0], "read() -> [3]") || !strings.Contains(lines[1], "never") {
		t.Errorf("\n%s", got)
	}
}
