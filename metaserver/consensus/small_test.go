package consensus

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestStreamIsWholeOrAnError(t *testing.T) {
	content := bytes.Repeat([]byte("database"), 1000)
	r := encodeStream(io.NopCloser(bytes.NewReader(content)), int64(len(content)), 42)
	b, err := io.ReadAll(r)
	if err != nil || int64(len(b)) != streamSize(int64(len(content))) {
		t.Fatal(len(b), err)
	}
	d, err := decodeStream(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(d)
	if err != nil || !bytes.Equal(got, content) || d.index != 42 {
		t.Fatal(len(got), d.index, err)
	}
	read := func(b []byte) error {
		d, err := decodeStream(bytes.NewReader(b))
		if err == nil {
			_, err = io.ReadAll(d)
		}
		return err
	}
	for i := 0; i < len(b); i += 1 + i/10 {
		damaged := bytes.Clone(b)
		damaged[i] ^= 1
		if read(damaged) == nil {
			t.Errorf("a flipped bit at %d was not noticed", i)
		}
		if read(b[:i]) == nil {
			t.Errorf("the end after %d bytes was not noticed", i)
		}
	}
	if _, err := io.ReadAll(encodeStream(io.NopCloser(bytes.NewReader(content)), int64(len(content))+1, 1)); err == nil {
		t.Error("a database that is shorter than promised was not noticed")
	}
}

func FuzzStream(f *testing.F) {
	b, err := io.ReadAll(encodeStream(io.NopCloser(strings.NewReader("content")), 7, 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := decodeStream(bytes.NewReader(b))
		if err != nil {
			return
		}
		got, err := io.ReadAll(d)
		if err == nil && int64(len(got)) != d.size {
			t.Fatalf("%d bytes, promised %d", len(got), d.size)
		}
	})
}

// pipe makes both ends of a connection.
func pipe(t *testing.T, network bool) (dialled, accepted net.Conn) {
	t.Helper()
	listen := freePort(t)
	address := listen
	if network {
		p := newProxy(t, listen)
		t.Cleanup(p.close)
		address = p.listener.Addr().String()
	}
	pool := &rpc.Pool{}
	l := newLayer(nil, address, pool, func() []byte { return nil })
	server, err := rpc.NewServer(listen, logger())
	if err != nil {
		t.Fatal(err)
	}
	pb.RegisterPeerServer(server, l)
	served := make(chan error, 1)
	go func() { served <- server.Serve() }()
	t.Cleanup(func() {
		_ = dialled.Close()
		_ = accepted.Close()
		_ = l.Close()
		l.wait()
		server.Close()
		if err := errors.Join(<-served, pool.Close()); err != nil {
			t.Error(err)
		}
	})
	if dialled, err = l.Dial(raft.ServerAddress(address), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if accepted, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return dialled, accepted
}

func TestConn(t *testing.T) {
	for _, network := range []bool{false, true} {
		kind := map[bool]string{false: "in the process", true: "over the network"}[network]
		t.Run(kind+"/bytes arrive in order", func(t *testing.T) {
			a, b := pipe(t, network)
			want := make([]byte, 5<<20+7)
			_, _ = rand.NewChaCha8([32]byte{3}).Read(want) // never fails
			for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
				go func() {
					for p := want; len(p) > 0; {
						n, err := way[0].Write(p[:min(len(p), 1+rand.IntN(2<<20))])
						if err != nil {
							t.Error(err)
							return
						}
						p = p[n:]
					}
				}()
				got := make([]byte, len(want))
				if _, err := io.ReadFull(way[1], got); err != nil || !bytes.Equal(got, want) {
					t.Fatal("other bytes arrived than were sent", err)
				}
			}
		})
		t.Run(kind+"/deadlines", func(t *testing.T) {
			a, b := pipe(t, network)
			_ = a.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a read past its deadline: %v", err)
			}
			if _, err := b.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a second read past its deadline: %v", err)
			}
			_ = a.SetDeadline(time.Time{})
			if _, err := a.Read(make([]byte, 1)); err != nil {
				t.Errorf("a read after the deadline was lifted: %v", err)
			}
			_ = a.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
			var err error
			for err == nil { // nobody reads
				_, err = a.Write(make([]byte, 1<<20))
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a write past its deadline: %v", err)
			}
		})
		t.Run(kind+"/close", func(t *testing.T) {
			a, b := pipe(t, network)
			reading := make(chan error, 1)
			go func() {
				_, err := b.Read(make([]byte, 1))
				reading <- err
			}()
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			if err := <-reading; err != io.EOF {
				t.Errorf("a read when the other end closes: %v", err)
			}
			if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("a read after Close: %v", err)
			}
			if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("a write after Close: %v", err)
			}
		})
		t.Run(kind+"/the accepting end closes", func(t *testing.T) {
			a, b := pipe(t, network)
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			if _, err := a.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("a read when the other end closes: %v", err)
			}
		})
	}
}

