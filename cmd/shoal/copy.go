package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	defaultParallel = 8
	maxParallel     = 256
	maxListed       = 10_000 // failures kept to be listed; more are counted
	cleanupTimeout  = 5 * time.Second
)

// pathError is an error with the path, as written on the command line, that it is about.
type pathError struct {
	path string
	err  error
}

func (e *pathError) Error() string { return quoted(e.path) + ": " + reason(e.err) }
func (e *pathError) Unwrap() error { return e.err }

// failures gathers what went wrong without stopping the rest.
type failures struct {
	mu    sync.Mutex
	list  []error
	count int
}

func (f *failures) add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count++
	if len(f.list) < maxListed {
		f.list = append(f.list, err)
	}
}

// copier copies files and trees from one tree to another, several files at a time. It keeps modes and modification and
// access times; symlinks are copied as symlinks, hard links as files of their own, FIFOs and device nodes made anew. Each
// file, symlink and node is made under a temporary name in its directory and renamed, so that one that has its name is
// whole.
type copier struct {
	src, dst  tree
	parallel  int
	recursive bool
	meter     *meter // may be nil
	failed    failures

	group errgroup.Group
	roots map[fileID]string // directories at the target that a copy began with; only where src and dst are one tree
	dirs  []dirDone
}

// dirDone is a directory whose mode and times are set when everything in it is there.
type dirDone struct {
	path string
	of   *entry
}

// pair is one thing to copy.
type pair struct {
	from, to string
	merge    bool // the contents of from go into to, whose own mode and times stay
	dirOnly  bool // to is not there and was written with a slash at the end: only a directory may get that name
}

// place says what is known about where a copy goes.
type place int

const (
	named  place = iota // the user named it: a symlink there is followed
	inTree              // below a directory that was there
	vacant              // in a directory that this copy has made: there is nothing
)

