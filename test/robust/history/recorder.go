package history

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/shoalfs/shoalfs/test/fault/workload"
)

// ErrCancelled is what an operation fails with that its own caller gave up.
var ErrCancelled = errors.New("given up by its caller")

// line is a line of a journal. An operation has two, one before it begins and one when it returned; the second is missing when
// the client died in between.
type line struct {
	N      int64         `json:"n"`
	At     time.Duration `json:"at"`
	Worker int           `json:"w,omitempty"`
	Object string        `json:"o,omitempty"`
	Input  *Input        `json:"in,omitempty"`
	Output *Output       `json:"out,omitempty"`
	Given  bool          `json:"given_up,omitempty"`
	Err    string        `json:"err,omitempty"`
}

// Recorder notes the operations of a client in a file, line by line, each with one system call: it survives its process. It is
// safe for concurrent use.
type Recorder struct {
	mu   sync.Mutex
	file *os.File
	n    int64
}

// NewRecorder makes a journal.
func NewRecorder(path string) (*Recorder, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	return &Recorder{file: f}, nil
}

// Close closes the file.
func (r *Recorder) Close() error { return r.file.Close() }

// put writes a line. A client that cannot note what it does must not go on.
func (r *Recorder) put(l *line) {
	b, err := json.Marshal(l)
	if err == nil {
		_, err = r.file.Write(append(b, '\n'))
	}
	if err != nil {
		panic(fmt.Sprintf("journal %s: %v", r.file.Name(), err))
	}
}

// Do notes an operation around doing it. An error of do leaves the outcome unknown; one that a program has to expect belongs
// in the output's errno.
func (r *Recorder) Do(worker int, object string, in Input, do func() (Output, error)) (Output, error) {
	r.mu.Lock()
	r.n++
	n := r.n
	// Times are taken so that the operation lies between them: before the line is written, and at once when it returned.
	r.put(&line{N: n, At: workload.Now(), Worker: worker, Object: object, Input: &in})
	r.mu.Unlock()

	out, err := do()
	end := line{N: n, At: workload.Now()}
	switch {
	case err == nil:
		end.Output = &out
	case errors.Is(err, ErrCancelled):
		end.Given = true
	default:
		end.Err = err.Error()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.put(&end)
	return out, err
}

// Load reads a journal of a client that does nothing any more.
func Load(client, path string) ([]Operation, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	var all []Operation
	number := map[int64]int{}
	in := bufio.NewReader(f)
	for {
		b, err := in.ReadBytes('\n')
		if err == io.EOF { // what was cut off by the death of the client was not acknowledged to anybody
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		var l line
		if err := json.Unmarshal(b, &l); err != nil {
			return nil, fmt.Errorf("journal %s: %w: %s", path, err, bytes.TrimSpace(b))
		}
		if l.Input != nil {
			number[l.N] = len(all)
			all = append(all, Operation{Client: client, Worker: l.Worker, Object: l.Object, Input: *l.Input, Call: l.At, Return: Never})
			continue
		}
		i, begun := number[l.N]
		if !begun {
			return nil, fmt.Errorf("journal %s: operation %d ends and has not begun", path, l.N)
		}
		all[i].Err = l.Err
		if l.Output != nil {
			all[i].Output, all[i].Return = l.Output, l.At
		}
	}
}
