package namespace

import (
	"bytes"
	"encoding/binary"
	"syscall"

	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const fileType = syscall.S_IFREG

// sessionExists tells whether there is anything of a session. It takes more than HasSession to be sure that there is not.
func sessionExists(r kv.Reader, id uint64) bool {
	return r.Get(bSession, key8(id)) != nil || r.Get(bResult, key16(id, 0)) != nil
}

// ownerExists tells whether there is anything of whoever writes a chunk.
func ownerExists(r kv.Reader, owner uint64) bool { return owner == Rewriter || sessionExists(r, owner) }

func (c *checker) readSessions() {
	c.begin("sessions", c.want.sessions)
	c.each(bSession, 8, func(k []byte) {
		if len(k) == 8 {
			c.have.sessions++
		}
	}, func(k, v []byte) error {
		id := binary.BigEndian.Uint64(k)
		s, err := decodeSession(id, v)
		if err != nil {
			return err
		}
		c.have.sessions++
		c.numbered(bSession, k, id, c.want.nextSession, "session")
		if v := c.r.Get(bNonce, s.Nonce); len(v) != 9 || binary.BigEndian.Uint64(v[1:]) != id {
			c.broken(stageIndexes, indexFix(bNonce, s.Nonce, id), "session %d cannot be found by its nonce", id)
		}
		if !HasSession(c.r, id) {
			// Nothing that it sends is accepted; without the window nobody knows what was done before.
			c.report("session %d has no window of results", id)
			c.out.Ends = append(c.out.Ends, id)
		}
		if n := c.owners[id]; n != uint64(s.Owned) {
			c.broken(stageSums, addFix(pb.StateFix_OWNED, id, n, uint64(s.Owned)), "session %d writes %d chunks, its record says %d", id, n, s.Owned)
		}
		return nil
	})
}

func (c *checker) readNonces() {
	c.each(bNonce, nonceSize, nil, func(k, v []byte) error {
		if len(v) != 9 || v[0] != formatVersion {
			c.broken(stageIndexes, indexFix(bNonce, k, 0), "nonce %x leads to no session", k)
			return nil
		}
		id := binary.BigEndian.Uint64(v[1:])
		if s, err := getSession(c.r, id); err == nil && (s == nil || !bytes.Equal(s.Nonce, k)) {
			c.broken(stageIndexes, indexFix(bNonce, k, 0), "nonce %x leads to session %d, which has another, or does not exist", k, id)
		}
		return nil
	})
}

func (c *checker) readOwned() {
	c.each(bOwned, 16, nil, func(k, _ []byte) error {
		session, id := binary.BigEndian.Uint64(k), chunk.ID(binary.BigEndian.Uint64(k[8:]))
		switch ch := c.chunk(id); {
		case ch != nil && ch.damaged:
		case ch == nil || ch.keeper != session:
			c.broken(stageIndexes, indexFix(bOwned, k, 0), "session %d does not write chunk %v, as the index of such chunks says", session, id)
		default:
			ch.owned = true
		}
		return nil
	})
}

func (c *checker) readResults() {
	c.begin("results", 0)
	var w window
	c.each(bResult, 16, nil, func(k, v []byte) (err error) {
		session, sequence := binary.BigEndian.Uint64(k), binary.BigEndian.Uint64(k[8:])
		fix := indexFix(bResult, k, 0)
		if c.r.Get(bSession, key8(session)) == nil {
			c.broken(stageIndexes, fix, "a result of session %d, which does not exist", session)
			return nil
		}
		if sequence == 0 {
			w, err = decodeWindow(v)
			return err
		}
		if HasSession(c.r, session) && (sequence < uint64(w) || sequence-uint64(w) > maxWindow) {
			c.broken(stageIndexes, fix, "session %d: a result of %d outside of the window from %d", session, sequence, w)
		}
		return proto.Unmarshal(v, new(pb.Result))
	})
}

// readHolders reads which sessions hold which unlinked inodes, from both sides.
func (c *checker) readHolders() {
	c.begin("open files", 0)
	for _, b := range []kv.Bucket{bOrphan, bHeld} {
		c.each(b, 16, nil, func(k, _ []byte) error {
			num, session := binary.BigEndian.Uint64(k), binary.BigEndian.Uint64(k[8:])
			other := bHeld
			if b == bHeld {
				num, session, other = session, num, bOrphan
			}
			in, fix := c.inode(num), indexFix(b, k, 0)
			switch {
			case in != nil && in.damaged:
			case in == nil || in.nlink != 0:
				c.broken(stageIndexes, fix, "inode %d is held as unlinked for session %d, but is not unlinked", num, session)
			case !sessionExists(c.r, session):
				c.broken(stageIndexes, fix, "inode %d is held for session %d, which does not exist", num, session)
			case c.r.Get(other, append(append([]byte(nil), k[8:]...), k[:8]...)) == nil:
				c.broken(stageIndexes, fix, "%s %x has no counterpart", bucketName(b), k)
				in.holders++
			case b == bOrphan:
				in.holders++
			}
			return nil
		})
	}
}