// plan decides where each source goes, by the rules of cp(1): into target if that is a directory, else under its name.
func plan(ctx context.Context, dst tree, sources []location, target location) ([]pair, error) {
	at, err := dst.Stat(ctx, target.path)
	if err != nil && !errors.Is(err, syscall.ENOENT) {
		return nil, &pathError{target.String(), err}
	}
	isDir := at != nil && at.isDir()
	if at != nil && !isDir && target.slash {
		return nil, &pathError{target.String(), syscall.ENOTDIR}
	}
	if len(sources) > 1 && !isDir {
		if at == nil {
			return nil, &pathError{target.String(), errors.New("no such directory, and several sources need one")}
		}
		return nil, &pathError{target.String(), errors.New("not a directory, and several sources need one")}
	}
	if at == nil {
		if dir := missingParent(ctx, dst, target.path); dir != "" {
			return nil, &pathError{target.String(), missingError(dst, dir)}
		}
	}
	var out []pair
	for _, s := range sources {
		p := pair{from: s.path, to: target.path, dirOnly: at == nil && target.slash}
		if isDir {
			if p.merge = s.base == ""; !p.merge {
				p.to = dst.Join(target.path, s.base)
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// missingParent returns the first directory on the way to a path that is not there, "" if that is not what is wrong.
func missingParent(ctx context.Context, t tree, p string) string {
	missing := ""
	for dir := parentOf(t, p); ; dir = parentOf(t, dir) {
		if _, err := t.Stat(ctx, dir); !errors.Is(err, syscall.ENOENT) || dir == parentOf(t, dir) {
			return missing
		}
		missing = dir
	}
}

// missingError is ENOENT with the directory that it is about.
func missingError(t tree, dir string) error {
	return fmt.Errorf("no such file or directory: the directory %s is missing", quoted(t.Show(dir)))
}

// refuseFile is the error for what is no directory and would get a name that is one's.
func (p pair) refuseFile(t tree) error {
	return &pathError{strings.TrimRight(t.Show(p.to), "/") + "/", errors.New("no such directory")}
}

// run copies the pairs and returns when all is done or ctx has ended. Failures are in c.failed.
func (c *copier) run(ctx context.Context, pairs []pair) {
	c.group.SetLimit(max(1, min(c.parallel, maxParallel)))
	c.roots = map[fileID]string{}
	survey, done := context.WithCancel(ctx)
	defer c.survey(survey, pairs)()
	defer done()
	for _, p := range pairs {
		if ctx.Err() != nil {
			break
		}
		c.top(ctx, p)
	}
	_ = c.group.Wait() // its functions report to c.failed
	for _, d := range slices.Backward(c.dirs) {
		if ctx.Err() != nil {
			break
		}
		if err := c.dst.SetMetadata(ctx, d.path, c.metadata(d.of, c.keepSetID(ctx, d.of, d.path))); err != nil {
			c.fail(ctx, c.dst, d.path, err)
		}
	}
}

// survey counts what there is to do while the copy is under way, for the progress bar; it returns a function that waits for
// its end. Errors are the copy's to report.
func (c *copier) survey(ctx context.Context, pairs []pair) (wait func()) {
	var running sync.WaitGroup
	if c.meter != nil {
		running.Go(func() {
			for _, p := range pairs {
				if e, err := c.src.Lstat(ctx, p.from); err == nil {
					c.surveyOne(ctx, e, p.from)
				}
			}
		})
	}
	return running.Wait
}

func (c *copier) surveyOne(ctx context.Context, e *entry, path string) {
	if !e.isDir() {
		c.meter.expect(e)
		return
	}
	list, err := c.src.ReadDir(ctx, path)
	if err != nil || !c.recursive {
		return
	}
	for _, child := range list {
		if ctx.Err() != nil {
			return
		}
		c.surveyOne(ctx, child, c.src.Join(path, child.Name))
	}
}

// fail notes an error about a path, except for those that only say that the user interrupted.
func (c *copier) fail(ctx context.Context, t tree, path string, err error) {
	if ctx.Err() == nil {
		c.failed.add(&pathError{t.Show(path), err})
	}
}

// top starts with something named on the command line.
func (c *copier) top(ctx context.Context, p pair) {
	stat := c.src.Lstat
	if !c.recursive {
		stat = c.src.Stat
	}
	e, err := stat(ctx, p.from)
	if err != nil {
		c.fail(ctx, c.src, p.from, err)
		return
	}
	if !e.isDir() {
		if p.dirOnly {
			c.failed.add(p.refuseFile(c.dst))
			return
		}
		c.object(ctx, e, p.from, p.to, named)
		return
	}
	if !c.recursive {
		c.fail(ctx, c.src, p.from, errors.New("is a directory: copy it with -r"))
		return
	}
	if c.src.Same(c.dst) && p.from != "/" && within(c.src.Show(p.to), c.src.Show(p.from)) {
		c.fail(ctx, c.src, p.from, fmt.Errorf("cannot be copied into itself (%s)", quoted(c.dst.Show(p.to))))
		return
	}
	c.directory(ctx, e, p, true)
}

// within tells whether path is dir or lies below it, as far as the names say.
func within(path, dir string) bool {
	return path == dir || (len(path) > len(dir) && path[:len(dir)] == dir && path[len(dir)] == '/')
}

// object copies what is not a directory: files in the background, the rest at once.
func (c *copier) object(ctx context.Context, e *entry, from, to string, where place) {
	if e.isRegular() || !c.recursive {
		c.group.Go(func() error {
			c.file(ctx, e, from, to, where)
			return nil
		})
		return
	}
	if err := c.special(ctx, e, from, to, where); err != nil {
		c.failed.addUnlessDone(ctx, err)
		return
	}
	c.meter.fileDone()
}

func (f *failures) addUnlessDone(ctx context.Context, err error) {
	if ctx.Err() == nil {
		f.add(err)
	}
}

// directory copies a directory and what is in it. A directory that is there already is kept and added to.
func (c *copier) directory(ctx context.Context, e *entry, p pair, root bool) {
	if into, ok := c.roots[e.ID]; ok {
		c.fail(ctx, c.src, p.from, fmt.Errorf("cannot be copied into itself (%s)", quoted(c.dst.Show(into))))
		return
	}
	where, err := c.makeDir(ctx, e, p.to, root)
	if err != nil {
		c.fail(ctx, c.dst, p.to, err)
		return
	}
	if !p.merge {
		c.dirs = append(c.dirs, dirDone{p.to, e})
	}
	list, err := c.src.ReadDir(ctx, p.from)
	if err != nil {
		c.fail(ctx, c.src, p.from, err)
	}
	for _, child := range list {
		if ctx.Err() != nil {
			return
		}
		from, to := c.src.Join(p.from, child.Name), c.dst.Join(p.to, child.Name)
		if child.isDir() {
			c.directory(ctx, child, pair{from: from, to: to}, false)
		} else {
			c.object(ctx, child, from, to, where)
		}
	}
}

// makeDir makes a directory or accepts the one that is there, and says what to expect in it.
func (c *copier) makeDir(ctx context.Context, e *entry, to string, root bool) (place, error) {
	where := vacant
	err := c.dst.Mkdir(ctx, to, e.Mode&0o777|0o700)
	if errors.Is(err, syscall.EEXIST) {
		where, err = inTree, nil
	}
	if err != nil || (where == vacant && !(root && c.src.Same(c.dst))) {
		return where, err
	}
	stat := c.dst.Lstat
	if root {
		stat = c.dst.Stat // a symlink named as the target is followed
	}
	made, err := stat(ctx, to)
	if err != nil {
		return where, err
	}
	if !made.isDir() {
		return where, errors.New("is no directory and stays: a directory would replace it")
	}
	if root && c.src.Same(c.dst) {
		c.roots[made.ID] = to
	}
	return where, nil
}

func (c *copier) metadata(e *entry, setID bool) metadata {
	m := metadata{Perm: e.permBits(), Symlink: e.isSymlink(), Atime: e.Atime, Mtime: e.Mtime}
	if !setID {
		m.Perm &^= syscall.S_ISUID | syscall.S_ISGID
	}
	return m
}

// keepSetID tells whether a copy may keep the set-user-id and set-group-id bits of its original: if it has the same owner
// and group. Otherwise the copy would give the powers of somebody else.
func (c *copier) keepSetID(ctx context.Context, e *entry, made string) bool {
	if e.setIDBits() == 0 {
		return false
	}
	m, err := c.dst.Lstat(ctx, made)
	return err == nil && m.UID == e.UID && m.GID == e.GID
}
