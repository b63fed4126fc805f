package consensus

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// raftLogger passes what raft logs on to slog. What raft tells as news is a detail here; the Node itself tells who leads. A
// complaint that repeats, as those about a dead peer do several times a second, is passed on once in repeatAfter. Once the
// Node leaves its group, whatever fails does so because of that, and is a detail.
type raftLogger struct {
	log     *slog.Logger
	name    string
	implied []any
	seen    *complaints
}

const (
	repeatAfter   = 10 * time.Second
	maxComplaints = 256 // remembered
)

type complaints struct {
	over atomic.Bool // the Node leaves its group
	mu   sync.Mutex
	last map[string]time.Time
}

// again reports whether the same was said a short while ago.
func (c *complaints) again(what string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if last, ok := c.last[what]; ok && now.Sub(last) < repeatAfter {
		return true
	}
	if len(c.last) >= maxComplaints {
		clear(c.last)
	}
	c.last[what] = now
	return false
}

func newRaftLogger(l *slog.Logger) *raftLogger {
	return &raftLogger{log: l, seen: &complaints{last: map[string]time.Time{}}}
}

const electionStarts = "heartbeat timeout reached, starting election"

// firstElection tells an election that no leader was lost before, as at every start: that is no news.
func firstElection(msg string, args []any) bool {
	return msg == electionStarts && len(args) >= 2 && args[0] == "last-leader-addr" && fmt.Sprint(args[1]) == ""
}

// levels of messages that raft takes more seriously than they are.
var levels = map[string]slog.Level{
	// It belongs to every change of leaders; see firstElection.
	electionStarts: slog.LevelInfo,
	// Whoever asked has gone meanwhile; if that is a failure, it is for others to tell.
	"failed to flush response": slog.LevelDebug,
}

func slogLevel(level hclog.Level) slog.Level {
	switch level {
	case hclog.Error:
		return slog.LevelError
	case hclog.Warn:
		return slog.LevelWarn
	case hclog.Info:
		return slog.LevelDebug
	}
	return slog.LevelDebug - 4
}

func (l *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	to := slogLevel(level)
	if known, ok := levels[msg]; ok {
		to = min(to, known)
	}
	if l.seen.over.Load() || firstElection(msg, args) {
		to = min(to, slog.LevelDebug)
	}
	if !l.log.Enabled(context.Background(), to) {
		return
	}
	all := make([]any, 0, len(l.implied)+len(args)+2)
	if l.name != "" {
		all = append(all, "part", l.name)
	}
	who := ""
	for i, a := range append(append([]any(nil), l.implied...), args...) {
		switch v := a.(type) {
		case hclog.Format:
			if f, ok := v[0].(string); ok {
				a = fmt.Sprintf(f, v[1:]...)
			}
		case fmt.Stringer:
			a = v.String()
		}
		all = append(all, a)
		if i == 1 {
			who = fmt.Sprint(a) // the first value is whom it is about, where there is someone
		}
	}
	if to >= slog.LevelInfo && l.seen.again(msg+who) {
		return
	}
	l.log.Log(context.Background(), to, "raft: "+msg, all...)
}

func (l *raftLogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *raftLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLogger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLogger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *raftLogger) is(level hclog.Level) bool {
	return l.log.Enabled(context.Background(), slogLevel(level))
}
func (l *raftLogger) IsTrace() bool { return l.is(hclog.Trace) }
func (l *raftLogger) IsDebug() bool { return l.is(hclog.Debug) }
func (l *raftLogger) IsInfo() bool  { return l.is(hclog.Info) }
func (l *raftLogger) IsWarn() bool  { return l.is(hclog.Warn) }
func (l *raftLogger) IsError() bool { return l.is(hclog.Error) }

func (l *raftLogger) ImpliedArgs() []any { return l.implied }
func (l *raftLogger) Name() string       { return l.name }

func (l *raftLogger) With(args ...any) hclog.Logger {
	c := *l
	c.implied = append(append([]any(nil), l.implied...), args...)
	return &c
}

func (l *raftLogger) Named(name string) hclog.Logger {
	if l.name != "" {
		name = l.name + "." + name
	}
	return l.ResetNamed(name)
}

func (l *raftLogger) ResetNamed(name string) hclog.Logger {
	c := *l
	c.name = name
	return &c
}

// SetLevel does nothing: slog's handler decides.
func (l *raftLogger) SetLevel(hclog.Level) {}

func (l *raftLogger) GetLevel() hclog.Level {
	for _, level := range []hclog.Level{hclog.Trace, hclog.Info, hclog.Warn} {
		if l.is(level) {
			return level
		}
	}
	return hclog.Error
}

func (l *raftLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.log.Handler(), slog.LevelDebug)
}

func (l *raftLogger) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}
