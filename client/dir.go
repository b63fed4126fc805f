package client

import (
	"context"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/shoalfs/shoalfs/client/internal/meta"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
)

// Dir is an open directory. Entries come in the order of their names, "." and ".." not among them. Its offsets stay valid
// while it is open: a listing that goes on at an offset shows no name twice and leaves none out that was there all the
// time. Offset 0 reads the directory anew. It is safe for concurrent use.
type Dir struct {
	low  *Low
	cred Cred
	ino  Ino

	mu    sync.Mutex
	pages []string // the name after which each page begins
	list  *meta.Listing
	next  int // the page that list gives next
	kept  map[int][]meta.Entry
}

const (
	dirPage = 1024 // entries asked for at once
	dirStep = 128  // entries that ReadAt returns at most
	dirKept = 16   // pages kept to go back in
	// An offset is the number of a page and of an entry in it. A listing answered from the cache is one page, whatever
	// its size.
	dirShift = 32
)

// OpenDir opens a directory for listing.
func (l *Low) OpenDir(ctx context.Context, cred Cred, ino Ino) (*Dir, error) {
	a, _, err := l.fs.meta.GetAttr(ctx, uint64(ino))
	if err != nil {
		return nil, err
	}
	if a.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return nil, syscall.ENOTDIR
	}
	if err := posix.Access(cred, a.Uid, a.Gid, a.Mode, posix.Read); err != nil {
		return nil, err
	}
	d := &Dir{low: l, cred: cred, ino: ino}
	d.rewind()
	return d, nil
}

// Ino returns the directory's inode.
func (d *Dir) Ino() Ino { return d.ino }

func (d *Dir) rewind() {
	d.pages, d.next = []string{""}, 0
	d.list = d.low.fs.meta.List(uint64(d.ino), "")
	d.kept = map[int][]meta.Entry{}
}

// ReadAt returns some of the entries that follow an offset: 0 is the start, others come from DirEntry.Next. None are
// returned at the end.
func (d *Dir) ReadAt(ctx context.Context, offset uint64) ([]DirEntry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if offset == 0 {
		d.rewind()
	}
	page, i := int(offset>>dirShift), int(offset&(1<<dirShift-1))
	for {
		if page >= len(d.pages) {
			return nil, fserr.New(syscall.EINVAL, "the directory offset %d", offset)
		}
		entries, err := d.page(ctx, page)
		if err != nil {
			return nil, err
		}
		if i < len(entries) {
			return d.entries(entries, page, i), nil
		}
		if page+1 == len(d.pages) {
			if len(entries) == 0 {
				return nil, nil
			}
			d.pages = append(d.pages, entries[len(entries)-1].Name)
		}
		page, i = page+1, 0
	}
}

// page returns the entries of a page, from what is kept or by asking.
func (d *Dir) page(ctx context.Context, n int) ([]meta.Entry, error) {
	if e, ok := d.kept[n]; ok {
		return e, nil
	}
	list := d.list
	if n != d.next {
		list = d.low.fs.meta.List(uint64(d.ino), d.pages[n])
	}
	entries, err := d.low.fs.meta.Next(ctx, d.cred, list, dirPage)
	if err != nil {
		return nil, err
	}
	if n == d.next {
		d.next++
	}
	if n+1 < len(d.pages) { // read again: what was added at its end is in the next page
		end, _ := slices.BinarySearchFunc(entries, d.pages[n+1]+"\x00", func(e meta.Entry, after string) int { return strings.Compare(e.Name, after) })
		entries = entries[:end]
	}
	for have := range d.kept {
		if len(d.kept) < dirKept {
			break
		}
		if have != n-1 {
			delete(d.kept, have)
		}
	}
	d.kept[n] = entries
	return entries, nil
}

func (d *Dir) entries(page []meta.Entry, n, i int) []DirEntry {
	some := page[i:min(i+dirStep, len(page))]
	d.low.fs.meta.Refresh(uint64(d.ino), some)
	out := make([]DirEntry, len(some))
	for k, e := range some {
		out[k] = DirEntry{Name: e.Name, Attr: d.low.fs.merged(e.Attr, e.Until), Next: uint64(n)<<dirShift | uint64(i+k+1)}
		out[k].Attr.ParentLeaseUntil = e.NameUntil
	}
	return out
}

// readAll lists a directory, at most n entries if n > 0, from an offset.
func (d *Dir) readAll(ctx context.Context, offset uint64, n int) (entries []DirEntry, next uint64, err error) {
	next = offset
	for n <= 0 || len(entries) < n {
		some, err := d.ReadAt(ctx, next)
		if err != nil || len(some) == 0 {
			return entries, next, err
		}
		if n > 0 && len(some) > n-len(entries) {
			some = some[:n-len(entries)]
		}
		entries = append(entries, some...)
		next = some[len(some)-1].Next
	}
	return entries, next, nil
}
