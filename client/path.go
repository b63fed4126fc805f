package client

import (
	"context"
	"strings"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
)

const (
	maxPath  = 4096 // bytes
	maxLinks = 40   // symlinks followed on the way
)

// place is where a path leads.
type place struct {
	parent Attr   // the directory that has, or would have, the name
	name   string // empty: the path is a directory without a name of its own, as "/" and "a/.." are
	attr   Attr   // what has the name
	exists bool
	dir    bool // the path ends with a slash: only a directory will do
}

// walker follows a path. It knows ".." from the directories that it came through, not from the text.
type walker struct {
	low   *Low
	cred  Cred
	dirs  []Attr // from the root to where it stands
	rest  []string
	links int
	slash bool // the last component must be a directory
}

// walk resolves a path; relative ones start at the root. follow says whether a symlink at its end is followed. It is no
// error if only the last name does not exist.
func (l *Low) walk(ctx context.Context, cred Cred, path string, follow bool) (place, error) {
	root, err := l.GetAttr(ctx, Root)
	if err != nil {
		return place{}, err
	}
	if path == "" {
		return place{}, syscall.ENOENT
	}
	w := &walker{low: l, cred: cred, dirs: []Attr{root}}
	if err := w.push(path); err != nil {
		return place{}, err
	}
	for len(w.rest) > 0 {
		name := w.rest[0]
		w.rest = w.rest[1:]
		p, done, err := w.step(ctx, name, follow)
		if err != nil || done {
			return p, err
		}
	}
	here := w.dirs[len(w.dirs)-1]
	return place{parent: here, attr: here, exists: true, dir: true}, nil
}

// push puts the components of a path, or of a symlink's target, before what is left.
func (w *walker) push(path string) error {
	if len(path) > maxPath {
		return fserr.New(syscall.ENAMETOOLONG, "a path of %d bytes, at most %d", len(path), maxPath)
	}
	if strings.IndexByte(path, 0) >= 0 {
		return fserr.New(syscall.EINVAL, "a NUL in the path")
	}
	if len(w.rest) == 0 && strings.HasSuffix(path, "/") {
		w.slash = true
	}
	if strings.HasPrefix(path, "/") {
		w.dirs = w.dirs[:1]
	}
	var names []string
	for n := range strings.SplitSeq(path, "/") {
		if n != "" {
			names = append(names, n)
		}
	}
	w.rest = append(names, w.rest...)
	return nil
}

// step goes one component further. done says that the path ends here.
func (w *walker) step(ctx context.Context, name string, follow bool) (p place, done bool, err error) {
	here := w.dirs[len(w.dirs)-1]
	if name == "." || name == ".." {
		if err := posix.Access(w.cred, here.UID, here.GID, here.Mode, posix.Execute); err != nil {
			return place{}, false, err
		}
		if name == ".." && len(w.dirs) > 1 {
			w.dirs = w.dirs[:len(w.dirs)-1]
		}
		return place{}, false, nil
	}
	last := len(w.rest) == 0
	a, err := w.low.Lookup(ctx, w.cred, here.Ino, name)
	switch {
	case err == syscall.ENOENT && last:
		return place{parent: here, name: name, dir: w.slash}, true, nil
	case err != nil:
		return place{}, false, err
	case a.IsSymlink() && (!last || follow || w.slash):
		if w.links++; w.links > maxLinks {
			return place{}, false, fserr.New(syscall.ELOOP, "more than %d symlinks", maxLinks)
		}
		return place{}, false, w.push(a.Symlink)
	case last && a.IsDir() || last && !w.slash:
		return place{parent: here, name: name, attr: a, exists: true, dir: w.slash}, true, nil
	case !a.IsDir():
		return place{}, false, syscall.ENOTDIR
	}
	w.dirs = append(w.dirs, a)
	return place{}, false, nil
}

// find resolves a path that must exist.
func (f *FS) find(ctx context.Context, path string, follow bool) (place, error) {
	p, err := f.low.walk(ctx, f.cred, path, follow)
	if err == nil && !p.exists {
		err = syscall.ENOENT
	}
	return p, err
}

// spot resolves a path for a name to be made or removed; a symlink at its end is not followed. isDir says that what is
// to be there is a directory.
func (f *FS) spot(ctx context.Context, path string, isDir bool) (place, error) {
	p, err := f.low.walk(ctx, f.cred, strings.TrimRight(path, "/")+trailing(path), false)
	switch {
	case err != nil:
		return p, err
	case !isDir && !p.exists && strings.HasSuffix(path, "/"):
		return p, syscall.ENOENT
	}
	return p, nil
}

// trailing keeps the one slash of the root's path.
func trailing(path string) string {
	if path != "" && strings.Trim(path, "/") == "" {
		return "/"
	}
	return ""
}
