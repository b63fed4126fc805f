package fuse

import (
	"testing"

	"github.com/shoalfs/shoalfs/client"
)

func TestLinksAreRemembered(t *testing.T) {
	var l lost
	if _, ok := l.target(1); ok {
		t.Error("a target out of nothing")
	}
	for ino := client.Ino(1); ino < 10*linksBound; ino++ {
		l.remember(&client.Attr{Ino: ino, Symlink: "to"})
		if target, ok := l.target(ino); !ok || target != "to" {
			t.Fatalf("inode %d: %q", ino, target)
		}
	}
	if len(l.links) > linksBound {
		t.Errorf("%d links are remembered, at most %d", len(l.links), linksBound)
	}
}
