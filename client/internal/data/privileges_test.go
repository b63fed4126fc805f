package data

import (
	"slices"
	"testing"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestKillPrivileges(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	var got []bool
	x.meta.with(func(m *fakeMeta) {
		m.onCommit = func(c *pb.Commit) error {
			got = append(got, c.KillPrivileges)
			return nil
		}
	})
	mustWrite(t, f, []byte("as root"), 0)
	mustCommit(t, f, false)
	f.KillPrivileges()
	mustWrite(t, f, []byte("as another"), 0)
	mustCommit(t, f, false)
	if !slices.Equal(got, []bool{false, true}) {
		t.Error(got)
	}
	mustClose(t, f)
}

// TestPrivilegesWhileCommitsWait: who may not keep set-id bits does not, though its write has to wait before there is anything to
// remember that by.
func TestPrivilegesWhileCommitsWait(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	blocked, kills := make(chan struct{}), 0
	x.meta.with(func(m *fakeMeta) {
		m.blocked = blocked
		m.onCommit = func(c *pb.Commit) error {
			m.with(func(*fakeMeta) {
				if c.KillPrivileges {
					kills++
				}
			})
			return nil
		}
	})
	for i := range maxGenerations {
		if i%2 == 0 {
			mustWrite(t, f, []byte("x"), 0)
		} else if _, err := f.Append(x.ctx(), []byte("y")); err != nil {
			t.Fatal(err)
		}
	}
	f.mu.Lock()
	f.freeze(false) // somebody closes the file
	f.mu.Unlock()
	f.KillPrivileges()
	close(blocked)
	mustWrite(t, f, []byte("z"), 0)
	mustCommit(t, f, false)
	x.meta.with(func(*fakeMeta) {
		if kills != 1 {
			t.Errorf("%d commits take privileges away", kills)
		}
	})
	mustClose(t, f)
}
