package kv

import (
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// txn is a command's view: its own writes above everything else. It is used again for the next command.
type txn struct {
	*view
	staged  []*tree // by Bucket; nil until first used
	touched []Bucket
	arena   arena
	err     error // the first write that the file could not take
}

func (t *txn) begin(v *view) {
	t.view, t.err = v, nil
	if t.staged == nil {
		t.staged = make([]*tree, len(v.buckets))
	}
}

func (t *txn) Get(b Bucket, key []byte) []byte {
	if s := t.staged[b]; s != nil {
		if e, ok := s.Get(entry{key: key}); ok {
			return e.value
		}
	}
	return t.view.Get(b, key)
}

// Scan shows the state as it is now: fn may write, and does not see what it wrote.
func (t *txn) Scan(b Bucket, from []byte, fn func(key, value []byte) bool) {
	var staged *tree
	if s := t.staged[b]; s != nil && s.Len() > 0 {
		staged = s.Copy() // shares everything until one of the two is written
	}
	t.scan(b, from, staged, fn)
}

func (t *txn) Put(b Bucket, key, value []byte) {
	if len(key) == 0 || len(key) > bolt.MaxKeySize || len(value) > bolt.MaxValueSize {
		t.refuse(b, key, value)
		return
	}
	t.stage(b, entry{t.arena.clone(key), t.arena.clone(value)})
}

func (t *txn) Delete(b Bucket, key []byte) {
	if len(key) == 0 {
		t.refuse(b, key, nil)
		return
	}
	t.stage(b, entry{key: t.arena.clone(key)})
}

func (t *txn) Reset() {
	for _, b := range t.touched {
		t.staged[b].Clear()
	}
	t.touched = t.touched[:0]
	t.err = nil
}

func (t *txn) stage(b Bucket, e entry) {
	s := t.staged[b]
	if s == nil {
		s = newTree()
		t.staged[b] = s
	}
	if s.Len() == 0 {
		t.touched = append(t.touched, b)
	}
	s.Set(e)
}

func (t *txn) refuse(b Bucket, key, value []byte) {
	if t.err == nil {
		t.err = fmt.Errorf("kv: bucket %d: a key of %d bytes with a value of %d is not possible", b, len(key), len(value))
	}
}

// mergeInto moves the writes to g.
func (t *txn) mergeInto(g *generation) {
	for _, b := range t.touched {
		t.staged[b].Scan(func(e entry) bool {
			g.set(b, e)
			return true
		})
	}
	t.Reset()
}
