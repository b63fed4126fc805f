package lease

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// started makes a table that leads with the given sessions, each connected.
func started(t *testing.T, ids ...uint64) (*Table, map[uint64]*Stream) {
	t.Helper()
	tab := New(Config{})
	t.Cleanup(tab.Close)
	tab.Start(nil)
	streams := map[uint64]*Stream{}
	for _, id := range ids {
		tab.Opened(id)
		streams[id] = connect(t, tab, id)
	}
	return tab, streams
}

func connect(t *testing.T, tab *Table, id uint64, opened ...uint64) *Stream {
	t.Helper()
	ping := nextPing(tab, id)
	st, err := tab.Connect(id, ping, opened)
	if err != nil {
		t.Fatalf("connect %d: %v", id, err)
	}
	if p := take(t, st); p.Pong != ping {
		t.Fatalf("the first ping was answered with %+v", p)
	}
	return st
}

// nextPing is what the client of a session counts on to.
func nextPing(tab *Table, id uint64) uint64 {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	if s := tab.sessions[id]; s != nil {
		return s.pinged + 1
	}
	return 1
}

func take(t *testing.T, st *Stream) Push {
	t.Helper()
	p, err := st.Take()
	if err != nil {
		t.Fatalf("take: %v", err)
	}
	return p
}

// begin starts a change in the background; its outcome comes on the channel.
func begin(ctx context.Context, tab *Table, in Intent) <-chan outcome {
	c := make(chan outcome, 1)
	go func() {
		ch, err := tab.Begin(ctx, in)
		c <- outcome{ch, err}
	}()
	return c
}

type outcome struct {
	*Change
	err error
}

func finished(t *testing.T, c <-chan outcome) outcome {
	t.Helper()
	synctest.Wait()
	select {
	case o := <-c:
		return o
	default:
		t.Fatal("the change still waits")
		return outcome{}
	}
}

func waits(t *testing.T, c <-chan outcome) {
	t.Helper()
	synctest.Wait()
	select {
	case o := <-c:
		t.Fatalf("the change did not wait: %v", o.err)
	default:
	}
}

func TestMutationWaitsForOtherHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, st := started(t, 1, 2)
		if !tab.Grant(1, 10) || !tab.Grant(2, 10) {
			t.Fatal("no lease")
		}
		c := begin(t.Context(), tab, Intent{Session: 1, Inodes: []uint64{10}})
		waits(t, c)
		if tab.Grant(2, 10) || tab.Grant(1, 10) {
			t.Fatal("a lease on a changing inode")
		}
		p := take(t, st[2])
		if len(p.Revokes) != 1 || !slices.Equal(p.Revokes[0].Inodes, []uint64{10}) {
			t.Fatalf("pushed %+v", p)
		}
		if p := take(t, st[1]); len(p.Revokes) != 0 {
			t.Fatal("the session that changes it was asked, too")
		}
		st[2].Ack(p.Revokes[0].ID, nil)
		o := finished(t, c)
		if o.err != nil {
			t.Fatal(o.err)
		}
		if !tab.Leased(1, 10) || tab.Leased(2, 10) {
			t.Fatal("the session that changes it keeps its lease, the other does not")
		}
		o.End()
		if !tab.Grant(2, 10) {
			t.Fatal("no lease after the change")
		}
	})
}

func TestMutationWaitsOnlyUntilLeasesRunOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, st := started(t, 1, 2)
		tab.Grant(2, 10)
		c := begin(t.Context(), tab, Intent{Session: 1, Inodes: []uint64{10}})
		time.Sleep(DefaultLease)
		waits(t, c)
		time.Sleep(DefaultMargin)
		finished(t, c).End()
		if _, err := st[2].Take(); !errors.Is(err, ErrLapsed) {
			t.Fatalf("the silent session's stream goes on: %v", err)
		}
		if tab.Grant(2, 10) {
			t.Fatal("a lease for a session that did not connect again")
		}
		connect(t, tab, 2)
		if !tab.Grant(2, 10) {
			t.Fatal("no lease after connecting again")
		}
	})
}

func TestPingsDoNotPutARevocationOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, st := started(t, 1, 2)
		tab.Grant(2, 10)
		c := begin(t.Context(), tab, Intent{Session: 1, Inodes: []uint64{10}})
		synctest.Wait()
		take(t, st[2]) // and never answer
		var err error
		for i := 0; err == nil; i++ {
			if i > 10 {
				t.Fatal("pings are answered for ever")
			}
			time.Sleep(time.Second)
			err = st[2].Renew(uint64(i + 2))
		}
		if !errors.Is(err, ErrLapsed) {
			t.Fatal(err)
		}
		waits(t, c)
		time.Sleep(DefaultLease + DefaultMargin)
		finished(t, c).End()
	})
}

func TestConnectingAgainAnswersRevocations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, st := started(t, 1, 2)
		tab.Grant(2, 10)
		tab.Grant(2, 11)
		c := begin(t.Context(), tab, Intent{Session: 1, Inodes: []uint64{5}, Victim: 10, Known: true})
		d := begin(t.Context(), tab, Intent{Session: 1, Inodes: []uint64{5}, Victim: 11, Known: true, Opened: true})
		synctest.Wait()
		take(t, st[2])
		connect(t, tab, 2, 10)
		if o := finished(t, c); !slices.Equal(o.Holders(), []uint64{2}) {
			t.Fatalf("holders %v", o.Holders())
		}
		if o := finished(t, d); !slices.Equal(o.Holders(), []uint64{1}) {
			t.Fatalf("holders %v", o.Holders())
		}
		if _, err := st[2].Take(); !errors.Is(err, ErrReplaced) {
			t.Fatal(err)
		}
	})
}

func TestUnknownSessionsHoldUpMutations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := New(Config{})
		defer tab.Close()
		tab.Ended(4)
		tab.Opened(2)
		if tab.Grant(1, 10) {
			t.Fatal("a lease before the table started")
		}
		tab.Start([]uint64{1, 2, 3, 4})
		tab.Opened(5)
		if st := tab.Stats(); st.Sessions != 4 || st.Unknown != 3 {
			t.Fatalf("%+v", st)
		}
		connect(t, tab, 1)
		c := begin(t.Context(), tab, Intent{Session: 1, Victim: 10})
		waits(t, c)
		time.Sleep(time.Second)
		connect(t, tab, 2, 10)
		waits(t, c)
		time.Sleep(DefaultLease + DefaultMargin - time.Second)
		waits(t, c) // for session 2, which is asked now
		time.Sleep(time.Second)
		o := finished(t, c)
		// 2 lapsed and had it open; 3 never came back and may have anything open.
		if !slices.Equal(o.Holders(), []uint64{2, 3}) {
			t.Fatalf("holders %v", o.Holders())
		}
		o.End()
	})
}

func TestVictimAsksThoseWhoMayHaveItOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, st := started(t, 1, 2, 3, 4)
		tab.Grant(2, 10)
		o, err := tab.Open(t.Context(), 3, 0, 10)
		if err != nil || !o.Leased {
			t.Fatal(err)
		}
		o.Done(true)
		tab.Grant(4, 10)
		// A change of its attributes first: all keep what they know of who has it open.
		c := begin(t.Context(), tab, Intent{Session: 1, Inodes: []uint64{10}})
		synctest.Wait()
		for id, opened := range map[uint64][]uint64{2: {10}, 3: {10}, 4: nil} {
			p := take(t, st[id])
			st[id].Ack(p.Revokes[0].ID, opened)
		}
		finished(t, c).End()

		c = begin(t.Context(), tab, Intent{Session: 1, Victim: 10})
		synctest.Wait()
		for id, opened := range map[uint64][]uint64{2: {10}, 3: nil} {
			p := take(t, st[id])
			st[id].Ack(p.Revokes[0].ID, opened)
		}
		if p := take(t, st[4]); len(p.Revokes) != 0 {
			t.Fatal("asked one that has nothing of it")
		}
		v := finished(t, c)
		if !slices.Equal(v.Holders(), []uint64{2}) {
			t.Fatalf("holders %v", v.Holders())
		}
		v.End()
	})
}

