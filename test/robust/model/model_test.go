package model

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoalfs/shoalfs/test/robust/history"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// op is an operation that is called and returns at these times; at history.Never, its outcome is not known.
func op(call, ret time.Duration, in history.Input, out history.Output) history.Operation {
	o := history.Operation{Client: "client", Worker: int(call), Input: in, Call: call, Return: ret}
	if ret != history.Never {
		o.Output = &out
	}
	return o
}

// Operations of the tests, shortly.
func named(op history.Op, name string) history.Input { return history.Input{Op: op, Name: name} }
func toName(op history.Op, name, to string) history.Input {
	return history.Input{Op: op, Name: name, To: to}
}
func link(ino uint64, to string) history.Input {
	return history.Input{Op: history.Link, Inode: ino, To: to}
}
func value(op history.Op, v uint64) history.Input { return history.Input{Op: op, Value: v} }
func is(ino uint64) history.Output                { return history.Output{Inode: ino} }
func isDir(ino uint64) history.Output             { return history.Output{Inode: ino, Dir: true} }
func errno(e syscall.Errno) history.Output        { return history.Output{Errno: e} }
func holds(v ...uint64) history.Output            { return history.Output{List: v} }

var (
	ok    = history.Output{}
	links = func(ino uint64) history.Input { return history.Input{Op: history.Links, Inode: ino} }
	list  = history.Input{Op: history.List}
	stat  = history.Input{Op: history.Stat}
	read  = history.Input{Op: history.Read}
)

type past = []history.Operation

const never = history.Never