const childEnv = "SHOAL_CONSENSUS_TEST_CHILD"

// proposeForEver tells on standard output which commands are done.
func proposeForEver(dir string) error {
	m := &member{id: 1, dir: dir, address: "127.0.0.1:1", pool: &rpc.Pool{}}
	if err := m.openDB(); err != nil {
		return err
	}
	cfg := m.config()
	smallLog(&cfg)
	cfg.SnapshotInterval, cfg.SnapshotThreshold = 20*time.Millisecond, 50
	n, err := New(cfg)
	if err != nil {
		return err
	}
	for leads := range n.Leadership() {
		if leads {
			break
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				res, err := n.Propose(context.Background(), command("x"))
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				mu.Lock()
				fmt.Println(res.Session)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.New("all proposers gave up")
}

// A killed process loses nothing that it reported, and applies nothing twice: the toy numbers its commands.
func TestKilledProcessLosesNothing(t *testing.T) {
	dir := t.TempDir()
	var last uint64
	for range 6 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir, "SHOAL_TEST_LOG=")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, limit := bufio.NewScanner(out), rand.IntN(3000)+1
		highest := last
		seen := map[uint64]bool{}
		for i := 0; lines.Scan(); i++ {
			n, err := strconv.ParseUint(lines.Text(), 10, 64)
			if err != nil {
				break // a line cut off
			}
			if n <= last || seen[n] {
				t.Errorf("command %d was numbered again: %d were known before", n, last)
			}
			seen[n] = true
			highest = max(highest, n)
			if i == limit {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait() // it was killed
		if stderr.Len() > 0 {
			t.Fatal(stderr.String())
		}
		g := &group{t: t, members: map[uint64]*member{1: {id: 1, dir: dir, listen: freePort(t)}}, tune: smallLog}
		g.members[1].address = g.members[1].listen
		g.peers = map[uint64]string{1: g.members[1].address}
		g.start(1)
		m := g.leader()
		all := m.count(t, totals, "all")
		if all < highest || all != m.count(t, names, "x") {
			t.Errorf("%d commands after the kill, %d were reported", all, highest)
		}
		last = all
		g.stop(1)
	}
}

// Only answers to questions that were sent after a round began count for it, and only those of the same term.
func TestAnOldAnswerConfirmsNothing(t *testing.T) {
	three := raft.Configuration{Servers: []raft.Server{{ID: "1"}, {ID: "2"}, {ID: "3"}}}
	a := newAcks()
	before := a.current()
	round := a.begin()
	a.confirmed("2", 7, before) // lay in a socket while this process was paused
	a.confirmed("3", 6, round)  // of an earlier term
	if a.majority(three, "1", 7, round) {
		t.Fatal("old answers were counted")
	}
	a.confirmed("2", 7, a.current())
	if !a.majority(three, "1", 7, round) {
		t.Fatal("a new answer was not counted")
	}
	a.confirmed("2", 7, before) // overtaken
	if !a.majority(three, "1", 7, round) {
		t.Fatal("an old answer replaced a newer one")
	}
	if next := a.begin(); a.majority(three, "1", 7, next) {
		t.Fatal("a round was confirmed before it began")
	}
}
