package metaserver

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Progress is told a few times a second, however often it is heard of, and once a second though nothing happens. No problem is
// left out, and the end comes last.
func TestNarrator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var said []*pb.FsckReply
		n := narrate(func(m *pb.FsckReply) error {
			mu.Lock()
			defer mu.Unlock()
			said = append(said, m)
			return nil
		}, func() {})
		so := 0 // messages counted
		more := func(what string, least, most int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if k := len(said) - so; k < least || k > most {
				t.Errorf("%s: %d messages", what, k)
			}
			so = len(said)
		}
		for i := range uint64(2000) {
			time.Sleep(time.Millisecond)
			n.progress("work", i, 2000)
		}
		more("two seconds of work", 4, 10)
		time.Sleep(5 * time.Second)
		more("five seconds of silence", 4, 6)
		for i := range 1000 {
			n.problem(fmt.Sprint("problem ", i))
			n.repair(fmt.Sprint("repaired ", i))
		}
		more("a thousand problems", 1, 30)
		n.end(&pb.FsckReply{End: true})
		if err := n.close(); err != nil {
			t.Fatal(err)
		}
		problems, repaired := 0, 0
		if m := said[so-1]; m.Phase != "work" || m.Done != 1999 || m.Total != 2000 {
			t.Errorf("the work is %v", m)
		}
		for _, m := range said {
			problems, repaired = problems+len(m.Problems), repaired+len(m.Repaired)
		}
		if last := said[len(said)-1]; problems != 1000 || repaired != 1000 || !last.End {
			t.Errorf("%d problems, %d repaired, at last %v", problems, repaired, last)
		}
	})
}

// A caller that is gone ends the check, and is told nothing more.
func TestNarratorWithoutListener(t *testing.T) {
	gone, cancelled, calls := errors.New("gone"), 0, 0
	n := narrate(func(*pb.FsckReply) error { calls++; return gone }, func() { cancelled++ })
	n.progress("work", 1, 2)
	n.end(&pb.FsckReply{End: true})
	if err := n.close(); err != gone || cancelled != 1 || calls != 1 {
		t.Errorf("%v, cancelled %d times, called %d times", err, cancelled, calls)
	}
}
