package netns

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

func newNetwork(t *testing.T, opts Options, hosts ...string) (*Network, []*Host) {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedPrograms(t, "ip", "tc", "nft")
	n, err := NewNetwork(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	var list []*Host
	for _, name := range hosts {
		h, err := n.AddHost(name)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, h)
	}
	return n, list
}

// echo serves what it is sent at port 7 of a host, as long as the test runs.
func echo(t *testing.T, h *Host) {
	t.Helper()
	var l net.Listener
	if err := h.Do(func() (err error) {
		l, err = net.Listen("tcp4", net.JoinHostPort(h.IP.String(), "7"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c) // until the other side closes it or its deadline passes
			_ = c.Close()
		}
	}()
}

// reach sends a message from a host to the echo of another and waits for it to come back, at most for so long.
func reach(from, to *Host, message string, within time.Duration) error {
	return from.Do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		c, err := new(net.Dialer).DialContext(ctx, "tcp4", net.JoinHostPort(to.IP.String(), "7"))
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }() // only tested
		_ = c.SetDeadline(time.Now().Add(within))
		failed := make(chan error, 1)
		go func() {
			_, err := io.WriteString(c, message)
			failed <- err
		}()
		got := make([]byte, len(message))
		_, err = io.ReadFull(c, got)
		if err = errors.Join(err, <-failed); err == nil && string(got) != message {
			err = errors.New("what came back is something else")
		}
		return err
	})
}

// soon is how long a test waits for what must not come.
const soon = 300 * time.Millisecond

func TestCut(t *testing.T) {
	n, h := newNetwork(t, Options{}, "a", "b", "c")
	for _, host := range h {
		echo(t, host)
	}
	check := func(when string, want map[[2]int]bool) {
		t.Helper()
		for a := range h {
			for b := range h {
				if a == b {
					continue
				}
				within := patience
				if !want[[2]int{a, b}] {
					within = soon
				}
				if err := reach(h[a], h[b], "hello", within); (err == nil) != want[[2]int{a, b}] {
					t.Errorf("%s: %s to %s: %v", when, h[a].Name, h[b].Name, err)
				}
			}
		}
	}
	all := map[[2]int]bool{{0, 1}: true, {0, 2}: true, {1, 0}: true, {1, 2}: true, {2, 0}: true, {2, 1}: true}
	check("at first", all)
	if err := n.Cut(h[0], h[1]); err != nil {
		t.Fatal(err)
	}
	check("with a and b cut", map[[2]int]bool{{0, 2}: true, {1, 2}: true, {2, 0}: true, {2, 1}: true})
	if err := n.CutOff(h[2]); err != nil {
		t.Fatal(err)
	}
	check("with c cut off, too", nil)
	if err := n.Heal(); err != nil {
		t.Fatal(err)
	}
	check("healed", all)
}

// TestCutOneWay sends datagrams, which need no answer.
func TestCutOneWay(t *testing.T) {
	n, h := newNetwork(t, Options{}, "a", "b")
	var conns [2]net.PacketConn
	for i := range h {
		if err := h[i].Do(func() (err error) {
			conns[i], err = net.ListenPacket("udp4", net.JoinHostPort(h[i].IP.String(), "7"))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conns[i].Close() }() // nothing is left in it
	}
	arrives := func(from, to int, within time.Duration) error {
		if _, err := conns[from].WriteTo([]byte("hello"), conns[to].LocalAddr()); err != nil {
			t.Fatal(err)
		}
		if err := conns[to].SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		_, _, err := conns[to].ReadFrom(make([]byte, 10))
		return err
	}
	if err := n.CutOneWay(h[0], h...); err != nil {
		t.Fatal(err)
	}
	if arrives(0, 1, soon) == nil {
		t.Error("something came through against the cut")
	}
	if err := arrives(1, 0, patience); err != nil {
		t.Errorf("the other way: %v", err)
	}
	if err := n.Heal(); err != nil {
		t.Fatal(err)
	}
	if err := arrives(0, 1, patience); err != nil {
		t.Errorf("healed: %v", err)
	}
}

func TestRefuse(t *testing.T) {
	n, h := newNetwork(t, Options{}, "a", "b", "c")
	for _, host := range h {
		echo(t, host)
	}
	for range 2 { // the second time changes nothing
		if err := n.Refuse(h[0], h[:2]...); err != nil {
			t.Fatal(err)
		}
	}
	if err := reach(h[0], h[1], "hello", patience); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("what is refused returned %v", err)
	}
	if err := reach(h[0], h[2], "hello", patience); err != nil {
		t.Errorf("another: %v", err)
	}
	for range 2 {
		if err := n.Heal(); err != nil {
			t.Fatal(err)
		}
	}
	if err := reach(h[0], h[1], "hello", patience); err != nil {
		t.Errorf("healed: %v", err)
	}
}

func TestLossAndThrottle(t *testing.T) {
	n, h := newNetwork(t, Options{SmallPackets: true}, "a", "b")
	echo(t, h[1])
	message := strings.Repeat("hello, world", 2_000)
	if err := n.Lose(h[1], 20); err != nil {
		t.Fatal(err)
	}
	if err := reach(h[0], h[1], message, patience); err != nil {
		t.Errorf("with a fifth of the packets lost: %v", err)
	}
	if err := n.Lose(h[1], 100); err != nil {
		t.Fatal(err)
	}
	if err := reach(h[0], h[1], "hello", soon); err == nil {
		t.Error("with all packets lost something came through")
	}
	if err := n.Lose(h[1], 0); err != nil {
		t.Fatal(err)
	}
	if err := n.Throttle(h[1], 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := reach(h[0], h[1], message, patience); err != nil {
		t.Errorf("throttled: %v", err)
	}
	if err := n.Heal(); err != nil {
		t.Fatal(err)
	}
	if err := reach(h[0], h[1], message, patience); err != nil {
		t.Errorf("healed: %v", err)
	}
}

// TestNothingIsLeft closes a network in which something runs.
func TestNothingIsLeft(t *testing.T) {
	n, h := newNetwork(t, Options{}, "a")
	if own, err := os.Readlink("/proc/thread-self/ns/net"); err != nil {
		t.Fatal(err)
	} else if its, err := os.Readlink(h[0].path); err != nil || own == its {
		t.Fatalf("the host's namespace is %q, %v, ours %q", its, err, own)
	}
	sleep := exec.Command("sleep", "1000")
	if err := h[0].Start(sleep); err != nil {
		t.Fatal(err)
	}
	n.Close()
	var exit *exec.ExitError
	if err := sleep.Wait(); !errors.As(err, &exit) || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the process in the host ended with %v", err)
	}
	for deadline := time.Now().Add(patience); ; {
		if _, err := os.Stat(h[0].path); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the namespace's thread still lives")
		}
		time.Sleep(time.Millisecond)
	}
}
