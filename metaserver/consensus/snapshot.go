package consensus

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/shoalfs/shoalfs/metaserver/kv"
)

// record is what a snapshot consists of beside the database. On disk it is JSON, in front of it eight hexadecimal digits,
// the CRC32C of the JSON, and a newline.
type record struct {
	Format             int    `json:"format"` // 1
	ID                 string `json:"id"`
	Index              uint64 `json:"index"` // the log up to here is contained
	Term               uint64 `json:"term"`  // of that entry
	Configuration      []byte `json:"configuration"`
	ConfigurationIndex uint64 `json:"configuration_index"`
	// Database is the index that the database had on disk, or that the received copy has. It differs from Index: it is
	// newer when commands were applied meanwhile, older when the last entries were no commands.
	Database uint64 `json:"database"`
}

const (
	recordFormat = 1
	recordSuffix = ".snap"
	dataSuffix   = ".data"
	keptRecords  = 2
)

func (r *record) meta() *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: r.ID, Index: r.Index, Term: r.Term,
		Configuration: raft.DecodeConfiguration(r.Configuration), ConfigurationIndex: r.ConfigurationIndex,
	}
}

// snapshots is raft's store of snapshots.
type snapshots struct {
	dir string
	db  *kv.DB
	log *slog.Logger

	metrics *metrics

	mu      sync.Mutex
	records []*record // newest first
}

func openSnapshots(dir string, db *kv.DB, log *slog.Logger, m *metrics) (*snapshots, error) {
	s := &snapshots{dir: dir, db: db, log: log, metrics: m}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("consensus: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case strings.HasSuffix(name, tmpSuffix): // of a crash
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return nil, fmt.Errorf("consensus: %w", err)
			}
		case strings.HasSuffix(name, recordSuffix):
			r, err := readRecord(filepath.Join(dir, name))
			if err != nil {
				return nil, err
			}
			s.records = append(s.records, r)
		}
	}
	s.sort()
	return s, nil
}

func readRecord(path string) (*record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("consensus: %w", err)
	}
	var sum uint32
	r := new(record)
	if len(b) < 9 || b[8] != '\n' {
		return nil, fmt.Errorf("consensus: the snapshot record %s is damaged", path)
	}
	if _, err := fmt.Sscanf(string(b[:8]), "%08x", &sum); err != nil || crc32.Checksum(b[9:], castagnoli) != sum {
		return nil, fmt.Errorf("consensus: the snapshot record %s is damaged", path)
	}
	if err := json.Unmarshal(b[9:], r); err != nil || r.Index == 0 || r.ID+recordSuffix != filepath.Base(path) {
		return nil, fmt.Errorf("consensus: the snapshot record %s is damaged", path)
	}
	if r.Format > recordFormat {
		return nil, fmt.Errorf("consensus: %s has format %d, this version of shoalfs knows only %d: start the version that wrote it, or a newer one",
			path, r.Format, recordFormat)
	}
	return r, nil
}

func (s *snapshots) sort() {
	slices.SortFunc(s.records, func(a, b *record) int {
		return cmp.Or(cmp.Compare(b.Term, a.Term), cmp.Compare(b.Index, a.Index), cmp.Compare(b.Database, a.Database), strings.Compare(b.ID, a.ID))
	})
}

func (s *snapshots) path(id, suffix string) string { return filepath.Join(s.dir, id+suffix) }

// newest is nil when there is none.
func (s *snapshots) newest() *record {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.records) == 0 {
		return nil
	}
	return s.records[0]
}

// List implements raft.SnapshotStore.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*raft.SnapshotMeta
	for _, r := range s.records {
		list = append(list, r.meta())
	}
	return list, nil
}

// Open implements raft.SnapshotStore. It returns the copy that came with the snapshot, or one made now.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	i := slices.IndexFunc(s.records, func(r *record) bool { return r.ID == id })
	if i < 0 {
		s.mu.Unlock()
		return nil, nil, fmt.Errorf("consensus: there is no snapshot %s", id)
	}
	r := s.records[i]
	s.mu.Unlock()
	meta := r.meta()
	f, err := os.Open(s.path(id, dataSuffix))
	if err == nil {
		info, err := f.Stat()
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("consensus: %w", err), f.Close())
		}
		meta.Size = info.Size()
		return meta, f, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("consensus: %w", err)
	}
	db, size, index, err := s.db.Stream()
	if err != nil {
		return nil, nil, err
	}
	if index < r.Database {
		return nil, nil, errors.Join(fmt.Errorf("consensus: the database holds index %d, snapshot %s needs %d", index, id, r.Database), db.Close())
	}
	s.metrics.copiesSent.Inc()
	s.log.Info("sending a copy of the database", "snapshot", id, "index", index, "bytes", size)
	meta.Size = streamSize(size)
	return meta, encodeStream(db, size, index), nil
}

