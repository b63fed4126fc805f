package workload

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
)

// names is the role of a client that changes names, one operation after another, and knows what each has to return.
func (p part) names(ctx context.Context) error {
	t := NewTree()
	for ctx.Err() == nil {
		e := p.choose(t)
		if t.Unsure(e.Path) || e.To != "" && t.Unsure(e.To) {
			continue
		}
		p.pace.spend(ctx, 1)
		want := t.Expect(&e)
		var found []string
		err := p.j.Do(e, func(e *Entry) (err error) {
			e.Want = want
			found, err = p.change(e)
			return err
		})
		e.Errno = errnoOf(err)
		switch {
		case e.Errno != want:
		case e.Op == opList && want == 0:
			if list := t.List(e.Path); !slices.Equal(list, found) {
				p.j.Found(path.Join(p.dir(), e.Path), "a directory holds %q, want %q", found, list)
			}
		case e.Op == opStat && want == 0:
			if kind := fmt.Sprint(t.dirs[e.Path]); found[0] != kind {
				p.j.Found(path.Join(p.dir(), e.Path), "it is a directory: %s, want %s", found[0], kind)
			}
		}
		t.Replay(&e)
	}
	return nil
}

// choose makes an operation up; most of them succeed. What it names is in a directory that is there: with several things wrong
// it would be open which of them an error tells.
func (p *part) choose(t *Tree) Entry {
	all := slices.Sorted(maps.Keys(t.dirs))
	dirs := slices.DeleteFunc(slices.Clone(all), func(d string) bool { return !t.dirs[d] })
	fresh := func() string {
		return path.Join(dirs[p.rng.IntN(len(dirs))], fmt.Sprintf("%c%d", 'a'+rune(p.rng.IntN(3)), p.rng.IntN(8)))
	}
	some := func() string {
		if len(all) == 1 || p.rng.IntN(8) == 0 {
			return fresh()
		}
		return all[1+p.rng.IntN(len(all)-1)] // "." is the first
	}
	few := len(all) < 100
	switch n := p.rng.IntN(20); {
	case n < 3 && few:
		return Entry{Op: opMkdir, Path: fresh()}
	case n < 8 && few:
		return Entry{Op: opMake, Path: fresh()}
	case n < 12:
		return Entry{Op: opRename, Path: some(), To: fresh()}
	case n < 15:
		return Entry{Op: opRemove, Path: some()}
	case n < 18:
		return Entry{Op: opStat, Path: some()}
	}
	return Entry{Op: opList, Path: dirs[p.rng.IntN(len(dirs))]}
}

// change does an operation, and returns what it found.
func (p *part) change(e *Entry) (found []string, err error) {
	name := path.Join(p.dir(), e.Path)
	switch e.Op {
	case opMkdir:
		return nil, p.fs.Mkdir(name)
	case opMake:
		f, err := p.fs.Open(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
		if err != nil {
			return nil, err
		}
		return nil, f.Close()
	case opRename:
		return nil, p.fs.Rename(name, path.Join(p.dir(), e.To))
	case opRemove:
		return nil, p.fs.Remove(name)
	case opStat:
		info, err := p.fs.Stat(name)
		if err != nil {
			return nil, err
		}
		return []string{fmt.Sprint(info.IsDir())}, nil
	case opList:
		found, err = p.fs.ReadDir(name)
		slices.Sort(found)
		return found, err
	}
	panic("no operation " + e.Op)
}
