package lease

import (
	"slices"
	"testing"
	"testing/synctest"
)

// TestLeadersOwnChange: what the leader itself changes is taken back from every session, and can be leased again afterwards.
func TestLeadersOwnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, st := started(t, 1, 2)
		for _, id := range []uint64{1, 2} {
			if !tab.Grant(id, 10) || !tab.Grant(id, 11) {
				t.Fatal("no lease")
			}
		}
		c := begin(t.Context(), tab, Intent{Inodes: []uint64{10, 12}})
		waits(t, c)
		if tab.Grant(1, 10) || tab.Grant(1, 12) || !tab.Grant(1, 13) {
			t.Error("a lease on a changing inode, or none on another")
		}
		for _, id := range []uint64{1, 2} {
			p := take(t, st[id])
			if len(p.Revokes) != 1 || !slices.Equal(p.Revokes[0].Inodes, []uint64{10}) {
				t.Fatalf("session %d: pushed %+v", id, p)
			}
			st[id].Ack(p.Revokes[0].ID, nil)
		}
		o := finished(t, c)
		if o.err != nil || len(o.Holders()) > 0 || tab.Stats().Sessions != 2 || len(tab.Expired()) > 0 {
			t.Fatalf("%v, %+v", o.err, tab.Stats())
		}
		// A client changes one of them at the same time.
		other := finished(t, begin(t.Context(), tab, Intent{Session: 1, Inodes: []uint64{12}}))
		if other.err != nil {
			t.Fatal(other.err)
		}
		other.End()
		if tab.Grant(2, 12) {
			t.Error("a lease on what the leader still changes")
		}
		o.End()
		if !tab.Grant(1, 10) || !tab.Grant(2, 12) {
			t.Error("no lease when all is over")
		}
	})
}
