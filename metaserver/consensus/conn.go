package consensus

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// maxPiece is how much a message carries at most, in bytes.
const maxPiece = 1 << 20

// byteStream is either end of a Peer.Connect call.
type byteStream interface {
	Send(*pb.PeerBytes) error
	Recv() (*pb.PeerBytes, error)
}

// address is a host:port as a net.Addr.
type address string

func (a address) Network() string { return "shoal" }
func (a address) String() string  { return string(a) }

// conn is a net.Conn made of a Peer.Connect call. A write goes straight into the call; what comes is fetched by a
// goroutine, so that a read can have a deadline. A write that is stuck when its deadline passes takes the conn with it: raft
// gives a conn up after any error.
type conn struct {
	stream        byteStream
	call          context.Context
	end           context.CancelFunc // of the call
	local, remote net.Addr
	accepted      bool

	incoming chan []byte
	readMu   sync.Mutex
	rest     []byte // of the message being read; under readMu
	recvErr  error  // set before ended is closed
	ended    chan struct{}

	writeMu sync.Mutex
	writing atomic.Bool
	reads   deadline
	writes  deadline

	closed    chan struct{} // by the user
	closeOnce sync.Once
	release   func(*conn) // tells the layer that the user closed it
}

func newConn(call context.Context, end context.CancelFunc, s byteStream, local, remote net.Addr, release func(*conn)) *conn {
	c := &conn{stream: s, call: call, end: end, local: local, remote: remote, release: release,
		incoming: make(chan []byte, 1), ended: make(chan struct{}), closed: make(chan struct{})}
	c.reads.init(nil)
	c.writes.init(func() {
		if c.writing.Load() {
			c.end() // the only way to get a Send back
		}
	})
	return c
}

// pump fetches messages until the call ends.
func (c *conn) pump() {
	defer close(c.ended)
	for {
		m, err := c.stream.Recv()
		if err != nil {
			c.recvErr = c.readError(err)
			return
		}
		if len(m.Data) == 0 {
			continue
		}
		select {
		case c.incoming <- m.Data:
		case <-c.call.Done():
			c.recvErr = io.EOF
			return
		}
	}
}

// readError is what a reader is told about the end of the call. On the accepting side it does not matter why the other one
// went away.
func (c *conn) readError(err error) error {
	if c.accepted || errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
		return io.EOF
	}
	return err
}

func (c *conn) Read(p []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if len(c.rest) == 0 {
		select {
		case <-c.reads.passed():
			return 0, os.ErrDeadlineExceeded
		default:
		}
		var err error
		if c.rest, err = c.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *conn) next() ([]byte, error) {
	select {
	case <-c.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case b := <-c.incoming:
		return b, nil
	case <-c.reads.passed():
		return nil, os.ErrDeadlineExceeded
	case <-c.closed:
		return nil, net.ErrClosed
	case <-c.ended:
	}
	select {
	case <-c.closed:
		return nil, net.ErrClosed
	case b := <-c.incoming: // the last one
		return b, nil
	default:
		return nil, c.recvErr
	}
}

func (c *conn) Write(p []byte) (n int, err error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.writing.Store(true)
	defer c.writing.Store(false)
	for len(p) > 0 {
		select {
		case <-c.writes.passed():
			return n, os.ErrDeadlineExceeded
		case <-c.closed:
			return n, net.ErrClosed
		default:
		}
		k := min(len(p), maxPiece)
		if err := c.stream.Send(&pb.PeerBytes{Data: p[:k]}); err != nil {
			return n, c.writeError(err)
		}
		n += k
		p = p[k:]
	}
	return n, nil
}

func (c *conn) writeError(err error) error {
	select {
	case <-c.closed:
		return net.ErrClosed
	case <-c.writes.passed():
		return os.ErrDeadlineExceeded
	default:
	}
	if errors.Is(err, io.EOF) { // the call ended; Recv knows why
		<-c.ended
		return c.recvErr
	}
	return err
}

func (c *conn) Close() error {
	c.closeOnce.Do(func() {
		close(c.closed)
		c.end()
		c.reads.set(time.Time{})
		c.writes.set(time.Time{})
		c.release(c)
	})
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	c.reads.set(t)
	c.writes.set(t)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.reads.set(t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.writes.set(t)
	return nil
}

// deadline is a moment after which its channel is closed. It may be set again, before and after it passed.
type deadline struct {
	mu      sync.Mutex
	timer   *time.Timer
	channel chan struct{}
	then    func() // called when it passes; may be nil
}

func (d *deadline) init(then func()) {
	d.channel = make(chan struct{})
	d.then = then
}

func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.channel
}

// set moves the deadline; the zero time means never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	select {
	case <-d.channel: // it passed
		d.channel = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	// A timer that could not be stopped closes the channel that was current when it was made, and calls no one.
	channel := d.channel
	var timer *time.Timer
	timer = time.AfterFunc(time.Until(t), func() {
		d.mu.Lock()
		current := d.timer == timer
		if current {
			close(channel)
			d.timer = nil
		}
		d.mu.Unlock()
		if current && d.then != nil {
			d.then()
		}
	})
	d.timer = timer
}
