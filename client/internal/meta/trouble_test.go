package meta

import (
	"bufio"
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/rpc"
)

// told is a log that tells when something was written to it.
type told chan struct{}

func (c told) Write(p []byte) (int, error) {
	select {
	case c <- struct{}{}:
	default:
	}
	return len(p), nil
}

// troubles starts a client that nobody lets in and returns what it says of an address, once it says something.
func troubles(t *testing.T, address string) Trouble {
	t.Helper()
	pool := new(rpc.Pool)
	defer func() { _ = pool.Close() }()
	logged := make(told, 1)
	c, err := New(Config{Addresses: []string{address}, Name: t.Name(), Pool: pool, Logger: slog.New(slog.NewTextHandler(logged, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	started := make(chan error, 1)
	go func() { started <- c.Start(ctx) }()
	select {
	case <-logged: // the first metaserver was given up
	case <-ctx.Done():
	}
	got := c.Troubles()
	cancel()
	if err := <-started; err == nil {
		t.Error("it was let in")
	}
	if err := c.Close(ctx); err != nil {
		t.Error(err)
	}
	if len(got) != 1 || got[0].Address != address {
		t.Fatalf("%v", got)
	}
	return got[0]
}

// Who is not let in is told why, in words.
func TestTroubles(t *testing.T) {
	t.Run("nobody listens", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close() // so that its port is one where nobody listens
		if got := troubles(t, l.Addr().String()); got.Reason != "connection refused" || got.Follower {
			t.Errorf("%+v", got)
		}
	})
	t.Run("another protocol", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = bufio.NewReader(c).ReadString('\n')
				_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nno\r\n"))
				_ = c.Close()
			}
		})
		got := troubles(t, l.Addr().String())
		_ = l.Close()
		serving.Wait()
		if !strings.Contains(got.Reason, "no metaserver") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("another server of shoal", func(t *testing.T) {
		f := newFake(t)
		f.hooks(func(string, proto.Message) error { return status.Error(codes.Unimplemented, "unknown service") }, nil)
		if got := troubles(t, f.srv.Address()); !strings.Contains(got.Reason, "no metaserver") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("no leader", func(t *testing.T) {
		f := newFake(t)
		none := ""
		f.with(func() { f.notLeader = &none })
		if got := troubles(t, f.srv.Address()); !got.Follower {
			t.Errorf("%+v", got)
		}
	})
}

func TestReasons(t *testing.T) {
	dialing := `connection error: desc = "transport: Error while dialing: dial tcp`
	for msg, want := range map[string]string{
		dialing + ` 127.0.0.1:1: connect: connection refused"`:                            "connection refused",
		dialing + ` 10.0.0.1:7400: i/o timeout"`:                                          "i/o timeout",
		dialing + `: lookup nowhere on 10.0.0.1:53: no such host"`:                        "the name does not resolve (no such host)",
		`connection error: desc = "error reading server preface: http2: frame too large"`: "what answers there is no metaserver",
		`connection error: desc = "error reading server preface: EOF"`:                    "takes the connection, but does not answer like a metaserver",
		"the server is closed": "the server is closed",
	} {
		if got := reasonOf(status.Error(codes.Unavailable, msg)); got != want {
			t.Errorf("%s: %q, want %q", msg, got, want)
		}
	}
	if got := reasonOf(rpc.ErrNotLeader("a:1")); got != "follows the metaserver at a:1" {
		t.Error(got)
	}
}

// While nothing works the log says so, seldom, and says when it is over.
func TestWaitingIsLogged(t *testing.T) {
	var log strings.Builder
	c := &conn{log: slog.New(slog.NewTextHandler(&log, nil))}
	err := status.Error(codes.Unavailable, "x")
	c.noteTrouble("a:1", err)
	if log.Len() > 0 {
		t.Errorf("at once: %s", log.String())
	}
	c.since = c.since.Add(-waitTold)
	for range 3 {
		c.noteTrouble("a:1", err)
		c.noteTrouble("b:1", err)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || len(c.trouble()) != 2 {
		t.Errorf("%d times: %s", n, log.String())
	}
	c.told = c.told.Add(-waitAgain)
	c.noteTrouble("a:1", err)
	c.noteEnd("a:1")
	c.noteEnd("a:1")
	if got := log.String(); strings.Count(got, "level=WARN") != 2 || strings.Count(got, "answers again") != 1 || len(c.trouble()) != 0 {
		t.Errorf("%v: %s", c.trouble(), got)
	}
}
