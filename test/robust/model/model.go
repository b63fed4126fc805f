// Package model says what clients of a file system may see, and checks histories against it with porcupine: that all answers
// can be explained by operations that happened one after another, each at some moment between its call and its return. One
// whose outcome is not known may have happened at any time after its call, or never.
//
// Histories are checked object by object. The kind of an object is the beginning of its name:
//
//	names/…     a directory with few names: create, mkdir, unlink, rmdir, rename, link, lookup, number of links, listing
//	attrs/…     a file's mode and size
//	register/…  a file that is written over as a whole; one operation is open, write, fsync and close, or open, read and close
//	log/…       a file that is appended to, likewise
//
// The last operations of an object are to be reads that follow everything else: an acknowledged change that was lost then has no
// explanation.
package model

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/shoalfs/shoalfs/test/robust/history"
)

// Kind is a kind of object.
type Kind string

// The kinds.
const (
	Directory Kind = "names"
	Attrs     Kind = "attrs"
	Register  Kind = "register"
	Log       Kind = "log"
)

// KindOf tells of what kind an object is.
func KindOf(object string) Kind {
	kind, _, _ := strings.Cut(object, "/")
	return Kind(kind)
}

// state is what a model's steps are taken in.
type state interface {
	comparable
	fmt.Stringer
}

// of makes a porcupine model of the beginning and the steps of a kind of object.
func of[S state](initial S, step func(S, *history.Input, *history.Output) (bool, S)) *porcupine.Model {
	return &porcupine.Model{
		Init: func() any { return initial },
		Step: func(s, in, out any) (bool, any) {
			ok, next := step(s.(S), in.(*history.Input), out.(*history.Output))
			return ok, next
		},
		DescribeOperation: func(in, out any) string { return fmt.Sprintf("%v -> %v", in.(*history.Input), out.(*history.Output)) },
		DescribeState:     func(s any) string { return s.(S).String() },
	}
}

func (n log) String() string { return fmt.Sprintf("%d records", int(n)) }

// modelOf makes the model of an object that has this history.
func modelOf(object string, ops []history.Operation) (*porcupine.Model, error) {
	switch KindOf(object) {
	case Directory:
		return of(directory{}, directory.step), nil
	case Attrs:
		return of(attributes{mode: NewMode}, attributes.step), nil
	case Register:
		return of(register(0), register.step), nil
	case Log:
		return of(log(0), newLogs(ops).step), nil
	}
	return nil, fmt.Errorf("there is no model of %q", object)
}

// Problem is an object whose history has no explanation, or none that was found in time.
type Problem struct {
	Object string
	What   string
	Ops    []history.Operation
	info   porcupine.LinearizationInfo
	model  *porcupine.Model
}

func (p *Problem) String() string { return fmt.Sprintf("%s: %s", p.Object, p.What) }

// Visualize writes a page that shows the history, and how far it can be explained.
func (p *Problem) Visualize(dir string) (path string, err error) {
	path = filepath.Join(dir, strings.ReplaceAll(p.Object, "/", "-")+".html")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	if err := porcupine.Visualize(*p.model, p.info, f); err != nil {
		_ = f.Close() // the page is none
		return "", fmt.Errorf("visualize %s: %w", p.Object, err)
	}
	return path, f.Close()
}

// Check returns the objects whose histories have no explanation. One for which none is found within the limit counts.
func Check(ops []history.Operation, limit time.Duration) ([]*Problem, error) {
	objects := map[string][]history.Operation{}
	for _, o := range ops {
		objects[o.Object] = append(objects[o.Object], o)
	}
	var problems []*Problem
	for _, object := range slices.Sorted(maps.Keys(objects)) {
		p, err := check(object, objects[object], limit)
		if err != nil {
			return nil, err
		}
		if p != nil {
			problems = append(problems, p)
		}
	}
	return problems, nil
}

func check(object string, ops []history.Operation, limit time.Duration) (*Problem, error) {
	m, err := modelOf(object, ops)
	if err != nil {
		return nil, err
	}
	all := convert(ops)
	result := porcupine.CheckOperationsTimeout(*m, all, limit)
	if result == porcupine.Ok {
		return nil, nil
	}
	p := &Problem{Object: object, Ops: ops, model: m, What: "its history is not linearizable"}
	if result == porcupine.Unknown {
		p.What = fmt.Sprintf("no explanation of its history was found in %v", limit)
	}
	_, p.info = porcupine.CheckOperationsVerbose(*m, all, limit) // slower, which is why only failures get it
	return p, nil
}

// convert makes porcupine's operations. A read whose outcome is not known says nothing.
func convert(ops []history.Operation) []porcupine.Operation {
	var all []porcupine.Operation
	workers := map[string]int{}
	for i := range ops {
		o := &ops[i]
		if o.Output == nil && o.Input.Op.Reads() {
			continue
		}
		worker := fmt.Sprintf("%s/%d", o.Client, o.Worker)
		if _, known := workers[worker]; !known {
			workers[worker] = len(workers)
		}
		all = append(all, porcupine.Operation{
			ClientId: workers[worker], Input: &o.Input, Output: o.Output, Call: int64(o.Call), Return: int64(o.Return), Metadata: worker,
		})
	}
	return all
}

// Reused lists the inode numbers that were given to more than one file or directory.
func Reused(ops []history.Operation) (problems []string) {
	made := map[uint64]*history.Operation{}
	for i := range ops {
		o := &ops[i]
		if o.Output == nil || o.Output.Inode == 0 || o.Input.Op != history.Create && o.Input.Op != history.Mkdir {
			continue
		}
		if before := made[o.Output.Inode]; before != nil {
			problems = append(problems, fmt.Sprintf("inode %d was made twice: %v, %v", o.Output.Inode, before, o))
		}
		made[o.Output.Inode] = o
	}
	return problems
}
