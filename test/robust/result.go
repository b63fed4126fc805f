package robust

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shoalfs/shoalfs/test/fault"
	"github.com/shoalfs/shoalfs/test/robust/history"
	"github.com/shoalfs/shoalfs/test/robust/model"
)

// result is what a run came to.
type result struct {
	operations   int
	acknowledged int      // changes that a client was told were done
	unknown      int      // changes of which nobody was told what became of them
	errors       []string // that clients saw and had no reason to see
	objects      map[string]bool
	done         map[history.Op]int
	worst        history.Operation // that took longest
	problems     []*model.Problem
	reused       []string
}

// checkLimit bounds the search for an explanation of one object's history.
const checkLimit = time.Minute

// judge checks what clients noted.
func judge(ops []history.Operation) (*result, error) {
	r := &result{operations: len(ops), objects: map[string]bool{}, done: map[history.Op]int{}}
	for i := range ops {
		o := &ops[i]
		r.objects[o.Object] = true
		switch {
		case o.Err != "":
			r.errors = append(r.errors, fmt.Sprintf("%v: %s", o, o.Err))
		case o.Output == nil:
			if !o.Input.Op.Reads() {
				r.unknown++
			}
			continue
		case o.Output.Errno == 0:
			r.done[o.Input.Op]++
			if !o.Input.Op.Reads() {
				r.acknowledged++
			}
		}
		if o.Return != history.Never && o.Return-o.Call > r.worst.Return-r.worst.Call {
			r.worst = *o
		}
	}
	r.reused = model.Reused(ops)
	var err error
	r.problems, err = model.Check(ops, checkLimit)
	return r, err
}

// wrong lists everything that must not be.
func (r *result) wrong() (list []string) {
	if len(r.errors) > 0 {
		list = append(list, fmt.Sprintf("%d errors that clients had no reason to see:\n%s", len(r.errors), strings.Join(r.errors[:min(len(r.errors), 20)], "\n")))
	}
	list = append(list, r.reused...)
	for _, p := range r.problems {
		list = append(list, p.String())
	}
	return list
}

func (r *result) String() string {
	var done []string
	for _, op := range sortedKeys(r.done) {
		done = append(done, fmt.Sprintf("%s %d", op, r.done[op]))
	}
	return fmt.Sprintf("%d operations on %d objects, %d changes acknowledged, %d of unknown outcome; the longest took %v (%s/%d %s %v)\nsucceeded: %s",
		r.operations, len(r.objects), r.acknowledged, r.unknown, (r.worst.Return - r.worst.Call).Round(time.Millisecond), r.worst.Client, r.worst.Worker, r.worst.Object, r.worst.Input, strings.Join(done, ", "))
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// leaderships counts how often metaservers took the lead, as their logs say.
func leaderships(c *fault.Cluster) (n int, err error) {
	for _, m := range c.Metas {
		b, err := os.ReadFile(filepath.Join(c.Dir, m.Name+".log"))
		if err != nil {
			return 0, err
		}
		n += strings.Count(string(b), `msg="this metaserver leads"`)
	}
	return n, nil
}

// keep leaves what is needed to understand a failure in a directory, and returns its name.
func (r *result) keep(c *fault.Cluster) (dir string, err error) {
	if dir, err = os.MkdirTemp(os.Getenv("SHOAL_KEEP"), "shoal-robustness-"); err != nil {
		return "", err
	}
	var errs []error
	for _, p := range r.problems {
		_, err := p.Visualize(dir)
		errs = append(errs, err, os.WriteFile(filepath.Join(dir, strings.ReplaceAll(p.Object, "/", "-")+".txt"), []byte(text(p.Ops)), 0o644))
	}
	for _, pattern := range []string{"*.log", "*.journal"} {
		files, err := filepath.Glob(filepath.Join(c.Dir, pattern))
		errs = append(errs, err)
		for _, f := range files {
			b, err := os.ReadFile(f)
			errs = append(errs, err, os.WriteFile(filepath.Join(dir, filepath.Base(f)), b, 0o644))
		}
	}
	return dir, errors.Join(errs...)
}

// text is a history for people to read, in the order in which operations were called.
func text(ops []history.Operation) string {
	var b strings.Builder
	byCall := slices.SortedFunc(slices.Values(ops), func(x, y history.Operation) int { return cmp.Compare(x.Call, y.Call) })
	for i := range byCall {
		o := &byCall[i]
		end := "never"
		if o.Return != history.Never {
			end = o.Return.String()
		}
		fmt.Fprintf(&b, "%-16v %-16s %v\n", o.Call, end, o)
	}
	return b.String()
}
