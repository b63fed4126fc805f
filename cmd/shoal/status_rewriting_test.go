package main

import (
	"testing"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestRewritingLines(t *testing.T) {
	for _, c := range []struct {
		r    *pb.Rewriting
		want string
	}{
		{nil, ""}, {&pb.Rewriting{Moved: 5}, ""},
		{&pb.Rewriting{Garbage: 3 << 20, Reclaimable: 1 << 20}, "garbage       3.0M, of which 1.0M can be given back\n"},
		{&pb.Rewriting{Files: 2, FilesLeft: 2048, HeldBack: "repair has something to do"},
			"policies      2.0K left of 2 files to be written anew\nwaiting       nothing is written anew: repair has something to do\n"},
		{&pb.Rewriting{Files: 11}, "policies      11 files being looked at\n"},
	} {
		if got := rewritingLines(c.r); got != c.want {
			t.Errorf("%v: %q, want %q", c.r, got, c.want)
		}
	}
}