func TestOpenWaitsForUnlink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, st := started(t, 1, 2)
		v, err := tab.Begin(t.Context(), Intent{Session: 1, Victim: 10, Known: true})
		if err != nil {
			t.Fatal(err)
		}
		opened := make(chan *Opening, 1)
		go func() {
			o, err := tab.Open(t.Context(), 2, 0, 10)
			if err != nil {
				t.Error(err)
			}
			opened <- o
		}()
		synctest.Wait()
		if len(opened) != 0 {
			t.Fatal("opened in the midst of an unlink")
		}
		v.End()
		o := <-opened
		c := begin(t.Context(), tab, Intent{Session: 1, Victim: 10, Known: true})
		waits(t, c)
		o.Done(true)
		synctest.Wait()
		p := take(t, st[2])
		st[2].Ack(p.Revokes[0].ID, []uint64{10})
		if v := finished(t, c); !slices.Equal(v.Holders(), []uint64{2}) {
			t.Fatalf("holders %v", v.Holders())
		}
	})
}

func TestAnswerOfCreateOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, st := started(t, 1, 2)
		tab.Made(2, 7, 10, true)
		if !tab.Leased(2, 10) {
			t.Fatal("no lease on what the session made")
		}
		unlink := func() *Change {
			c := begin(t.Context(), tab, Intent{Session: 1, Victim: 10, Known: true})
			synctest.Wait()
			p := take(t, st[2])
			st[2].Ack(p.Revokes[0].ID, nil) // it cannot know the inode yet
			o := finished(t, c)
			o.End()
			return o.Change
		}
		if v := unlink(); !slices.Equal(v.Holders(), []uint64{2}) {
			t.Fatalf("holders %v", v.Holders())
		}
		c, err := tab.Begin(t.Context(), Intent{Session: 2, Unanswered: 8, Inodes: []uint64{3}})
		if err != nil {
			t.Fatal(err)
		}
		c.End()
		if v := unlink(); len(v.Holders()) != 0 {
			t.Fatalf("holders %v", v.Holders())
		}
	})
}

func TestTwoSessionsChangeOneInode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, st := started(t, 1, 2)
		tab.Grant(1, 10)
		tab.Grant(2, 10)
		a := begin(t.Context(), tab, Intent{Session: 1, Inodes: []uint64{10, 10}})
		b := begin(t.Context(), tab, Intent{Session: 2, Inodes: []uint64{10}})
		synctest.Wait()
		for _, s := range st {
			p := take(t, s)
			s.Ack(p.Revokes[0].ID, nil)
		}
		oa, ob := finished(t, a), finished(t, b)
		if tab.Leased(1, 10) || tab.Leased(2, 10) {
			t.Fatal("a lease on what another session changes")
		}
		oa.End()
		if tab.Grant(1, 10) {
			t.Fatal("a lease while the other change goes on")
		}
		ob.End()
		if !tab.Grant(1, 10) {
			t.Fatal("no lease")
		}
	})
}

func TestCancelledChangeLeavesNoMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, st := started(t, 1, 2)
		tab.Grant(2, 10)
		ctx, cancel := context.WithCancel(t.Context())
		c := begin(ctx, tab, Intent{Session: 1, Inodes: []uint64{10}})
		synctest.Wait()
		cancel()
		if o := finished(t, c); !errors.Is(o.err, context.Canceled) {
			t.Fatal(o.err)
		}
		if tab.Grant(2, 10) {
			t.Fatal("a lease while its revocation is under way")
		}
		p := take(t, st[2])
		st[2].Ack(p.Revokes[0].ID, nil)
		if !tab.Grant(2, 10) {
			t.Fatal("no lease")
		}
	})
}

func TestDroppedLeaseIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, st := started(t, 1, 2)
		tab.Grant(2, 10)
		st[2].Dropped([]uint64{10, 11})
		p := take(t, st[2])
		if len(p.Revokes) != 1 || len(p.Revokes[0].Inodes) != 1 {
			t.Fatalf("%+v", p)
		}
		st[2].Ack(p.Revokes[0].ID, nil)
		if n := tab.Stats().Leases; n != 0 {
			t.Fatalf("%d leases", n)
		}
	})
}

func TestLeasesOfASessionAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := New(Config{MaxPerSession: 64})
		defer tab.Close()
		tab.Start(nil)
		tab.Opened(1)
		st := connect(t, tab, 1)
		for i := range uint64(64) {
			if !tab.Grant(1, 100+i) {
				t.Fatal("no lease")
			}
		}
		if tab.Grant(1, 200) {
			t.Fatal("a lease beyond the bound")
		}
		p := take(t, st)
		if len(p.Revokes) != 1 || p.Revokes[0].Inodes[0] != 100 {
			t.Fatalf("the oldest leases were not taken back: %+v", p)
		}
		st.Ack(p.Revokes[0].ID, nil)
		if !tab.Grant(1, 200) {
			t.Fatal("no lease after room was made")
		}
		for i := range uint64(200) {
			o, err := tab.Open(t.Context(), 1, 0, 1000+i)
			if err != nil {
				if !errors.Is(err, ErrTooMany) {
					t.Fatal(err)
				}
				break
			}
			o.Done(true)
		}
		if n := tab.Stats().Leases; n > 128 {
			t.Fatalf("%d entries", n)
		}
	})
}

func TestExpiryAndEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, st := started(t, 1, 2)
		tab.Grant(1, 10)
		tab.Grant(2, 10)
		for i := range 61 {
			time.Sleep(time.Second)
			if err := st[2].Renew(uint64(i)); err != nil {
				t.Fatal(err)
			}
		}
		if ids := tab.Expired(); !slices.Equal(ids, []uint64{1}) {
			t.Fatalf("expired %v", ids)
		}
		c := begin(t.Context(), tab, Intent{Session: 2, Victim: 10, Known: true})
		if o := finished(t, c); !slices.Equal(o.Holders(), []uint64{1}) {
			t.Fatal("a session that lapsed but lives may have it open")
		}
		tab.Ended(1)
		if _, err := tab.Begin(t.Context(), Intent{Session: 1}); !errors.Is(err, ErrNoSession) {
			t.Fatal(err)
		}
		if _, err := tab.Connect(1, 1, nil); !errors.Is(err, ErrNoSession) {
			t.Fatal(err)
		}
		if n := tab.Stats().Leases; n != 1 {
			t.Fatalf("%d leases", n)
		}
	})
}

func TestCloseEndsWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, st := started(t, 1, 2)
		tab.Grant(2, 10)
		c := begin(t.Context(), tab, Intent{Session: 1, Inodes: []uint64{10}})
		synctest.Wait()
		tab.Close()
		if o := finished(t, c); !errors.Is(o.err, ErrClosed) {
			t.Fatal(o.err)
		}
		if _, err := st[1].Take(); !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
	})
}

func BenchmarkBeginEnd(b *testing.B) {
	tab := New(Config{})
	defer tab.Close()
	tab.Start(nil)
	tab.Opened(1)
	if _, err := tab.Connect(1, 1, nil); err != nil {
		b.Fatal(err)
	}
	tab.Grant(1, 10)
	inodes := []uint64{10}
	b.ReportAllocs()
	for i := range b.N {
		c, err := tab.Begin(b.Context(), Intent{Session: 1, Unanswered: uint64(i), Inodes: inodes})
		if err != nil {
			b.Fatal(err)
		}
		c.End()
	}
}
