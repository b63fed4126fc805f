package namespace

import (
	"encoding/binary"
	"math"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	// sessionEnded is the message of the result for a session that does not exist.
	sessionEnded = "session ended"
	// maxWindow is how far a sequence may be ahead of the lowest unanswered one, and so how many results a session has.
	maxWindow = 4096

	nonceSize     = 16       // bytes
	maxClientName = 1024     // bytes
	maxSessions   = 64 << 10 // that live at once
	maxExpired    = 64 << 10 // in one command
)

// IsSessionEnded tells whether a result says that its session does not exist: the client has to open another.
func IsSessionEnded(res *pb.Result) bool {
	return res.GetErrno() == uint32(syscall.ESTALE) && res.GetMessage() == sessionEnded
}

// SessionRecord is a client's session.
type SessionRecord struct {
	ID     uint64
	Opened int64  // ns
	Owned  uint32 // chunks that it is writing, or has not given up since repair sealed them
	Nonce  []byte
	Client string // host and program
}

func (s *SessionRecord) encode() []byte {
	b := append(make([]byte, 0, 1+8+4+nonceSize+len(s.Client)), formatVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(s.Opened))
	b = binary.BigEndian.AppendUint32(b, s.Owned)
	b = append(b, s.Nonce...)
	return append(b, s.Client...)
}

func decodeSession(id uint64, v []byte) (*SessionRecord, error) {
	d := decoder{b: v}
	d.version()
	s := &SessionRecord{ID: id, Opened: int64(d.u64()), Owned: d.u32()}
	s.Nonce = append([]byte(nil), d.bytes(nonceSize)...)
	s.Client = string(d.bytes(len(d.b)))
	return s, d.end()
}

func getSession(r kv.Reader, id uint64) (*SessionRecord, error) {
	key := key8(id)
	v := r.Get(bSession, key)
	if v == nil {
		return nil, nil
	}
	s, err := decodeSession(id, v)
	if err != nil {
		return nil, damaged(bSession, key)
	}
	return s, nil
}

// window is the lowest sequence of a session whose result is kept. It is stored beside the results, under sequence 0,
// and exists as long as the session does.
type window uint64

func decodeWindow(v []byte) (window, error) {
	if len(v) != 9 || v[0] != formatVersion {
		return 0, errDamaged
	}
	return window(binary.BigEndian.Uint64(v[1:])), nil
}

func (w window) encode() []byte {
	return binary.BigEndian.AppendUint64([]byte{formatVersion}, uint64(w))
}

// getWindow also tells whether the session exists.
func getWindow(r kv.Reader, session uint64) (window, bool, error) {
	key := key16(session, 0)
	v := r.Get(bResult, key)
	if v == nil || session == 0 {
		return 0, false, nil
	}
	w, err := decodeWindow(v)
	if err != nil {
		return 0, false, damaged(bResult, key)
	}
	return w, true, nil
}

// admit refuses a command whose number can no longer, or not yet, be recorded.
func (w window) admit(cmd *pb.Command) error {
	low := max(uint64(w), cmd.Unanswered)
	switch {
	case cmd.Sequence == 0 || cmd.Sequence < low:
		return fserr.New(syscall.EINVAL, "sequence %d was answered before %d", cmd.Sequence, low)
	case cmd.Sequence-low > maxWindow:
		return fserr.New(syscall.EINVAL, "sequence %d is more than %d ahead of the unanswered %d", cmd.Sequence, maxWindow, low)
	}
	return nil
}

// moveWindow drops the results that the client has got.
func (x *tx) moveWindow(w window, unanswered uint64) {
	if unanswered <= uint64(w) {
		return
	}
	var old []uint64
	x.Scan(bResult, key16(x.session, max(uint64(w), 1)), func(k, _ []byte) bool {
		if len(k) != 16 || !hasPrefix8(k, x.session) || binary.BigEndian.Uint64(k[8:]) >= unanswered {
			return false
		}
		old = append(old, binary.BigEndian.Uint64(k[8:]))
		return true
	})
	for _, sequence := range old {
		x.Delete(bResult, key16(x.session, sequence))
	}
	x.Put(bResult, key16(x.session, 0), window(unanswered).encode())
}

