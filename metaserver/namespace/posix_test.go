package namespace

import (
	"bytes"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// TestErrnos has one row for each way in which a change of names is refused, and some in which it is not.
func TestErrnos(t *testing.T) {
	w := newWorld(t)
	open := w.mkdir(root, 1, "open", 0o777)
	closed := w.mkdir(root, 1, "closed", 0o755)
	hidden := w.mkdir(root, 1, "hidden", 0o700)
	sticky := w.mkdir(root, 1, "sticky", 0o1777)
	aDir := w.mkdir(alice, open, "adir", 0o755)
	inner := w.mkdir(alice, aDir, "inner", 0o755)
	full := w.mkdir(alice, open, "full", 0o755)
	w.file(alice, full, "x", 0o644)
	w.mkdir(alice, open, "empty", 0o755)
	file := w.file(alice, open, "file", 0o644)
	w.file(alice, sticky, "afile", 0o666)
	w.file(bob, sticky, "bfile", 0o666)
	w.file(root, closed, "rfile", 0o666)
	w.file(root, hidden, "f", 0o666)
	w.mkdir(root, open, "rdir", 0o755) // bob may not write to it
	long := strings.Repeat("n", 256)

	for _, c := range []struct {
		name string
		cred posix.Cred
		op   *pb.Op
		want syscall.Errno
	}{
		{"make in a closed directory", alice, opMake(closed, "n", syscall.S_IFREG), syscall.EACCES},
		{"make what exists in a closed directory", alice, opMake(closed, "rfile", syscall.S_IFREG), syscall.EEXIST},
		{"make in a hidden directory", alice, opMake(hidden, "n", syscall.S_IFREG), syscall.EACCES},
		{"make in a file", alice, opMake(file, "n", syscall.S_IFREG), syscall.ENOTDIR},
		{"make in nothing", alice, opMake(9999, "n", syscall.S_IFREG), syscall.ESTALE},
		{"make a long name", alice, opMake(open, long, syscall.S_IFREG), syscall.ENAMETOOLONG},
		{"make an empty name", alice, opMake(open, "", syscall.S_IFREG), syscall.EINVAL},
		{"make dot", alice, opMake(open, ".", syscall.S_IFDIR), syscall.EINVAL},
		{"make dot dot", alice, opMake(open, "..", syscall.S_IFDIR), syscall.EINVAL},
		{"make a slash", alice, opMake(open, "a/b", syscall.S_IFREG), syscall.EINVAL},
		{"make a NUL", alice, opMake(open, "a\x00b", syscall.S_IFREG), syscall.EINVAL},
		{"make an unknown type", alice, opMake(open, "n", 0o030644), syscall.EINVAL},
		{"make a directory that exists", alice, opMake(open, "file", syscall.S_IFDIR), syscall.EEXIST},
		{"make a device", alice, opMake(open, "n", syscall.S_IFCHR|0o600), syscall.EPERM},
		{"make an empty symlink", alice, opSymlink(open, "n", ""), syscall.ENOENT},
		{"make a long symlink", alice, opSymlink(open, "n", strings.Repeat("t", 4096)), syscall.ENAMETOOLONG},
		{"make a symlink with NUL", alice, opSymlink(open, "n", "a\x00b"), syscall.EINVAL},

		{"link a directory", alice, opLink(aDir, open, "n"), syscall.EPERM},
		{"link over a name", alice, opLink(file, open, "empty"), syscall.EEXIST},
		{"link into a closed directory", alice, opLink(file, closed, "n"), syscall.EACCES},
		{"link nothing", alice, opLink(9999, open, "n"), syscall.ESTALE},

		{"unlink nothing", alice, opUnlink(open, "n"), syscall.ENOENT},
		{"unlink a directory", alice, opUnlink(open, "empty"), syscall.EISDIR},
		{"unlink in a closed directory", alice, opUnlink(closed, "rfile"), syscall.EACCES},
		{"unlink nothing in a closed directory", alice, opUnlink(closed, "n"), syscall.ENOENT},
		{"unlink in a hidden directory", alice, opUnlink(hidden, "f"), syscall.EACCES},
		{"unlink another's in a sticky directory", alice, opUnlink(sticky, "bfile"), syscall.EPERM},
		{"rmdir a file", alice, opRmdir(open, "file"), syscall.ENOTDIR},
		{"rmdir a full one", alice, opRmdir(open, "full"), syscall.ENOTEMPTY},

		{"rename nothing", alice, opRename(open, "n", open, "m"), syscall.ENOENT},
		{"rename to a long name", alice, opRename(open, "file", open, long), syscall.ENAMETOOLONG},
		{"rename below itself", alice, opRename(open, "adir", inner, "n"), syscall.EINVAL},
		{"rename into itself", alice, opRename(open, "adir", aDir, "n"), syscall.EINVAL},
		{"rename over an ancestor", alice, opRename(aDir, "inner", open, "adir"), syscall.ENOTEMPTY},
		{"exchange with an ancestor", alice, opExchange(aDir, "inner", open, "adir"), syscall.EINVAL},
		{"exchange with nothing", alice, opExchange(open, "file", open, "n"), syscall.ENOENT},
		{"replace though no_replace", alice, opNoReplace(open, "file", open, "empty"), syscall.EEXIST},
		{"rename a file over a directory", alice, opRename(open, "file", open, "empty"), syscall.EISDIR},
		{"rename a directory over a file", alice, opRename(open, "empty", open, "file"), syscall.ENOTDIR},
		{"rename over a full directory", alice, opRename(open, "empty", open, "full"), syscall.ENOTEMPTY},
		{"rename out of a closed directory", alice, opRename(closed, "rfile", open, "n"), syscall.EACCES},
		{"rename into a closed directory", alice, opRename(open, "file", closed, "n"), syscall.EACCES},
		{"rename another's from a sticky directory", alice, opRename(sticky, "bfile", open, "n"), syscall.EPERM},
		{"rename over another's in a sticky directory", alice, opRename(open, "file", sticky, "bfile"), syscall.EPERM},
		{"give a directory that one may not write another parent", bob, opRename(open, "rdir", sticky, "n"), syscall.EACCES},
		{"rename it where it is", bob, opRename(open, "rdir", open, "rdir2"), 0},
		{"and back", bob, opRename(open, "rdir2", open, "rdir"), 0},
		{"exchange it away", bob, opExchange(sticky, "bfile", open, "rdir"), syscall.EACCES},

		{"chmod another's", bob, opSet(&pb.SetAttr{Inode: file, Mode: new(uint32(0o600))}), syscall.EPERM},
		{"chown by its owner", alice, opSet(&pb.SetAttr{Inode: file, Uid: new(bob.UID)}), syscall.EPERM},
		{"chown to itself", alice, opSet(&pb.SetAttr{Inode: file, Uid: new(alice.UID)}), 0},
		{"chown another's to itself", bob, opSet(&pb.SetAttr{Inode: file, Uid: new(alice.UID)}), syscall.EPERM},
		{"chgrp to a group one is in", alice, opSet(&pb.SetAttr{Inode: file, Gid: new(uint32(200))}), 0},
		{"chgrp to another", alice, opSet(&pb.SetAttr{Inode: file, Gid: new(uint32(300))}), syscall.EPERM},
		{"chgrp another's", bob, opSet(&pb.SetAttr{Inode: file, Gid: new(bob.GID)}), syscall.EPERM},
		{"truncate a directory", root, opSet(&pb.SetAttr{Inode: aDir, Size: new(uint64(0))}), syscall.EISDIR},
		{"truncate without permission", bob, opSet(&pb.SetAttr{Inode: file, Size: new(uint64(0))}), syscall.EACCES},
		{"truncate what is open", bob, opSet(&pb.SetAttr{Inode: file, Size: new(uint64(0)), Opened: true}), 0},
		{"truncate to too much", root, opSet(&pb.SetAttr{Inode: file, Size: new(uint64(posix.MaxSize + 1))}), syscall.EFBIG},
		{"set times of another's", bob, opSet(&pb.SetAttr{Inode: file, Mtime: new(int64(5))}), syscall.EPERM},
		{"set times to now without permission", bob, opSet(&pb.SetAttr{Inode: file, MtimeNow: true}), syscall.EACCES},
		{"set attributes of nothing", bob, opSet(&pb.SetAttr{Inode: 9999}), syscall.ESTALE},
	} {
		before := w.s.dump()
		res := w.do(c.cred, c.op)
		if res.Mismatch || syscall.Errno(res.Errno) != c.want {
			t.Errorf("%s: %q (%s), mismatch %v, want %q", c.name, syscall.Errno(res.Errno), res.Message, res.Mismatch, c.want)
		}
		if c.want != 0 {
			onlyRecorded(t, c.name, before, w.s.dump())
		}
	}
	w.check()
}

// onlyRecorded checks that a refused command changed nothing but its session's results.
func onlyRecorded(t testing.TB, what string, before, after []string) {
	t.Helper()
	strip := func(lines []string) string {
		var b strings.Builder
		for _, l := range lines {
			if !strings.HasPrefix(l, "result ") {
				b.WriteString(l + "\n")
			}
		}
		return b.String()
	}
	if strip(before) != strip(after) {
		t.Fatalf("%s: it was refused and changed the state", what)
	}
}

func TestMakeNode(t *testing.T) {
	w := newWorld(t)
	dir := w.mkdir(alice, w.mkdir(root, 1, "top", 0o777), "d", 0o755)
	before := w.attr(dir)
	res := w.want(0, w.do(alice, opMake(dir, "f", syscall.S_IFREG|0o640)))
	a, p := res.Attr, res.Parent
	if a.Mode != syscall.S_IFREG|0o640 || a.Nlink != 1 || a.Uid != alice.UID || a.Gid != alice.GID || a.Size != 0 || a.Mtime != w.clock || a.Btime != w.clock {
		t.Errorf("a new file: %v", a)
	}
	if p.Inode != dir || p.Size != 1 || p.Nlink != 2 || p.Mtime != w.clock || p.Ctime != w.clock || p.Atime != before.Atime || p.Version != w.index {
		t.Errorf("its directory: %v", p)
	}
	sub := w.want(0, w.do(alice, opMake(dir, "s", syscall.S_IFDIR|0o700)))
	if sub.Attr.Nlink != 2 || sub.Attr.Parent != dir || sub.Parent.Nlink != 3 || sub.Parent.Size != 2 {
		t.Errorf("a new directory: %v", sub)
	}
	link := w.want(0, w.do(alice, opSymlink(dir, "l", "to/where"))).Attr
	if link.Mode != syscall.S_IFLNK|0o777 || string(link.Symlink) != "to/where" || link.Size != 8 {
		t.Errorf("a new symlink: %v", link)
	}
	dev := w.want(0, w.do(root, &pb.Op{Op: &pb.Op_MakeNode{MakeNode: &pb.MakeNode{Parent: dir, Name: []byte("null"), Mode: syscall.S_IFCHR | 0o666, Rdev: 259}}})).Attr
	if dev.Rdev != 259 || dev.Mode != syscall.S_IFCHR|0o666 {
		t.Errorf("a new device: %v", dev)
	}
	for _, typ := range []uint32{syscall.S_IFIFO, syscall.S_IFSOCK} {
		if n := w.attr(w.mk(alice, dir, "special"+string(rune(typ)), typ|0o600)); n.Mode != typ|0o600 {
			t.Errorf("a special file: %v", n)
		}
	}
	if n := w.attr(w.mk(alice, dir, "plain", 0o600)); n.Mode != syscall.S_IFREG|0o600 {
		t.Errorf("type zero is a regular file: %v", n)
	}

	// open(O_CREAT) of a file that is there already; and of something else.
	again := opMake(dir, "f", syscall.S_IFREG|0o600)
	again.GetMakeNode().Exclusive = false
	if res := w.want(0, w.do(bob, again)); !res.Existed || res.Attr.Inode != a.Inode || res.Attr.Mode != a.Mode {
		t.Errorf("a file that exists: %v", res)
	}
	again.GetMakeNode().Name = []byte("s")
	w.want(syscall.EEXIST, w.do(alice, again))
	w.check()
}

func TestGroupInheritance(t *testing.T) {
	w := newWorld(t)
	dir := w.mkdir(root, 1, "d", 0o777)
	w.want(0, w.do(root, opSet(&pb.SetAttr{Inode: dir, Gid: new(uint32(300)), Mode: new(uint32(0o2777))})))
	if a := w.attr(w.mkdir(alice, dir, "sub", 0o755)); a.Gid != 300 || a.Mode&0o7777 != 0o2755 {
		t.Errorf("a directory below: %v", a)
	}
	if a := w.attr(w.file(alice, dir, "f", 0o2755)); a.Gid != 300 || a.Mode&0o7777 != 0o755 {
		t.Errorf("a file whose maker is not in the group: %v", a)
	}
	if a := w.attr(w.file(alice, dir, "g", 0o2745)); a.Mode&0o7777 != 0o2745 {
		t.Errorf("a file that the group cannot run: %v", a)
	}
	if a := w.attr(w.file(root, dir, "r", 0o2755)); a.Gid != 300 || a.Mode&0o7777 != 0o2755 {
		t.Errorf("root's file: %v", a)
	}
	w.check()
}

func TestSetIDBits(t *testing.T) {
	w := newWorld(t)
	dir := w.mkdir(root, 1, "d", 0o777)
	mode := func(num uint64) uint32 { return w.attr(num).Mode & 0o7777 }
	for _, c := range []struct {
		name string
		cred posix.Cred
		mode uint32
		op   *pb.SetAttr
		want uint32
	}{
		{"chown by the owner", alice, 0o6755, &pb.SetAttr{Gid: new(uint32(200))}, 0o755},
		{"chown by root", root, 0o6755, &pb.SetAttr{Uid: new(uint32(5))}, 0o755},
		{"chown without group execution", alice, 0o6745, &pb.SetAttr{Gid: new(uint32(200))}, 0o2745},
		{"chown with a mode", root, 0o755, &pb.SetAttr{Uid: new(uint32(5)), Mode: new(uint32(0o4755))}, 0o4755},
		{"truncation by the owner", alice, 0o6755, &pb.SetAttr{Size: new(uint64(9))}, 0o755},
		{"truncation by root", root, 0o6755, &pb.SetAttr{Size: new(uint64(9))}, 0o6755},
		{"chmod in the group", alice, 0o644, &pb.SetAttr{Mode: new(uint32(0o2755))}, 0o2755},
	} {
		f := w.file(alice, dir, c.name, c.mode)
		op := c.op
		op.Inode = f
		w.want(0, w.do(c.cred, opSet(op)))
		if got := mode(f); got != c.want {
			t.Errorf("%s: mode %#o, want %#o", c.name, got, c.want)
		}
	}
	f := w.file(alice, dir, "foreign", 0o644)
	w.want(0, w.do(root, opSet(&pb.SetAttr{Inode: f, Gid: new(uint32(300))})))
	w.want(0, w.do(alice, opSet(&pb.SetAttr{Inode: f, Mode: new(uint32(0o2755))})))
	if got := mode(f); got != 0o755 {
		t.Errorf("chmod outside of the group: mode %#o", got)
	}
	sub := w.mkdir(alice, dir, "sub", 0o2755)
	w.want(0, w.do(root, opSet(&pb.SetAttr{Inode: sub, Uid: new(uint32(5))})))
	if got := mode(sub); got != 0o2755 {
		t.Errorf("chown of a directory: mode %#o", got)
	}
	w.want(syscall.EOPNOTSUPP, w.do(root, opSet(&pb.SetAttr{Inode: w.want(0, w.do(root, opSymlink(dir, "l", "t"))).Attr.Inode, Mode: new(uint32(0))})))
	w.check()
}

func TestTimes(t *testing.T) {
	w := newWorld(t)
	dir := w.mkdir(root, 1, "d", 0o777)
	f := w.file(alice, dir, "f", 0o666)
	a := w.want(0, w.do(alice, opSet(&pb.SetAttr{Inode: f, Atime: new(int64(-5)), Mtime: new(int64(7))}))).Attr
	if a.Atime != -5 || a.Mtime != 7 || a.Ctime != w.clock {
		t.Errorf("explicit times: %v", a)
	}
	a = w.want(0, w.do(bob, opSet(&pb.SetAttr{Inode: f, AtimeNow: true, MtimeNow: true}))).Attr
	if a.Atime != w.clock || a.Mtime != w.clock {
		t.Errorf("times set to now by one who may write: %v", a)
	}
	// The leader's clock goes back a minute: nothing else does.
	high := w.clock
	w.clock -= 60e9
	a = w.want(0, w.do(alice, opSet(&pb.SetAttr{Inode: f, Size: new(uint64(3))}))).Attr
	if a.Mtime < high || a.Ctime < high {
		t.Errorf("a clock that ran backwards: mtime %d ctime %d after %d", a.Mtime, a.Ctime, high)
	}
	if p := w.want(0, w.do(alice, opLink(f, dir, "g"))); p.Parent.Mtime < high || p.Attr.Ctime < high {
		t.Errorf("a clock that ran backwards: %v", p)
	}
	// A writer whose clock is behind.
	a = w.want(0, w.do(alice, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 1, Data: []byte("x")}}, Mtime: 5}))).Attr
	if a.Mtime < high {
		t.Errorf("a commit took mtime back to %d", a.Mtime)
	}
	a = w.want(0, w.do(alice, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 1, Data: []byte("x")}}, Mtime: high + 1e9}))).Attr
	if a.Mtime != high+1e9 {
		t.Errorf("a commit set mtime to %d", a.Mtime)
	}
	// Nothing asked for: nothing changes.
	b := w.want(0, w.do(alice, opSet(&pb.SetAttr{Inode: f}))).Attr
	if !proto.Equal(a, b) {
		t.Errorf("an empty SetAttr: %v to %v", a, b)
	}
	w.check()
}

