package traffic

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalfs/shoalfs/test/fault/workload"
	"github.com/shoalfs/shoalfs/test/robust/history"
	"github.com/shoalfs/shoalfs/test/robust/model"
)

// root is the directory that all objects are in.
const root = "/robust"

// share is how the objects of a kind are used.
type share struct {
	kind   model.Kind
	number int // of objects in a generation
	weight int // of operations
}

// plan is what load does. Those of which it is the content that counts are the second half.
var plan = []share{
	{model.Directory, 2, 9},
	{model.Attrs, 1, 3},
	{model.Register, 2, 4},
	{model.Log, 2, 4},
}

// object is what operations are done to.
type object struct {
	kind       model.Kind
	generation int64
	number     int
}

// name is the object's in histories.
func (o object) name() string { return fmt.Sprintf("%s/%d-%d", o.kind, o.generation, o.number) }

func (o object) path() string {
	return path.Join(root, fmt.Sprintf("%s-%d-%d", o.kind, o.generation, o.number))
}

// record is the size of the records of a register or log: small files are kept in metadata, others in chunks.
func (o object) record() int {
	switch {
	case o.number == 0:
		return 64
	case o.kind == model.Register:
		return 16 << 10
	}
	return 512
}

// target is an object that is there.
type target struct {
	object
	made sync.Once
	err  error     // of that
	dir  directory // of a Directory
	// content is held while one of this client's operations is at the content: what was written and not yet synced is seen by the
	// same client at once, and by others later.
	content sync.Mutex
}

// load is a client at work.
type load struct {
	Config
	sys     system
	journal *history.Recorder

	last atomic.Uint64 // value

	mu      sync.Mutex
	targets map[string]*target
}

// target makes an object unless it is there.
func (l *load) target(o object) (*target, error) {
	l.mu.Lock()
	t := l.targets[o.name()]
	if t == nil {
		t = &target{object: o}
		l.targets[o.name()] = t
	}
	l.mu.Unlock()
	t.made.Do(func() { t.err = l.prepare(t) })
	return t, t.err
}

func (l *load) prepare(t *target) (err error) {
	if t.kind == model.Directory {
		t.dir, err = l.sys.Directory(t.path())
		return err
	}
	if _, err := l.sys.Directory(root); err != nil {
		return err
	}
	f, err := l.sys.Open(t.path(), os.O_CREATE|os.O_WRONLY)
	if err != nil {
		return err
	}
	return f.Close()
}

// next is a value that nobody has used.
func (l *load) next() uint64 { return l.Number<<32 | l.last.Add(1) }

// generation is the one at a time.
func (c *Config) generation(at time.Duration) int64 { return int64((at - c.Start) / c.Generation) }

// work runs the workers until ctx ends.
func (l *load) work(ctx context.Context) error {
	errs := make([]error, l.Workers)
	var wg sync.WaitGroup
	for i := range l.Workers {
		w := &worker{load: l, number: i, rng: rand.New(rand.NewPCG(l.Seed, l.Number<<8|uint64(i)))}
		wg.Go(func() { errs[i] = w.work(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// audit reads every object of every generation.
func (l *load) audit() error {
	w := &worker{load: l}
	for g := range l.generation(l.Audit) + 1 {
		for _, p := range plan {
			for n := range p.number {
				t, err := l.target(object{p.kind, g, n})
				if err != nil {
					return err
				}
				w.audit(t)
			}
		}
	}
	return nil
}

// worker does one operation after another.
type worker struct {
	*load
	number int
	rng    *rand.Rand
}

func (w *worker) work(ctx context.Context) error {
	for ctx.Err() == nil {
		t, err := w.target(w.choose())
		if err != nil {
			return err // it is not one of the operations, which go on whatever happens
		}
		w.operate(t)
		w.pause(ctx)
	}
	return nil
}

// choose chooses an object of this generation.
func (w *worker) choose() object {
	plan := plan
	if w.reads() {
		plan = plan[:2]
	}
	sum := 0
	for _, p := range plan {
		sum += p.weight
	}
	n := w.rng.IntN(sum)
	for _, p := range plan {
		if n -= p.weight; n < 0 {
			return object{p.kind, w.generation(workload.Now()), w.rng.IntN(p.number)}
		}
	}
	panic("the weights of the plan have another sum")
}

// pause bounds the load: servers, clients and the test share few processors.
func (w *worker) pause(ctx context.Context) {
	timer := time.NewTimer(time.Duration(min(w.rng.ExpFloat64(), 5) * float64(w.Pause)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
