package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// What raft-wal v0.4.0 leaves behind and cannot open again:
//
//   - A segment that was full when the process died, before the table of contents said so. Its writer then refuses to append
//     for ever.
//   - A segment whose tail was cut off, as happens to a follower whose last entries were never committed. It counts as full,
//     but has no index, and cannot be read after a restart.
//
// repairLog gives both an index and a place in the table of contents before raft-wal opens the log. An index that the file
// may have already is not used: it may be torn.
func repairLog(dir string, meta *metadb.BoltMetaDB) error {
	state, err := meta.Load(dir)
	if err != nil {
		return err
	}
	changed := false
	for i := range state.Segments {
		s := &state.Segments[i]
		switch {
		case s.SealTime.IsZero() && i == len(state.Segments)-1:
			full, last, err := isFull(dir, *s)
			if err != nil {
				return err
			}
			if !full {
				continue
			}
			s.SealTime, s.MaxIndex = time.Now(), last
			next := types.SegmentInfo{
				ID: state.NextSegmentID, BaseIndex: last + 1, MinIndex: last + 1, SizeLimit: s.SizeLimit, Codec: s.Codec, CreateTime: time.Now(),
			}
			state.NextSegmentID++
			state.Segments = append(state.Segments, next) // raft-wal makes the file
			s = &state.Segments[i]
		case s.SealTime.IsZero() || s.IndexStart != 0:
			continue
		}
		if s.IndexStart, err = writeIndex(filepath.Join(dir, segment.FileName(*s)), *s); err != nil {
			return fmt.Errorf("segment %s: %w", segment.FileName(*s), err)
		}
		changed = true
	}
	if !changed {
		return nil
	}
	return meta.CommitState(state)
}

// isFull reports whether raft-wal would refuse to append to its last segment, and the last entry in it.
func isFull(dir string, s types.SegmentInfo) (full bool, last uint64, err error) {
	w, err := segment.NewFiler(dir, walfs.New()).RecoverTail(s)
	if errors.Is(err, fs.ErrNotExist) {
		return false, 0, nil // raft-wal makes it
	}
	if err != nil {
		return false, 0, err
	}
	full, _, err = w.Sealed()
	last = w.LastIndex()
	if err := errors.Join(err, w.Close()); err != nil {
		return false, 0, err
	}
	if full && last == 0 {
		// Its only batch of entries, an index with it, is torn. No entry of it was acknowledged.
		return false, 0, os.Remove(filepath.Join(dir, segment.FileName(s)))
	}
	return full, last, nil
}

// Layout of a segment: a header, then frames, each with a header of its own and padded to 8 bytes. The header of a frame is
// its type, three zero bytes and a little-endian uint32, the length of what follows except in a commit frame.
const (
	segmentHeader = 32
	frameHeader   = 8
)

// writeIndex appends the offsets of a segment's entries to its file and returns where they begin.
func writeIndex(path string, s types.SegmentInfo) (start uint64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	offsets, err := entryOffsets(f, s.MaxIndex-s.BaseIndex+1)
	if err != nil {
		return 0, err
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	var index []byte
	for _, o := range offsets {
		index = binary.LittleEndian.AppendUint32(index, o)
	}
	if _, err := f.Write(index); err != nil {
		return 0, err
	}
	return uint64(end), f.Sync()
}

// entryOffsets finds the first n entries of a segment.
func entryOffsets(r io.ReaderAt, n uint64) ([]uint32, error) {
	var offsets []uint32
	var head [frameHeader]byte
	for at := int64(segmentHeader); uint64(len(offsets)) < n; {
		if _, err := r.ReadAt(head[:], at); err != nil {
			return nil, fmt.Errorf("it should have %d entries, but ends after %d: %w", n, len(offsets), err)
		}
		size := int64(binary.LittleEndian.Uint32(head[4:]))
		switch head[0] {
		case segment.FrameEntry:
			offsets = append(offsets, uint32(at))
		case segment.FrameIndex:
		case segment.FrameCommit:
			size = 0
		default:
			return nil, fmt.Errorf("it should have %d entries, but something else follows after %d", n, len(offsets))
		}
		at += frameHeader + (size+frameHeader-1)/frameHeader*frameHeader
	}
	return offsets, nil
}