func TestRename(t *testing.T) {
	w := newWorld(t)
	x, y := w.mkdir(root, 1, "x", 0o777), w.mkdir(root, 1, "y", 0o777)
	f := w.file(alice, x, "f", 0o644)
	g := w.file(alice, y, "g", 0o644)

	res := w.want(0, w.do(alice, opRename(x, "f", y, "g")))
	if res.Attr.Inode != f || res.Attr.Ctime != w.clock || res.Replaced.Inode != g || res.Replaced.Nlink != 0 || res.Parent.Inode != x || res.Parent.Size != 0 ||
		res.Parent2.Inode != y || res.Parent2.Size != 1 {
		t.Errorf("replace: %v", res)
	}
	w.gone(g)

	w.want(0, w.do(alice, opLink(f, x, "same")))
	before := w.s.dump()
	if res := w.want(0, w.do(alice, opRename(x, "same", y, "g"))); res.Attr.Nlink != 2 {
		t.Errorf("two names of one inode: %v", res)
	}
	if w.lookup(x, "same") == nil || len(before) == 0 {
		t.Error("a rename between two names of one inode took one away")
	}

	d := w.mkdir(alice, x, "d", 0o755)
	e := w.mkdir(alice, y, "e", 0o755)
	res = w.want(0, w.do(alice, opRename(x, "d", y, "e")))
	if res.Attr.Parent != y || res.Parent.Nlink != 2 || res.Parent2.Nlink != 3 || res.Replaced.Inode != e {
		t.Errorf("a directory over another: %v", res)
	}
	w.gone(e)
	w.check()

	res = w.want(0, w.do(alice, opExchange(y, "e", x, "same")))
	if res.Attr.Inode != d || res.Attr.Parent != x || res.Replaced.Inode != f || res.Parent.Nlink != 2 || res.Parent2.Nlink != 3 {
		t.Errorf("exchange: %v", res)
	}
	if w.lookup(x, "same").Inode != d || w.lookup(y, "e").Inode != f {
		t.Error("exchange: the names do not mean what they should")
	}
	w.check()

	w.want(0, w.do(alice, opNoReplace(x, "same", x, "other")))
	if got := w.names(x); len(got) != 1 || got[0] != "other" {
		t.Errorf("names: %q", got)
	}
	w.want(syscall.EINVAL, w.do(alice, func() *pb.Op { op := opNoReplace(x, "other", y, "z"); op.GetRename().Exchange = true; return op }()))
	w.check()
}

