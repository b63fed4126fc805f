package lease

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A deadline that passes between the look at it and the wait for it must not become a wait without one: nobody else would
// wake the mutation up.
func TestPauseUntilAMomentInThePast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, _ := started(t, 1)
		tab.mu.Lock()
		defer tab.mu.Unlock()
		if err := tab.pause(t.Context(), make(chan struct{}), time.Now().Add(-1)); err != nil {
			t.Fatal(err)
		}
	})
}

// A stream that takes pings but hands no revocations over, as when the client reads nothing, delays a mutation for two
// leases at most, like one whose client does not answer.
func TestRevocationsThatAreNeverSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, st := started(t, 1, 2)
		if !tab.Grant(2, 10) {
			t.Fatal("no lease")
		}
		c := begin(t.Context(), tab, Intent{Session: 1, Inodes: []uint64{10}})
		waits(t, c)
		for ping := uint64(2); ping < 20; ping++ {
			time.Sleep(DefaultLease / 5)
			_ = st[1].Renew(ping)
			_ = st[2].Renew(ping) // fails once the table gave the stream up
		}
		if o := finished(t, c); o.err != nil {
			t.Fatal(o.err)
		} else {
			o.End()
		}
	})
}

// A handler that was slow to connect an earlier stream of a session must not take the place of a later one: the client
// caches under leases that were granted since, and would not be asked when they are taken away.
func TestAnEarlierStreamThatConnectsLate(t *testing.T) {
	tab, _ := started(t)
	tab.Opened(1)
	st, err := tab.Connect(1, 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	take(t, st)
	if !tab.Grant(1, 10) {
		t.Fatal("no lease")
	}
	if _, err := tab.Connect(1, 1, nil); err == nil {
		t.Error("the earlier stream took the place of the later one")
	}
	if !tab.Leased(1, 10) {
		t.Error("the table forgot a lease that the client relies on")
	}
	if _, err := st.Take(); err != nil {
		t.Errorf("the later stream ended: %v", err)
	}
}

// What a session holds it is told, though it has no stream when the name goes, or loses it before it was told.
func TestHoldersAreTold(t *testing.T) {
	tab, st := started(t, 1)
	tab.Held(1, 10)
	tab.Held(7, 10) // ended
	if p := take(t, st[1]); !slices.Equal(p.Held, []uint64{10}) {
		t.Errorf("told %v", p.Held)
	}
	st[1].Close()
	for inode := range uint64(maxHeld + 5) {
		tab.Held(1, inode)
	}
	next, err := tab.Connect(1, nextPing(tab, 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	p := take(t, next)
	if n := len(p.Held); n != maxHeld || p.Held[n-1] != maxHeld+4 {
		t.Errorf("told %d inodes", n)
	}
	if p := take(t, next); len(p.Held) > 0 {
		t.Errorf("told %d inodes again", len(p.Held))
	}
}
