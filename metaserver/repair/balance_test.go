package repair

import (
	"fmt"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// measure has every server say how much it holds.
func (w *world) measure() {
	for _, s := range w.servers {
		var used uint64
		_ = w.db.View(func(r kv.Reader) error {
			for stored := range s.holds {
				if c, ok := namespace.Chunk(r, stored.Chunk()); ok {
					used += c.Layout.ShardLength(c.Length)
				}
			}
			return nil
		})
		s.info.Disks = []*pb.DiskInfo{{Used: used}}
	}
}

// rest is a step of balance, with or without the deletions that follow from it.
func (w *world) rest(deletions bool) (moved uint64) {
	w.e.balanced = time.Time{}
	w.measure()
	w.step()
	before := w.e.copied.bytes
	if deletions {
		w.serve(false)
	} else {
		for id, s := range w.servers {
			w.e.forgetOrders()
			for _, o := range w.e.Orders(id, 1000) {
				w.obey(id, s, o)
			}
		}
	}
	return w.e.copied.bytes - before
}

// oneMore is a world of four servers that are full of sealed chunks, and one that has just come.
func oneMore(t *testing.T, seed uint64, l chunk.Layout) *world {
	w := newWorld(t, seed, 4)
	for range 100 {
		w.write(l, 64<<20/l.Row(), true)
	}
	w.own(&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: []uint64{w.session}}}})
	for range 20 {
		w.step()
		w.serve(false)
	}
	w.addServer()
	for id, s := range w.servers { // or failure domains would keep things where they are
		s.rack = fmt.Sprint(id)
	}
	return w
}

// TestNewServerGetsItsPart: after one more server came, all hold the same within a tenth, and little more was moved than the
// new one holds.
func TestNewServerGetsItsPart(t *testing.T) {
	for _, l := range []chunk.Layout{chunk.Copies(3), {Data: 2, Parity: 1, Min: 2, Cell: 1 << 20}} {
		for seed := range uint64(5) {
			w := oneMore(t, seed, l)
			var moved, total uint64
			for i := range 200 {
				moved += w.rest(i%5 == 4)
			}
			w.measure()
			for _, s := range w.servers {
				total += s.info.Disks[0].Used
			}
			fair := float64(total) / float64(len(w.servers))
			for id, s := range w.servers {
				if part := float64(s.info.Disks[0].Used) / fair; part < 0.9 || part > 1.1 {
					t.Errorf("%v, seed %d: server %d holds %.2f of its part", l, seed, id, part)
				}
			}
			if part := float64(moved) / fair; part > 1.2 {
				t.Errorf("%v, seed %d: %.2f of what the new server holds was moved", l, seed, part)
			}
			w.check()
		}
	}
}

// TestBalanceKnowsWhatWasDeletedMeanwhile: what a server deletes during a survey is not taken for what it holds too much.
func TestBalanceKnowsWhatWasDeletedMeanwhile(t *testing.T) {
	w := oneMore(t, 1, chunk.Copies(3))
	var total, last uint64
	for range 200 {
		last = w.rest(false)
		total += last
	}
	if total == 0 || last != 0 {
		t.Fatalf("%d bytes were moved, %d in the end", total, last)
	}
	w.e.balanced = time.Time{}
	w.during = func() {
		w.serve(false)
		w.measure()
	}
	w.step()
	if r := w.e.Report(); w.during != nil || r.Moving != 0 {
		t.Errorf("all is in its place, and more is moved: %+v", r)
	}
	w.check()
}

// TestStorm: when many servers go away at once repair waits for them, and says so.
func TestStorm(t *testing.T) {
	w := newWorld(t, 1, 7)
	w.e = New(w, Config{StormPatience: time.Hour})
	for range 20 {
		w.write(chunk.Copies(3), 1000, true)
	}
	dead := func(n int) {
		for id, s := range w.servers {
			s.info.State = pb.ServerState_SERVER_STATE_HEALTHY
			if int(id) <= n {
				s.info.State = pb.ServerState_SERVER_STATE_DEAD
			}
		}
		w.step()
	}
	dead(3)
	if r := w.e.Report(); r.Moving > 0 || r.HeldBack == "" || r.Degraded+r.Endangered+r.Unreadable == 0 {
		t.Errorf("three of seven gone: %+v", r)
	}
	dead(2)
	if r := w.e.Report(); r.Moving == 0 || r.HeldBack != "" {
		t.Errorf("two of seven gone: %+v", r)
	}
	dead(3)
	w.e.cfg.StormPatience = time.Nanosecond
	dead(3)
	if r := w.e.Report(); r.Moving == 0 || r.HeldBack != "" {
		t.Errorf("three of seven gone for long: %+v", r)
	}
}

// TestNowhere: what no server can take is said.
func TestNowhere(t *testing.T) {
	w := newWorld(t, 1, 3)
	for range 5 {
		w.write(chunk.Copies(3), 1000, true)
	}
	w.servers[2].info.Draining = true
	w.own(&pb.Op{Op: &pb.Op_SetServer{SetServer: &pb.SetServer{Server: 2, Draining: true}}})
	for range 5 {
		w.step()
		w.serve(false)
	}
	for range 3 {
		if err := w.e.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if r := w.e.Report(); r.HeldBack == "" || r.Drains == 0 {
		t.Errorf("%+v", r)
	}
}