func TestMismatch(t *testing.T) {
	w := newWorld(t)
	f := w.file(root, 1, "f", 0o644)
	for _, op := range []*pb.Op{
		{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{Parent: 1, Name: []byte("f"), Expect: f + 1}}},
		{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{Parent: 1, Name: []byte("f")}}},
		{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{Parent: 1, Name: []byte("g"), Expect: f}}},
		{Op: &pb.Op_Rename{Rename: &pb.Rename{Parent: 1, Name: []byte("f"), NewParent: 1, NewName: []byte("g"), Expect: f, ExpectReplaced: 9}}},
		{Op: &pb.Op_Rename{Rename: &pb.Rename{Parent: 1, Name: []byte("f"), NewParent: 1, NewName: []byte("g"), Expect: 9}}},
	} {
		before := w.s.dump()
		w.seq++
		cmd := w.command(w.session, root, op)
		cmd.Sequence, cmd.Unanswered = w.seq, w.seq
		if res := w.apply(cmd); !res.Mismatch || res.Errno != 0 {
			t.Errorf("%v: %v", op, res)
		}
		if after := w.s.dump(); strings.Join(before, "\n") != strings.Join(after, "\n") {
			t.Errorf("%v: a mismatch changed the state", op)
		}
		// Prepared again it succeeds, or says why not, under the same number.
		Touched(w.s, op)
		w.s.settle(t)
		op = proto.Clone(op).(*pb.Op)
		if op.GetUnlink() != nil {
			op.GetUnlink().Name = []byte("absent")
			op.GetUnlink().Expect = 0
		}
		cmd.Op = op
		if res := w.apply(cmd); res.Mismatch {
			t.Errorf("%v: prepared again: %v", op, res)
		}
	}
	w.check()
}

