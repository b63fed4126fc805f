package repair

import (
	"testing"
	"time"
)

// A rate is that of the seconds in which there was something to copy, or it would be far too low at first, and what is left take
// hours.
func TestRateOfCopying(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var r rate
	want := func(bytes uint64) {
		t.Helper()
		if got := r.perSecond(now); got != bytes {
			t.Errorf("%d bytes a second, want %d", got, bytes)
		}
	}
	want(0)
	r.add(now, 5000)
	want(0) // the second is not over
	for range 20 {
		now = now.Add(time.Second)
		want(5000)
		r.add(now, 5000)
	}
	now = now.Add(5 * time.Second) // nothing came in the last four of them
	want(6 * 5000 / 10)
	now = now.Add(time.Hour)
	want(0)
	r.add(now, 5000)
	now = now.Add(2 * time.Second)
	want(2500)
}
