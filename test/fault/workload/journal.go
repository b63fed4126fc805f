package workload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Operations of clients, as journals name them.
const (
	opCreate = "create" // of a new file, and its open
	opOpen   = "open"
	opWrite  = "write"
	opAppend = "append"
	opSync   = "sync"
	opClose  = "close"
	opRead   = "read"
	opRename = "rename"
	opRemove = "remove"
	opMkdir  = "mkdir"
	opStat   = "stat"
	opList   = "readdir"

	// Found is no operation: something that the client saw is wrong.
	opFound = "found"
)

// Entry is a line of a journal. An operation has two, one before it begins and one when it returned.
type Entry struct {
	Seq  int64         `json:"n"`              // number of the operation
	Op   string        `json:"op"`             //
	Done bool          `json:"done,omitempty"` // it returned
	At   time.Duration `json:"at"`             // on the machine's monotonic clock

	File  int64  `json:"f,omitempty"` // the number of the operation that made it
	Path  string `json:"path,omitempty"`
	To    string `json:"to,omitempty"` // the new name of a rename
	Off   int64  `json:"off,omitempty"`
	Len   int64  `json:"len,omitempty"` // of what was read, when that is done
	Stamp Stamp  `json:"stamp,omitempty"`

	Errno syscall.Errno `json:"errno,omitempty"`
	Err   string        `json:"err,omitempty"`
	Want  syscall.Errno `json:"want,omitempty"` // the error that it had to return
}

// Failed tells whether the operation returned an error that it had no reason to return.
func (e *Entry) Failed() bool { return e.Done && e.Errno != e.Want }

// Now is the time of journals.
func Now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // there is no such system
	}
	return time.Duration(t.Nano())
}

// Journal is written line by line, each with one system call: it survives its process.
type Journal struct {
	file    *os.File
	seq     int64
	history *History // that is to know at once, if there is one
}

// NewJournal makes a journal.
func NewJournal(path string) (*Journal, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	return &Journal{file: f}, nil
}

// Close closes the file.
func (j *Journal) Close() error { return j.file.Close() }

// put writes a line. A client that cannot note what it does must not go on.
func (j *Journal) put(e *Entry) {
	e.At = Now()
	b, err := json.Marshal(e)
	if err == nil {
		_, err = j.file.Write(append(b, '\n'))
	}
	if err != nil {
		panic(fmt.Sprintf("journal %s: %v", j.file.Name(), err))
	}
	if j.history != nil {
		noted := *e
		j.history.add(&noted)
	}
}

// Do notes an operation around doing it. What do changes in the entry, and the error that it returns, is noted too.
func (j *Journal) Do(e Entry, do func(*Entry) error) error {
	j.seq++
	e.Seq = j.seq
	if e.Op == opCreate {
		e.File = e.Seq
	}
	j.put(&e)
	err := do(&e)
	e.Done, e.Errno = true, errnoOf(err)
	if err != nil {
		e.Err = err.Error()
	}
	j.put(&e)
	return err
}

// Found notes that something is wrong.
func (j *Journal) Found(path, format string, args ...any) {
	j.seq++
	j.put(&Entry{Seq: j.seq, Op: opFound, Path: path, Done: true, Errno: syscall.EILSEQ, Err: fmt.Sprintf(format, args...)})
}

// errnoOf is the errno of an error, EIO where it has none.
func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return errno
	}
	return syscall.EIO
}

// tail reads a journal that may still be written.
type tail struct {
	path string
	off  int64
	rest []byte // a line of which the end is missing
}

// next hands over the entries that were added since it was called last. A journal that is not there yet has none.
func (t *tail) next(add func(*Entry)) error {
	f, err := os.Open(t.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	b, err := io.ReadAll(io.NewSectionReader(f, t.off, 1<<62))
	if err != nil {
		return err
	}
	t.off += int64(len(b))
	b = append(t.rest, b...)
	for {
		line, after, whole := bytes.Cut(b, []byte("\n"))
		if !whole {
			t.rest = bytes.Clone(b)
			return nil
		}
		e := new(Entry)
		if err := json.Unmarshal(line, e); err != nil {
			return fmt.Errorf("journal %s: %w: %s", t.path, err, line)
		}
		add(e)
		b = after
	}
}
