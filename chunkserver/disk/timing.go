package disk

import (
	"math"
	"sync"
	"time"
)

// kind tells apart what a disk is asked for.
type kind int

const (
	reading kind = iota
	writing
	kinds
)

const (
	// timingDecay is the time in which what was measured loses weight by e.
	timingDecay = 10 * time.Second
	// timingLeast is the weight below which there is nothing to say: that of one operation 30 s ago.
	timingLeast = 0.05
	// stalled is how long something may take that has every reason to take long, before that counts against the disk.
	stalled = 5 * time.Second
)

// timings measures how long a disk takes. The mean is that of clients' appends, syncs and reads. Everything else, such as
// scrubbing or a large copy's sync, would say more about how much of it there is than about the disk, and counts only when
// it is stuck.
type timings struct {
	now func() time.Time

	mu    sync.Mutex
	kinds [kinds]timing
}

// timing is of one kind of operations.
type timing struct {
	sum    float64 // seconds
	weight float64
	at     time.Time // when the two were last brought up to date
	// The operations under way, the oldest first: those that count, and the others.
	counted, others operations
}

// operation is under way.
type operation struct {
	started    time.Time
	prev, next *operation
}

// operations is a list of them in the order in which they started.
type operations struct{ first, last *operation }

func (l *operations) add(o *operation) {
	if o.prev = l.last; o.prev == nil {
		l.first = o
	} else {
		o.prev.next = o
	}
	l.last = o
}

func (l *operations) remove(o *operation) {
	if o.prev == nil {
		l.first = o.next
	} else {
		o.prev.next = o.next
	}
	if o.next == nil {
		l.last = o.prev
	} else {
		o.next.prev = o.prev
	}
}

// age of the oldest.
func (l *operations) age(now time.Time) time.Duration {
	if l.first == nil {
		return 0
	}
	return now.Sub(l.first.started)
}

func (t *timing) list(counts bool) *operations {
	if counts {
		return &t.counted
	}
	return &t.others
}

// decay is what is left of the weight at a time.
func (t *timing) decay(now time.Time) float64 {
	return math.Exp(-max(0, now.Sub(t.at).Seconds()) / timingDecay.Seconds())
}

// begin notes that an operation starts; the function returned is called when it has ended.
func (t *timings) begin(k kind, counts bool) func() {
	o := &operation{started: t.now()}
	t.mu.Lock()
	t.kinds[k].list(counts).add(o)
	t.mu.Unlock()
	return func() {
		now := t.now()
		t.mu.Lock()
		defer t.mu.Unlock()
		of := &t.kinds[k]
		of.list(counts).remove(o)
		if counts {
			left := of.decay(now)
			of.sum, of.weight, of.at = of.sum*left+now.Sub(o.started).Seconds(), of.weight*left+1, now
		}
	}
}

// mean is how long such operations took lately, or how long one is stuck if that is longer; 0 if there were none.
func (t *timings) mean(k kind) time.Duration {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	of := &t.kinds[k]
	var mean time.Duration
	if of.weight*of.decay(now) >= timingLeast {
		mean = time.Duration(of.sum / of.weight * float64(time.Second))
	}
	mean = max(mean, of.counted.age(now))
	if age := of.others.age(now); age > stalled {
		mean = max(mean, age)
	}
	return mean
}

// oldest is how long the oldest operation under way has been.
func (t *timings) oldest() time.Duration {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	var age time.Duration
	for i := range t.kinds {
		age = max(age, t.kinds[i].counted.age(now), t.kinds[i].others.age(now))
	}
	return age
}

// timedFS is an FS whose operations are measured. counts says that those of its files go into the mean.
type timedFS struct {
	FS
	t      *timings
	counts bool
}

func (f timedFS) Create(path string) (File, error) {
	defer f.t.begin(writing, false)()
	return f.file(f.FS.Create(path))
}

func (f timedFS) Open(path string) (File, error) {
	defer f.t.begin(reading, false)()
	return f.file(f.FS.Open(path))
}

func (f timedFS) file(file File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return timedFile{file, f.t, f.counts}, nil
}

func (f timedFS) Remove(path string) error {
	defer f.t.begin(writing, false)()
	return f.FS.Remove(path)
}

func (f timedFS) Rename(from, to string) error {
	defer f.t.begin(writing, false)()
	return f.FS.Rename(from, to)
}

func (f timedFS) SyncDir(path string) error {
	defer f.t.begin(writing, false)()
	return f.FS.SyncDir(path)
}

func (f timedFS) Space(path string) (Space, error) {
	defer f.t.begin(reading, false)()
	return f.FS.Space(path)
}

type timedFile struct {
	File
	t      *timings
	counts bool
}

func (f timedFile) ReadAt(b []byte, off int64) (int, error) {
	defer f.t.begin(reading, f.counts)()
	return f.File.ReadAt(b, off)
}

func (f timedFile) WriteBuffers(bufs [][]byte, off int64) error {
	defer f.t.begin(writing, f.counts)()
	return f.File.WriteBuffers(bufs, off)
}

func (f timedFile) Sync() error {
	defer f.t.begin(writing, f.counts)()
	return f.File.Sync()
}

func (f timedFile) Truncate(size int64) error {
	defer f.t.begin(writing, false)()
	return f.File.Truncate(size)
}
