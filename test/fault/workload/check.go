package workload

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
)

// Report is what a checker found.
type Report struct {
	Files    int
	Names    int // files and directories of the clients that change names
	Bytes    int64
	Problems []Problem
}

// Problem is something that is not as the journals say.
type Problem struct {
	Path string
	What string
}

func (p Problem) String() string { return p.Path + ": " + p.What }

// ReadReport reads what a checker wrote.
func ReadReport(path string) (*Report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(Report)
	return r, json.Unmarshal(b, r)
}

// check is the role of a checker. What is wrong is in the report; an error says that it could not be found out.
func (c Config) check(fsys FS) error {
	r := new(Report)
	for _, journal := range c.Writers {
		h, err := OpenHistory(journal)
		if err != nil {
			return err
		}
		r.files(fsys, h)
	}
	for _, journal := range c.Trees {
		h, err := OpenHistory(journal)
		if err != nil {
			return err
		}
		if h.begun != nil {
			h.tree.Doubt(h.begun) // the client was killed in it
		}
		r.tree(fsys, h.tree, path.Join(c.Root, nameOf(journal)), ".")
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(c.Journal, b, 0o644)
}

// nameOf is the name of the client that a journal is of.
func nameOf(journal string) string {
	name := path.Base(journal)
	return name[:len(name)-len(path.Ext(name))]
}

func (r *Report) add(path, format string, args ...any) {
	r.Problems = append(r.Problems, Problem{path, fmt.Sprintf(format, args...)})
}

// files compares all files of a writer.
func (r *Report) files(fsys FS, h *History) {
	there := map[string]bool{}
	dirs := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(h.paths)) {
		dirs[path.Dir(name)] = true
		seen := &observation{}
		f, err := fsys.Open(name, os.O_RDONLY)
		if err != nil {
			seen.opened = err
		} else {
			seen.read(f, 0, -1)
			if err := f.Close(); err != nil {
				r.add(name, "close after reading: %v", err)
			}
		}
		if err == nil {
			r.Files++
		}
		there[name] = !errors.Is(err, fs.ErrNotExist)
		r.Bytes += seen.bytes
		for _, problem := range judge(h.allowed(h.before(name)), seen, true) {
			r.add(name, "%s", problem)
		}
	}
	for dir := range dirs {
		r.list(fsys, dir, there)
	}
}

// list compares a directory with what names opening found.
func (r *Report) list(fsys FS, dir string, there map[string]bool) {
	list, err := fsys.ReadDir(dir)
	if err != nil {
		r.add(dir, "%v", err)
		return
	}
	for _, name := range list {
		p := path.Join(dir, name)
		if !there[p] {
			r.add(p, "is listed, but nothing that was made or can be opened")
		}
		delete(there, p)
	}
	for p, is := range there {
		if is && path.Dir(p) == dir {
			r.add(p, "can be opened, but is not listed")
		}
	}
}

// tree compares the directory at a path of the tree, and all below.
func (r *Report) tree(fsys FS, t *Tree, root, dir string) {
	at := path.Join(root, dir)
	list, err := fsys.ReadDir(at)
	if err != nil {
		r.add(at, "%v", err)
		return
	}
	want := t.List(dir)
	for _, name := range list {
		p := path.Join(dir, name)
		if i := slices.Index(want, name); i >= 0 {
			want = slices.Delete(want, i, i+1)
		} else if !t.unsure[p] {
			r.add(path.Join(root, p), "is there, but was removed or never made")
			continue
		}
		if t.unsure[p] {
			continue
		}
		r.Names++
		info, err := fsys.Stat(path.Join(root, p))
		switch {
		case err != nil:
			r.add(path.Join(root, p), "%v", err)
		case info.IsDir() != t.dirs[p]:
			r.add(path.Join(root, p), "it is a directory: %v, want %v", info.IsDir(), t.dirs[p])
		case t.dirs[p]:
			r.tree(fsys, t, root, p)
		}
	}
	for _, name := range want {
		r.add(path.Join(at, name), "is missing")
	}
}
