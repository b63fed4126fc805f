package consensus

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
	"pgregory.net/rapid"
)

func openTestLog(t rapid.TB, dir string) *logStore {
	t.Helper()
	return openSizedLog(t, dir, 4<<10)
}

func openSizedLog(t rapid.TB, dir string, segment int) *logStore {
	t.Helper()
	l, err := openLog(dir, segment, newRaftLogger(logger()), func(err error) { t.Errorf("the log failed: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func entry(index, term uint64) *raft.Log {
	return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "entry %d of term %d, %0*d", index, term, int(index*37%200), 0)}
}

// TestLogIsAListOfEntries compares the log with a slice, across restarts.
func TestLogIsAListOfEntries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "log")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		segment := rapid.SampledFrom([]int{4 << 10, 32 << 10}).Draw(t, "bytes of a segment") // of a block, of several
		l := openSizedLog(t, dir, segment)
		defer func() { _ = l.Close() }()
		first, terms := uint64(1), []uint64(nil) // of the entries from first
		last := func() uint64 { return first + uint64(len(terms)) - 1 }
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				gotFirst, err1 := l.FirstIndex()
				gotLast, err2 := l.LastIndex()
				if err1 != nil || err2 != nil {
					t.Fatal(err1, err2)
				}
				if len(terms) == 0 {
					if gotLast != 0 {
						t.Fatalf("an empty log ends at %d", gotLast)
					}
					return
				}
				if gotFirst != first || gotLast != last() {
					t.Fatalf("the log goes from %d to %d, want %d to %d", gotFirst, gotLast, first, last())
				}
				for i, term := range terms {
					var got raft.Log
					want := entry(first+uint64(i), term)
					if err := l.GetLog(want.Index, &got); err != nil || got.Term != term || !bytes.Equal(got.Data, want.Data) {
						t.Fatalf("entry %d: %v %q, want %q", want.Index, err, got.Data, want.Data)
					}
				}
			},
			"append": func(t *rapid.T) {
				term := rapid.Uint64Range(1, 1000).Draw(t, "term")
				var logs []*raft.Log
				for range rapid.IntRange(1, 12).Draw(t, "entries") {
					terms = append(terms, term)
					logs = append(logs, entry(last(), term))
				}
				if err := l.StoreLogs(logs); err != nil {
					t.Fatal(err)
				}
			},
			"cut the tail off": func(t *rapid.T) {
				if len(terms) < 2 {
					return
				}
				n := rapid.IntRange(1, len(terms)-1).Draw(t, "entries")
				if err := l.DeleteRange(last()-uint64(n)+1, last()); err != nil {
					t.Fatal(err)
				}
				terms = terms[:len(terms)-n]
			},
			"cut the head off": func(t *rapid.T) {
				if len(terms) < 2 {
					return
				}
				n := rapid.IntRange(1, len(terms)-1).Draw(t, "entries")
				if err := l.DeleteRange(first, first+uint64(n)-1); err != nil {
					t.Fatal(err)
				}
				first, terms = first+uint64(n), terms[n:]
			},
			"start over": func(t *rapid.T) {
				if len(terms) == 0 {
					return
				}
				if err := l.DeleteRange(first, last()); err != nil {
					t.Fatal(err)
				}
				first, terms = last()+1+rapid.Uint64Range(0, 3).Draw(t, "gap"), nil
			},
			"reopen": func(t *rapid.T) {
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				l = openSizedLog(t, dir, segment)
			},
		})
	})
}

// fullSegment leaves a log as a process does that died before a full segment was entered in the table of contents.
func fullSegment(t *testing.T, dir string) (entries uint64, file string) {
	t.Helper()
	meta := &metadb.BoltMetaDB{}
	if _, err := meta.Load(dir); err != nil {
		t.Fatal(err)
	}
	info := types.SegmentInfo{ID: 1, BaseIndex: 1, MinIndex: 1, SizeLimit: 4 << 10, Codec: wal.CodecBinaryV1}
	if err := meta.CommitState(types.PersistentState{NextSegmentID: 2, Segments: []types.SegmentInfo{info}}); err != nil {
		t.Fatal(err)
	}
	w, err := segment.NewFiler(dir, walfs.New()).Create(info)
	if err != nil {
		t.Fatal(err)
	}
	for full := false; !full; {
		var batch []types.LogEntry
		for range 3 {
			entries++
			var b bytes.Buffer
			if err := (&wal.BinaryCodec{}).Encode(entry(entries, 1), &b); err != nil {
				t.Fatal(err)
			}
			batch = append(batch, types.LogEntry{Index: entries, Data: b.Bytes()})
		}
		if err := w.Append(batch); err != nil {
			t.Fatal(err)
		}
		if full, _, err = w.Sealed(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := meta.Close(); err != nil {
		t.Fatal(err)
	}
	return entries, filepath.Join(dir, segment.FileName(info))
}

func TestCrashBeforeAFullSegmentWasEntered(t *testing.T) {
	whole := t.TempDir()
	entries, file := fullSegment(t, whole)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	end := len(bytes.TrimRight(content, "\x00"))
	// The last batch may have reached the disk whole, or not to its end.
	for missing := 0; missing < 900; missing += 7 {
		dir := t.TempDir()
		_, file := fullSegment(t, dir)
		torn := bytes.Clone(content)
		clear(torn[end-missing:])
		if err := os.WriteFile(file, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		l := openTestLog(t, dir)
		last, err := l.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		if missing == 0 && last != entries || last < entries-6 || last > entries {
			t.Fatalf("%d bytes missing: the log ends at %d of %d", missing, last, entries)
		}
		for range 2 {
			for range 40 {
				last++
				if err := l.StoreLogs([]*raft.Log{entry(last, 2)}); err != nil {
					t.Fatalf("%d bytes missing: append %d: %v", missing, last, err)
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = openTestLog(t, dir)
		}
		for i := uint64(1); i <= last; i++ {
			var got raft.Log
			if err := l.GetLog(i, &got); err != nil || got.Index != i || !bytes.Equal(got.Data, entry(i, got.Term).Data) {
				t.Fatalf("%d bytes missing: entry %d: %v %q", missing, i, err, got.Data)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