func TestReads(t *testing.T) {
	w := newWorld(t)
	dir := w.mkdir(root, 1, "d", 0o777)
	noExec := w.mkdir(alice, dir, "noexec", 0o600)
	noRead := w.mkdir(alice, dir, "noread", 0o300)
	f := w.file(alice, dir, "f", 0o640)
	for i := range 10 {
		w.file(alice, noRead, string(rune('a'+i)), 0o600)
	}
	errno := func(err error) syscall.Errno { return fserr.Errno(err) }
	look := func(cred posix.Cred, parent uint64, name string) syscall.Errno {
		_, _, err := Lookup(w.s, cred, parent, []byte(name))
		return errno(err)
	}
	list := func(cred posix.Cred, num uint64) syscall.Errno {
		_, _, _, err := ReadDir(w.s, cred, num, nil, 0)
		return errno(err)
	}
	may := func(cred posix.Cred, num uint64, access uint32) syscall.Errno {
		_, err := Open(w.s, cred, num, access)
		return errno(err)
	}
	for _, c := range []struct {
		what      string
		got, want syscall.Errno
	}{
		{"look up without search permission", look(alice, noExec, "x"), syscall.EACCES},
		{"look up an absent name", look(alice, noRead, "zz"), 0},
		{"look up in a file", look(alice, f, "zz"), syscall.ENOTDIR},
		{"list without read permission", list(alice, noRead), syscall.EACCES},
		{"list by root", list(root, noRead), 0},
		{"list a file", list(root, f), syscall.ENOTDIR},
		{"open to read", may(alice, f, posix.Read|posix.Write), 0},
		{"open by another", may(bob, f, posix.Read), syscall.EACCES},
		{"open a directory to write", may(root, dir, posix.Write), syscall.EISDIR},
		{"execute what nobody may", may(root, f, posix.Execute), syscall.EACCES},
		{"open nothing", may(root, 777, posix.Read), syscall.ESTALE},
		{"absurd access", may(root, f, 99), syscall.EINVAL},
	} {
		if c.got != c.want {
			t.Errorf("%s: %q, want %q", c.what, c.got, c.want)
		}
	}

	var got []byte
	var after []byte
	for pages := 0; ; pages++ {
		entries, eof, attr, err := ReadDir(w.s, root, noRead, after, 3)
		if err != nil || attr.Inode != noRead || pages > 10 {
			t.Fatal(err, attr, pages)
		}
		for _, e := range entries {
			got = append(got, e.Name...)
			after = e.Name
			if e.Attr.Mode != syscall.S_IFREG|0o600 {
				t.Errorf("%q: %v", e.Name, e.Attr)
			}
		}
		if eof {
			break
		}
	}
	if string(got) != "abcdefghij" {
		t.Errorf("listed %q", got)
	}
	w.s.settle(t)
}