var tests = []struct {
	name    string
	object  string
	ops     past
	illegal bool
}{
	{"one after another", "names/1", past{
		op(1, 2, named(history.Create, "a"), is(10)),
		op(3, 4, named(history.Create, "a"), errno(syscall.EEXIST)),
		op(5, 6, link(10, "b"), ok),
		op(7, 8, links(10), history.Output{Links: 2}),
		op(9, 10, toName(history.Rename, "a", "b"), ok), // of one inode: nothing happens
		op(11, 12, list, history.Output{Names: []string{"a", "b"}}),
		op(13, 14, named(history.Mkdir, "c"), isDir(11)),
		op(15, 16, toName(history.Rename, "a", "c"), errno(syscall.EISDIR)),
		op(17, 18, toName(history.Exchange, "a", "c"), ok),
		op(19, 20, named(history.Lookup, "a"), isDir(11)),
		op(21, 22, toName(history.NoReplace, "a", "c"), errno(syscall.EEXIST)),
		op(23, 24, named(history.Unlink, "a"), errno(syscall.EISDIR)),
		op(25, 26, named(history.Rmdir, "c"), errno(syscall.ENOTDIR)),
		op(27, 28, named(history.Rmdir, "a"), ok),
		op(29, 30, named(history.Unlink, "b"), ok),
		op(31, 32, links(10), history.Output{Links: 1}),
		op(33, 34, named(history.Unlink, "c"), ok),
		op(35, 36, links(10), errno(syscall.ESTALE)),
		op(37, 38, link(10, "d"), errno(syscall.ENOENT)),
		op(39, 40, list, ok),
	}, false},
	{"one of two creates at once succeeds", "names/1", past{
		op(1, 10, named(history.Create, "a"), is(10)),
		op(2, 9, named(history.Create, "a"), errno(syscall.EEXIST)),
	}, false},
	{"two creates succeed", "names/1", past{
		op(1, 10, named(history.Create, "a"), is(10)),
		op(2, 9, named(history.Create, "a"), is(11)),
	}, true},
	{"a create says that its own file exists", "names/1", past{
		op(1, 10, named(history.Create, "a"), errno(syscall.EEXIST)),
		op(11, 12, named(history.Lookup, "a"), is(10)),
	}, true},
	{"a lost create", "names/1", past{
		op(1, 2, named(history.Create, "a"), is(10)),
		op(3, 4, named(history.Lookup, "a"), errno(syscall.ENOENT)),
	}, true},
	{"a lost unlink", "names/1", past{
		op(1, 2, named(history.Create, "a"), is(10)),
		op(3, 4, named(history.Unlink, "a"), ok),
		op(5, 6, named(history.Lookup, "a"), is(10)),
	}, true},
	{"an unlink that is done twice", "names/1", past{
		op(1, 2, named(history.Create, "a"), is(10)),
		op(3, 10, named(history.Unlink, "a"), ok),
		op(4, 9, named(history.Create, "a"), is(11)),
		op(11, 12, named(history.Lookup, "a"), errno(syscall.ENOENT)),
	}, true},
	{"a stale lookup", "names/1", past{
		op(1, 2, named(history.Create, "a"), is(10)),
		op(3, 4, toName(history.Rename, "a", "b"), ok),
		op(5, 6, named(history.Lookup, "b"), is(10)),
		op(7, 8, named(history.Lookup, "a"), is(10)),
	}, true},
	{"another inode under the name", "names/1", past{
		op(1, 2, named(history.Create, "a"), is(10)),
		op(3, 4, named(history.Lookup, "a"), is(11)),
	}, true},
	{"a rename seen half", "names/1", past{
		op(1, 2, named(history.Create, "a"), is(10)),
		op(3, 10, toName(history.Rename, "a", "b"), ok),
		op(4, 5, list, history.Output{Names: []string{"a", "b"}}),
	}, true},
	{"a link that does not count", "names/1", past{
		op(1, 2, named(history.Create, "a"), is(10)),
		op(3, 4, link(10, "b"), ok),
		op(5, 6, links(10), history.Output{Links: 1}),
	}, true},
	{"an unknown create happened late", "names/1", past{
		op(1, never, named(history.Create, "a"), ok),
		op(3, 4, named(history.Lookup, "a"), errno(syscall.ENOENT)),
		op(5, 6, named(history.Lookup, "a"), is(10)),
		op(7, 8, named(history.Lookup, "a"), is(10)),
	}, false},
	{"an unknown create never happened", "names/1", past{
		op(1, never, named(history.Create, "a"), ok),
		op(3, 4, named(history.Create, "a"), is(10)),
		op(5, 6, named(history.Unlink, "a"), ok),
		op(7, 8, list, ok),
	}, false},
	{"an unknown create happened twice", "names/1", past{
		op(1, never, named(history.Create, "a"), ok),
		op(3, 4, named(history.Lookup, "a"), is(10)),
		op(5, 6, named(history.Unlink, "a"), ok),
		op(7, 8, named(history.Lookup, "a"), is(11)),
	}, true},
	{"a directory whose maker was not told its inode", "names/1", past{
		op(1, 2, named(history.Mkdir, "a"), ok),
		op(3, 4, toName(history.NoReplace, "a", "b"), ok),
		op(5, 6, named(history.Lookup, "b"), isDir(10)),
	}, false},
	{"and is then another", "names/1", past{
		op(1, 2, named(history.Mkdir, "a"), ok),
		op(3, 4, named(history.Lookup, "a"), isDir(10)),
		op(5, 6, named(history.Lookup, "a"), isDir(11)),
	}, true},
	{"attributes", "attrs/1", past{
		op(1, 2, stat, history.Output{Mode: NewMode}),
		op(3, 10, history.Input{Op: history.Chmod, Mode: 0o600}, ok),
		op(4, 9, history.Input{Op: history.Truncate, Size: 5}, ok),
		op(5, 6, stat, history.Output{Mode: NewMode, Size: 5}),
		op(7, 8, stat, history.Output{Mode: 0o600, Size: 5}),
	}, false},
	{"a stale stat", "attrs/1", past{
		op(1, 2, history.Input{Op: history.Truncate, Size: 5}, ok),
		op(3, 4, history.Input{Op: history.Truncate, Size: 6}, ok),
		op(5, 6, stat, history.Output{Mode: NewMode, Size: 5}),
	}, true},
	{"a chmod that takes a truncation back", "attrs/1", past{
		op(1, 2, history.Input{Op: history.Truncate, Size: 5}, ok),
		op(3, 4, history.Input{Op: history.Chmod, Mode: 0o600}, ok),
		op(5, 6, stat, history.Output{Mode: 0o600}),
	}, true},
	{"a register", "register/1", past{
		op(1, 2, read, ok),
		op(3, 10, value(history.Write, 1), ok),
		op(4, 5, read, ok),
		op(6, 7, read, holds(1)),
		op(8, never, value(history.Write, 2), ok),
		op(11, 12, read, holds(1)),
		op(13, 14, read, holds(2)),
	}, false},
	{"a lost write", "register/1", past{
		op(1, 2, value(history.Write, 1), ok),
		op(3, 4, value(history.Write, 2), ok),
		op(5, 6, read, holds(1)),
	}, true},
	{"a stale read", "register/1", past{
		op(1, 10, value(history.Write, 1), ok),
		op(2, 3, read, holds(1)),
		op(4, 5, read, ok),
	}, true},
	{"a torn read", "register/1", past{
		op(1, 2, value(history.Write, 1), ok),
		op(3, 4, read, history.Output{Torn: "half of 1 and half of 2"}),
	}, true},
	{"a write that is done twice", "register/1", past{
		op(1, 2, value(history.Write, 1), ok),
		op(3, 4, value(history.Write, 2), ok),
		op(5, 6, read, holds(2)),
		op(7, 8, read, holds(1)),
	}, true},
	{"appends", "log/1", past{
		op(1, 10, value(history.Append, 1), ok),
		op(2, 9, value(history.Append, 2), ok),
		op(3, never, value(history.Append, 3), ok),
		op(4, never, value(history.Append, 4), ok),
		op(11, 12, read, holds(2, 1)),
		op(13, 14, read, holds(2, 1, 3)),
	}, false},
	{"an append that is done twice", "log/1", past{
		op(1, 2, value(history.Append, 1), ok),
		op(3, 4, read, holds(1, 1)),
	}, true},
	{"a lost append", "log/1", past{
		op(1, 2, value(history.Append, 1), ok),
		op(3, 4, value(history.Append, 2), ok),
		op(5, 6, read, holds(2)),
	}, true},
	{"the last append is lost", "log/1", past{
		op(1, 2, value(history.Append, 1), ok),
		op(3, 4, value(history.Append, 2), ok),
		op(5, 6, read, holds(1)),
	}, true},
	{"the order of appends changes", "log/1", past{
		op(1, 10, value(history.Append, 1), ok),
		op(2, 9, value(history.Append, 2), ok),
		op(11, 12, read, holds(1, 2)),
		op(13, 14, read, holds(2, 1)),
	}, true},
	{"a stale list", "log/1", past{
		op(1, 2, value(history.Append, 1), ok),
		op(3, 4, value(history.Append, 2), ok),
		op(5, 6, read, holds(1)),
		op(7, 8, read, holds(1, 2)),
	}, true},
	{"an error without a reason", "register/1", past{
		op(1, 2, value(history.Write, 1), errno(syscall.EIO)),
	}, true},
}

