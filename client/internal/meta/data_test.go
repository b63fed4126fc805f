package meta

import (
	"testing"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// TestLeaving: servers that are drained are left, and dead ones unless too many are dead at once.
func TestLeaving(t *testing.T) {
	for _, tc := range []struct{ servers, dead, left int }{{3, 1, 1}, {3, 2, 2}, {3, 3, 0}, {12, 4, 4}, {12, 5, 0}} {
		c := &Client{servers: map[uint32]*pb.ServerInfo{}}
		for id := range uint32(tc.servers) {
			c.servers[id+1] = &pb.ServerInfo{Id: id + 1, State: pb.ServerState_SERVER_STATE_HEALTHY}
			if int(id) < tc.dead {
				c.servers[id+1].State = pb.ServerState_SERVER_STATE_DEAD
			}
		}
		if drained, dead := c.Leaving(); len(drained) != 0 || len(dead) != tc.left {
			t.Errorf("%+v: %v, %v", tc, drained, dead)
		}
		c.servers[1].Draining = true
		if drained, _ := c.Leaving(); len(drained) != 1 || drained[0] != 1 {
			t.Errorf("%+v: %v is drained", tc, drained)
		}
	}
}
