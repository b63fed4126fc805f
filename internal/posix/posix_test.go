package posix

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

func TestAccess(t *testing.T) {
	const dir, file = syscall.S_IFDIR, syscall.S_IFREG
	owner, member, other, root := Cred{UID: 10, GID: 99}, Cred{UID: 11, GID: 99, Groups: []uint32{3, 20}}, Cred{UID: 12, GID: 12}, Cred{}
	for _, c := range []struct {
		who  Cred
		mode uint32
		want uint32
		ok   bool
	}{
		{owner, file | 0o400, Read, true},
		{owner, file | 0o400, Write, false},
		{owner, file | 0o077, Read, false}, // the owner's class decides, though others may
		{member, file | 0o040, Read, true},
		{member, file | 0o004, Read, false},
		{other, file | 0o004, Read, true},
		{other, file | 0o770, Read, false},
		{other, file | 0o005, Read | Execute, true},
		{other, file | 0o005, Read | Write, false},
		{root, file, Read | Write, true},
		{root, file, Execute, false},
		{root, file | 0o001, Execute, true},
		{root, dir, Execute, true},
		{other, dir, 0, true},
	} {
		t.Run(fmt.Sprintf("uid%d/%o/%d", c.who.UID, c.mode, c.want), func(t *testing.T) {
			err := Access(c.who, 10, 20, c.mode, c.want)
			if c.ok != (err == nil) || err != nil && !errors.Is(err, syscall.EACCES) {
				t.Errorf("got %v, want granted=%v", err, c.ok)
			}
		})
	}
}

func TestSticky(t *testing.T) {
	const sticky = syscall.S_ISVTX | 0o777
	for _, c := range []struct {
		uid, dirUID, mode, fileUID uint32
		ok                         bool
	}{{5, 1, sticky, 5, true}, {5, 5, sticky, 6, true}, {5, 1, sticky, 6, false}, {0, 1, sticky, 6, true}, {5, 1, 0o777, 6, true}} {
		if err := Sticky(Cred{UID: c.uid}, c.dirUID, c.mode, c.fileUID); c.ok != (err == nil) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestCheckName(t *testing.T) {
	for name, want := range map[string]error{
		"a": nil, strings.Repeat("x", 255): nil, "...": nil, "\xff\xfe": nil,
		"": syscall.EINVAL, ".": syscall.EINVAL, "..": syscall.EINVAL, "a/b": syscall.EINVAL, "a\x00": syscall.EINVAL,
		strings.Repeat("x", 256): syscall.ENAMETOOLONG,
	} {
		if err := CheckName([]byte(name)); !errors.Is(err, want) {
			t.Errorf("%.20q: %v, want %v", name, err, want)
		}
	}
}
