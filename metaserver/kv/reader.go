package kv

import (
	"bytes"
	"fmt"

	"github.com/tidwall/btree"
	bolt "go.etcd.io/bbolt"
)

// view is one state of the database between two changes of its parts. Everything in it is safe for concurrent reading: a
// *bolt.Bucket of a read transaction only follows the mapped pages.
type view struct {
	active   *generation
	flushing *generation // nil when no flush is under way
	file     *bolt.DB
	tx       *bolt.Tx // reads the file as the last flush left it
	buckets  []*bolt.Bucket
}

// newView opens a read transaction on the file.
func newView(file *bolt.DB, names []string, active *generation) (*view, error) {
	tx, err := file.Begin(false)
	if err != nil {
		return nil, err
	}
	v := &view{active: active, file: file, tx: tx, buckets: make([]*bolt.Bucket, len(names))}
	for i, name := range names {
		if v.buckets[i] = tx.Bucket([]byte(name)); v.buckets[i] == nil {
			_ = tx.Rollback() // only fails when it is closed already
			return nil, fmt.Errorf("bucket %q is missing", name)
		}
	}
	return v, nil
}

func (v *view) Get(b Bucket, key []byte) []byte {
	if e, ok := v.active.trees[b].Get(entry{key: key}); ok {
		return e.value
	}
	if v.flushing != nil {
		if e, ok := v.flushing.trees[b].Get(entry{key: key}); ok {
			return e.value
		}
	}
	return v.stored(b, key)
}

func (v *view) Scan(b Bucket, from []byte, fn func(key, value []byte) bool) { v.scan(b, from, nil, fn) }

// stored reads the file.
func (v *view) stored(b Bucket, key []byte) []byte {
	defer damaged(v.file)
	return v.buckets[b].Get(key)
}

// scan merges the layers, with staged, if there is one, above all others.
func (v *view) scan(b Bucket, from []byte, staged *tree, fn func(key, value []byte) bool) {
	var m merge
	m.add(staged, from)
	m.add(v.active.trees[b], from)
	if v.flushing != nil {
		m.add(v.flushing.trees[b], from)
	}
	c := storedCursor{file: v.file, cursor: v.buckets[b].Cursor()}
	c.seek(from)
	for {
		e, ok := m.least()
		switch {
		case !ok && c.key == nil:
			return
		case !ok || c.key != nil && bytes.Compare(c.key, e.key) < 0:
			e = entry{c.key, c.value}
			c.next()
		default:
			m.skip(e.key)
			if c.key != nil && bytes.Equal(c.key, e.key) {
				c.next()
			}
		}
		if e.value != nil && !fn(e.key, e.value) {
			return
		}
	}
}

// merge walks several trees in the order of their keys. Of equal keys the one in the tree added first counts.
type merge struct {
	layers [3]layer
	n      int
}

type layer struct {
	iter btree.IterG[entry]
	at   entry
	ok   bool
}

func (m *merge) add(t *tree, from []byte) {
	if t == nil || t.Len() == 0 {
		return
	}
	l := &m.layers[m.n]
	m.n++
	l.iter.Init(t, false)
	if l.ok = l.iter.Seek(entry{key: from}); l.ok {
		l.at = l.iter.Item()
	}
}

func (m *merge) least() (least entry, ok bool) {
	for i := range m.layers[:m.n] {
		if l := &m.layers[i]; l.ok && (!ok || bytes.Compare(l.at.key, least.key) < 0) {
			least, ok = l.at, true
		}
	}
	return least, ok
}

// skip moves every layer that is at key past it.
func (m *merge) skip(key []byte) {
	for i := range m.layers[:m.n] {
		l := &m.layers[i]
		if !l.ok || !bytes.Equal(l.at.key, key) {
			continue
		}
		if l.ok = l.iter.Next(); l.ok {
			l.at = l.iter.Item()
		}
	}
}

// storedCursor walks a bucket of the file; key is nil at its end.
type storedCursor struct {
	file       *bolt.DB
	cursor     *bolt.Cursor
	key, value []byte
}

func (c *storedCursor) seek(from []byte) {
	defer damaged(c.file)
	c.key, c.value = c.cursor.Seek(from)
}

func (c *storedCursor) next() {
	defer damaged(c.file)
	c.key, c.value = c.cursor.Next()
}

// damage is what a read panics with when the file's pages make no sense. It is caught by the View or Update around it.
type damage struct{ err error }

// damaged turns a panic of bbolt, which trusts its pages, into one that says what happened. It is deferred around each read
// of the file.
func damaged(file *bolt.DB) {
	if r := recover(); r != nil {
		panic(damage{fmt.Errorf("%w: %v", errDamaged(file.Path()), r)})
	}
}