func TestReadDirIsBounded(t *testing.T) {
	w := newWorld(t)
	const n = 700
	for i := range n {
		w.want(0, w.do(root, opSymlink(1, string(rune('a'+i%26))+strings.Repeat("x", i/26+1), strings.Repeat("t", posix.MaxSymlink))))
	}
	entries, eof, _, err := ReadDir(w.s, root, 1, nil, maxReadDir)
	if err != nil || eof || len(entries) >= n {
		t.Fatalf("%d entries, eof %v, %v", len(entries), eof, err)
	}
	rest, eof, _, err := ReadDir(w.s, root, 1, entries[len(entries)-1].Name, maxReadDir)
	if err != nil || !eof || len(entries)+len(rest) != n {
		t.Fatalf("%d and %d entries, eof %v, %v", len(entries), len(rest), eof, err)
	}
	w.s.settle(t)
}

func TestXattrs(t *testing.T) {
	w := newWorld(t)
	dir := w.mkdir(root, 1, "d", 0o1777)
	f := w.file(alice, dir, "f", 0o644)
	fifo := w.mk(alice, dir, "p", syscall.S_IFIFO|0o666)
	set := func(name string, value []byte) *pb.Op {
		return opSetXattr(&pb.SetXattr{Inode: f, Name: name, Value: value})
	}
	on := func(num uint64, op *pb.Op) *pb.Op { op.GetSetXattr().Inode = num; return op }
	for _, c := range []struct {
		name string
		cred posix.Cred
		op   *pb.Op
		want syscall.Errno
	}{
		{"remove what is not there", alice, opRemoveXattr(f, "user.a"), syscall.ENODATA},
		{"replace what is not there", alice, opSetXattr(&pb.SetXattr{Inode: f, Name: "user.a", Replace: true}), syscall.ENODATA},
		{"set", alice, set("user.a", []byte("1")), 0},
		{"create what is there", alice, opSetXattr(&pb.SetXattr{Inode: f, Name: "user.a", Create: true}), syscall.EEXIST},
		{"replace", alice, opSetXattr(&pb.SetXattr{Inode: f, Name: "user.a", Value: []byte("22"), Replace: true}), 0},
		{"set empty", alice, set("user.empty", nil), 0},
		{"without permission", bob, set("user.a", nil), syscall.EACCES},
		{"on a FIFO", alice, on(fifo, set("user.a", nil)), syscall.EPERM},
		{"on a sticky directory", alice, on(dir, set("user.a", nil)), syscall.EPERM},
		{"trusted by a user", alice, set("trusted.a", nil), syscall.EPERM},
		{"trusted by root", root, set("trusted.a", []byte("t")), 0},
		{"security by a user", alice, set("security.selinux", nil), syscall.EPERM},
		{"capability by root", root, set("security.capability", []byte("caps")), 0},
		{"system", root, set("system.posix_acl_access", nil), syscall.EOPNOTSUPP},
		{"no namespace", root, set("plain", nil), syscall.EOPNOTSUPP},
		{"no name", root, set("user.", nil), syscall.EINVAL},
		{"long name", root, set("user."+strings.Repeat("x", 251), nil), syscall.ERANGE},
		{"NUL", root, set("user.\x00", nil), syscall.EINVAL},
		{"big value", root, set("user.b", make([]byte, posix.MaxXattr+1)), syscall.E2BIG},
		{"big values 1", root, set("user.b1", make([]byte, posix.MaxXattr)), 0},
		{"big values 2", root, set("user.b2", make([]byte, posix.MaxXattr)), 0},
		{"big values 3", root, set("user.b3", make([]byte, posix.MaxXattr)), 0},
		{"too much in all", root, set("user.b4", make([]byte, posix.MaxXattr)), syscall.ENOSPC},
	} {
		if res := w.do(c.cred, c.op); syscall.Errno(res.Errno) != c.want {
			t.Errorf("%s: %q, want %q", c.name, syscall.Errno(res.Errno), c.want)
		}
	}
	w.check()
	get := func(cred posix.Cred, name string) string {
		v, err := GetXattr(w.s, cred, f, name)
		if err != nil {
			return fserr.Errno(err).Error()
		}
		return string(v)
	}
	for _, c := range []struct{ got, want string }{
		{get(alice, "user.a"), "22"}, {get(bob, "user.empty"), ""}, {get(bob, "user.no"), syscall.ENODATA.Error()},
		{get(root, "trusted.a"), "t"}, {get(alice, "trusted.a"), syscall.ENODATA.Error()}, {get(bob, "security.capability"), "caps"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
	if names, _ := ListXattr(w.s, alice, f); strings.Join(names, " ") != "security.capability user.a user.b1 user.b2 user.b3 user.empty" {
		t.Errorf("names: %q", names)
	}
	if names, _ := ListXattr(w.s, root, f); len(names) != 7 {
		t.Errorf("names for root: %q", names)
	}
	w.s.settle(t)
	if !w.attr(f).HasXattrs || w.attr(fifo).HasXattrs {
		t.Error("has_xattrs is wrong")
	}
	w.want(0, w.do(alice, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 1, Data: []byte("x")}}, KillPrivileges: true})))
	if got := get(bob, "security.capability"); got != syscall.ENODATA.Error() {
		t.Errorf("capabilities after a write: %q", got)
	}
	w.s.settle(t)
	w.want(0, w.do(alice, opUnlink(dir, "f")))
	w.check()
	if w.s.buckets[bXattr].Len() != 0 {
		t.Error("xattrs outlived their inode")
	}
}