// Create implements raft.SnapshotStore.
func (s *snapshots) Create(_ raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &sink{store: s, record: record{
		Format: recordFormat, ID: fmt.Sprintf("%d-%d-%d", term, index, time.Now().UnixNano()), Index: index, Term: term,
		Configuration: raft.EncodeConfiguration(conf), ConfigurationIndex: confIndex,
	}}, nil
}

// sink takes one snapshot: the bytes of a copy from the leader, or nothing but the word that the database is on disk.
type sink struct {
	store  *snapshots
	record record
	data   *os.File // of a copy; nil for a local snapshot
	local  bool
	done   bool
}

func (k *sink) ID() string { return k.record.ID }

// databaseHolds makes it a local snapshot.
func (k *sink) databaseHolds(index uint64) {
	k.local = true
	k.record.Database = index
}

func (k *sink) Write(p []byte) (n int, err error) {
	if k.data == nil {
		path := k.store.path(k.record.ID, dataSuffix) + tmpSuffix
		if k.data, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
			return 0, fmt.Errorf("consensus: %w", err)
		}
	}
	return k.data.Write(p)
}

// Close makes the snapshot count, durably.
func (k *sink) Close() error {
	if k.done {
		return nil
	}
	k.done = true
	if k.data != nil {
		if err := k.finishData(); err != nil {
			return errors.Join(err, k.drop())
		}
	} else if !k.local {
		return errors.New("consensus: a snapshot without a database")
	}
	return k.store.add(&k.record)
}

// finishData checks the copy and gives it its name.
func (k *sink) finishData() error {
	if err := k.data.Sync(); err != nil {
		return fmt.Errorf("consensus: sync %s: %w", k.data.Name(), err)
	}
	if _, err := k.data.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	d, err := decodeStream(k.data)
	if err == nil {
		_, err = io.Copy(io.Discard, d)
	}
	if err != nil {
		return err
	}
	k.record.Database = d.index
	if err := k.data.Close(); err != nil {
		return fmt.Errorf("consensus: close %s: %w", k.data.Name(), err)
	}
	k.store.metrics.copiesReceived.Inc()
	k.store.log.Info("received a copy of the database", "snapshot", k.record.ID, "index", d.index, "bytes", d.size)
	return rename(k.data.Name(), k.store.path(k.record.ID, dataSuffix))
}

// Cancel implements raft.SnapshotSink.
func (k *sink) Cancel() error {
	if k.done {
		return nil
	}
	k.done = true
	return k.drop()
}

func (k *sink) drop() error {
	if k.data == nil {
		return nil
	}
	_ = k.data.Close() // may be closed already
	if err := os.Remove(k.data.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("consensus: %w", err)
	}
	return nil
}

// add writes a record and drops what it replaces.
func (s *snapshots) add(r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	b = append(fmt.Appendf(nil, "%08x\n", crc32.Checksum(b, castagnoli)), b...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := writeFile(s.path(r.ID, recordSuffix), b); err != nil {
		return err
	}
	s.records = append(s.records, r)
	s.sort()
	for len(s.records) > keptRecords {
		old := s.records[len(s.records)-1]
		if err := os.Remove(s.path(old.ID, recordSuffix)); err != nil {
			return fmt.Errorf("consensus: %w", err)
		}
		s.records = s.records[:len(s.records)-1]
	}
	return s.reap(s.records[0].ID)
}

// reap removes the copies that no snapshot but the one kept needs. The caller holds mu.
func (s *snapshots) reap(kept string) error {
	files, err := filepath.Glob(filepath.Join(s.dir, "*"+dataSuffix))
	if err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	for _, f := range files {
		if f == s.path(kept, dataSuffix) {
			continue
		}
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("consensus: %w", err)
		}
	}
	return nil
}

// settled removes all copies: the database itself holds what the newest snapshot needs.
func (s *snapshots) settled() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reap("")
}
