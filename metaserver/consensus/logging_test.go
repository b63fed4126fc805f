package consensus

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

// captured is what was logged.
type captured struct{ testenv.Log }

func (c *captured) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(c, &slog.HandlerOptions{Level: level}))
}

// A start and a stop that go as they should are nothing to worry about.
func TestCleanLifeWarnsOfNothing(t *testing.T) {
	var log captured
	g := newGroup(t, 1, false, func(c *Config) { c.Logger = log.logger(slog.LevelWarn) })
	for range 2 {
		g.propose("a")
		g.stop(1)
		g.start(1)
	}
	g.stop(1)
	if s := log.String(); s != "" {
		t.Fatalf("logged:\n%s", s)
	}
}

// The same is said once in a while, whatever it is about.
func TestComplaintsThatRepeat(t *testing.T) {
	var log captured
	l := newRaftLogger(log.logger(slog.LevelInfo))
	for range 3 {
		l.Error("failed to contact", "server-id", "2")
		l.Error("failed to contact", "server-id", "3")
		l.Warn("heartbeat timeout reached, starting election", "last-leader-addr", "a:1", "last-leader-id", "2")
		l.Warn("heartbeat timeout reached, starting election", "last-leader-addr", raft.ServerAddress(""), "last-leader-id", "")
		l.Info("entering candidate state")
	}
	l.seen.over.Store(true)
	l.Error("failed to contact", "server-id", "4")
	got := log.String()
	for what, n := range map[string]int{"level=ERROR": 2, "level=INFO": 1, "level=WARN": 0, "entering candidate state": 0} {
		if strings.Count(got, what) != n {
			t.Errorf("%q is there %d times, want %d:\n%s", what, strings.Count(got, what), n, got)
		}
	}
}
