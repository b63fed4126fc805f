package disk

import (
	"math"
	"testing"
	"time"
)

func TestTimings(t *testing.T) {
	now := time.Unix(1e9, 0)
	m := &timings{now: func() time.Time { return now }}
	took := func(k kind, counts bool, d time.Duration) {
		end := m.begin(k, counts)
		now = now.Add(d)
		end()
	}
	near := func(what string, k kind, want time.Duration) {
		t.Helper()
		if got := m.mean(k); got < want*99/100 || got > want*101/100 {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	near("nothing", reading, 0)
	for range 100 {
		took(writing, true, 10*time.Millisecond)
	}
	took(writing, false, 2*time.Second) // a large copy is synced
	near("appends", writing, 10*time.Millisecond)
	near("no reads", reading, 0)
	for range 500 {
		took(writing, true, 100*time.Millisecond) // for 50 s
	}
	near("slow for long", writing, 100*time.Millisecond)
	now = now.Add(3 * time.Minute)
	near("nothing for long", writing, 0)

	took(reading, true, time.Millisecond)
	first, second, other := m.begin(reading, true), m.begin(reading, true), m.begin(reading, false)
	now = now.Add(3 * time.Second)
	near("two are stuck", reading, 3*time.Second)
	first()
	near("one is stuck", reading, 3*time.Second)
	second()
	old := math.Exp(-0.3) // what is left of the weight of the first
	near("a scrub is stuck, but not for long", reading, time.Duration((old*1e6+6e9)/(old+2)))
	now = now.Add(time.Hour)
	near("a scrub hangs", reading, time.Hour+3*time.Second)
	if m.oldest() != time.Hour+3*time.Second {
		t.Error(m.oldest())
	}
	other()
	if m.oldest() != 0 {
		t.Error(m.oldest())
	}
	ends := []func(){m.begin(reading, true), m.begin(reading, true), m.begin(reading, true)}
	for _, i := range []int{1, 2, 0} {
		ends[i]()
	}
	if l := m.kinds[reading].counted; l.first != nil || l.last != nil {
		t.Error("some are under way for ever")
	}
}

// TestHungDisk: while the disk answers nothing, how it is can still be asked, and says so.
func TestHungDisk(t *testing.T) {
	d, fs, _ := faultyDisk(t, Options{})
	w := create(t, d, 1)
	appendTo(t, w, []byte("abc"))
	gate := make(chan struct{})
	hangs := make(chan string, 100)
	fs.setHang(func(op, _ string) {
		select {
		case hangs <- op:
		default:
		}
		<-gate
	})
	done := make(chan error, 2)
	go func() { done <- w.Sync() }()
	go func() { done <- d.askSpace() }()
	for range 2 {
		<-hangs
	}
	time.Sleep(20 * time.Millisecond)
	if st := d.Stats(); st.WriteTime < 20*time.Millisecond || st.Chunks != 1 || st.Capacity == 0 {
		t.Errorf("%+v", st)
	}
	if d.Space() == 0 || len(d.List()) != 1 || d.Stalled() {
		t.Error("the disk says something else than before")
	}
	fs.setHang(nil)
	close(gate)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	finish(t, w)
}