func TestModels(t *testing.T) {
	for _, test := range tests {
		t.Run(string(KindOf(test.object))+"/"+test.name, func(t *testing.T) {
			for i := range test.ops {
				test.ops[i].Object = test.object
			}
			problems, err := Check(test.ops, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(problems) > 0; got != test.illegal {
				t.Fatalf("a problem: %v, want %v", problems, test.illegal)
			}
			for _, p := range problems {
				shows(t, p)
			}
		})
	}
}

// shows checks that the page of a failing history can be written.
func shows(t *testing.T, p *Problem) {
	t.Helper()
	path, err := p.Visualize(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), "html") {
		t.Errorf("%s is no page: %v", path, err)
	}
}

func TestNoModel(t *testing.T) {
	if _, err := Check(past{{Object: "other/1"}}, time.Minute); err == nil || !strings.Contains(err.Error(), "other/1") {
		t.Error(err)
	}
}

// TestTimeLimit has the checker try the orders of many writes at once, none of which explains what is read. What is not
// explained in time is a problem.
func TestTimeLimit(t *testing.T) {
	var ops past
	for i := range 40 {
		o := op(time.Duration(i), 100, value(history.Write, uint64(i+1)), ok)
		o.Object = "register/1"
		ops = append(ops, o)
	}
	last := op(101, 102, read, holds(1000))
	last.Object = "register/1"
	problems, err := Check(append(ops, last), 50*time.Millisecond)
	if err != nil || len(problems) != 1 || !strings.Contains(problems[0].What, "no explanation") {
		t.Errorf("%v, %v", problems, err)
	}
}

func TestReused(t *testing.T) {
	ops := past{
		op(1, 2, named(history.Create, "a"), is(10)),
		op(3, 4, named(history.Lookup, "a"), is(10)),
		op(5, 6, named(history.Mkdir, "b"), isDir(11)),
		op(7, 8, named(history.Mkdir, "c"), ok), // not told
		op(9, 10, named(history.Mkdir, "d"), ok),
	}
	if found := Reused(ops); len(found) > 0 {
		t.Error(found)
	}
	ops = append(ops, op(11, 12, named(history.Create, "e"), is(11)))
	if found := Reused(ops); len(found) != 1 || !strings.Contains(found[0], "inode 11 ") {
		t.Error(found)
	}
}

// TestFast checks a history as long as traffic makes them, of many clients at once.
func TestFast(t *testing.T) {
	var ops past
	var content []uint64
	for i := range uint64(2000) {
		at := time.Duration(10 * i)
		for w := range time.Duration(8) {
			o := op(at+w, at+20, value(history.Append, 8*i+uint64(w)), ok)
			o.Client, o.Object = fmt.Sprint(w), "log/1"
			ops = append(ops, o)
			content = append(content, o.Input.Value)
		}
	}
	last := op(1e9, 1e9+1, read, holds(content...))
	last.Object = "log/1"
	if problems, err := Check(append(ops, last), time.Minute); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