func TestTouched(t *testing.T) {
	w := newWorld(t)
	d := w.mkdir(root, 1, "d", 0o755)
	f := w.file(root, 1, "f", 0o644)
	w.want(0, w.do(root, opLink(f, d, "hard")))
	g := w.file(root, d, "g", 0o644)
	for _, c := range []struct {
		op     *pb.Op
		inodes []uint64
		victim uint64
	}{
		{opMake(d, "n", 0o644), []uint64{d}, 0},
		{opLink(g, 1, "n"), []uint64{1, g}, 0},
		{opUnlink(d, "g"), []uint64{d, g}, g},
		{opUnlink(d, "hard"), []uint64{d, f}, 0},
		{opUnlink(d, "absent"), []uint64{d}, 0},
		{opRmdir(1, "d"), []uint64{1, d}, d},
		{opRename(1, "f", d, "g"), []uint64{1, d, f, g}, g},
		{opRename(d, "g", 1, "f"), []uint64{1, d, f, g}, 0},
		{opExchange(1, "f", d, "g"), []uint64{1, d, f, g}, 0},
		{opRename(1, "f", d, "hard"), []uint64{1, d, f}, 0},
		{opSet(&pb.SetAttr{Inode: f}), []uint64{f}, 0},
		{opCommit(&pb.Commit{Inode: f}), []uint64{f}, 0},
		{opAlloc(1), nil, 0},
		{&pb.Op{}, nil, 0},
	} {
		got := Touched(w.s, c.op)
		if !bytes.Equal(u64s(got.Inodes), u64s(c.inodes)) || got.Victim != c.victim {
			t.Errorf("%v: %+v, want %v and %d", c.op, got, c.inodes, c.victim)
		}
	}
	w.s.settle(t)
}

func u64s(list []uint64) []byte {
	var b []byte
	for _, v := range list {
		b = append(b, key8(v)...)
	}
	return b
}