func (x *tx) openSession(op *pb.OpenSession) (*pb.Result, error) {
	if len(op.Nonce) != nonceSize || len(op.Client) > maxClientName {
		return nil, fserr.New(syscall.EINVAL, "a session with a nonce of %d bytes and a name of %d", len(op.Nonce), len(op.Client))
	}
	res := &pb.Result{Cluster: append([]byte(nil), x.Get(bState, clusterKey)...)}
	if v := x.Get(bNonce, op.Nonce); v != nil {
		if len(v) != 9 || v[0] != formatVersion {
			return nil, damaged(bNonce, op.Nonce)
		}
		res.Session = binary.BigEndian.Uint64(v[1:])
		return res, nil
	}
	if x.c.sessions >= maxSessions {
		return nil, fserr.New(syscall.EAGAIN, "%d sessions are open, at most %d", x.c.sessions, maxSessions)
	}
	s := &SessionRecord{ID: x.c.nextSession, Opened: x.now, Nonce: op.Nonce, Client: op.Client}
	x.c.nextSession++
	x.c.sessions++
	x.Put(bSession, key8(s.ID), s.encode())
	x.Put(bNonce, append([]byte(nil), op.Nonce...), binary.BigEndian.AppendUint64([]byte{formatVersion}, s.ID))
	x.Put(bResult, key16(s.ID, 0), window(1).encode())
	res.Session = s.ID
	return res, nil
}

func (x *tx) closeSession() (*pb.Result, error) {
	x.ended = true
	return &pb.Result{}, x.endSession(x.session)
}

func (x *tx) expireSessions(op *pb.ExpireSessions) (*pb.Result, error) {
	if len(op.Sessions) > maxExpired {
		return nil, fserr.New(syscall.EINVAL, "%d sessions to expire, at most %d", len(op.Sessions), maxExpired)
	}
	for _, id := range op.Sessions {
		if err := x.endSession(id); err != nil {
			return nil, err
		}
	}
	return &pb.Result{}, nil
}

// endSession removes a session if it exists: its chunks are sealed, the unlinked inodes that it held released, its results
// dropped.
func (x *tx) endSession(id uint64) error {
	s, err := getSession(x, id)
	if s == nil || err != nil {
		return err
	}
	cs := newChunkSet(x)
	for _, num := range numbersUnder(x, bOwned, id) {
		c, err := cs.get(chunk.ID(num))
		if err != nil {
			return err
		}
		if c == nil || c.Keeper() != id {
			return damaged(bOwned, key16(id, num))
		}
		c.Owner, c.Writer = 0, 0
	}
	if err := cs.flush(); err != nil {
		return err
	}
	for _, num := range numbersUnder(x, bHeld, id) {
		if err := x.release(id, num); err != nil {
			return err
		}
	}
	for _, sequence := range numbersUnder(x, bResult, id) {
		x.Delete(bResult, key16(id, sequence))
	}
	x.Delete(bNonce, s.Nonce)
	x.Delete(bSession, key8(id))
	return x.subtract(&x.c.sessions, 1, "sessions")
}

// countOwned counts the chunks that a session writes or keeps; it may have only so many.
func (x *tx) countOwned(session uint64, delta int64) error {
	if session == Rewriter { // which is none
		return nil
	}
	s, err := getSession(x, session)
	if err != nil {
		return err
	}
	if s == nil {
		return damaged(bSession, key8(session))
	}
	n := int64(s.Owned) + delta
	switch {
	case n < 0 || n > math.MaxUint32:
		return damaged(bSession, key8(session))
	case delta > 0 && n > maxOwned:
		return fserr.New(syscall.EAGAIN, "the session has %d chunks open, at most %d", s.Owned, maxOwned)
	}
	s.Owned = uint32(n)
	x.Put(bSession, key8(session), s.encode())
	return nil
}
