package client

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/fserr"
)

// OpenFile opens a file as os.OpenFile does. The File's methods that take no context use ctx, so it bounds their lives
// too. perm is used as it is: no umask is applied.
func (f *FS) OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (*File, error) {
	var file *File
	err := again(func() (err error) {
		file, err = f.openFile(ctx, name, flag, perm)
		return err
	})
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return file, nil
}

// maxRaces bounds how often what a path leads to may change under an operation.
const maxRaces = 100

// again does what is done at a path once more when something that the path led to or through was removed meanwhile: another
// look at the path tells whether there is something else now.
func again(op func() error) error {
	for range maxRaces {
		if err := op(); fserr.Errno(err) != syscall.ESTALE {
			return err
		}
	}
	return fserr.New(syscall.EBUSY, "what the path leads to keeps being replaced")
}

func (f *FS) openFile(ctx context.Context, name string, flag int, perm fs.FileMode) (*File, error) {
	create, exclusive := flag&os.O_CREATE != 0, flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL
	for range maxRaces {
		p, err := f.low.walk(ctx, f.cred, name, !exclusive && flag&syscall.O_NOFOLLOW == 0)
		switch {
		case err != nil:
			return nil, err
		case p.exists && exclusive:
			return nil, syscall.EEXIST
		case !p.exists && !create:
			return nil, syscall.ENOENT
		case create && p.dir:
			return nil, syscall.EISDIR
		case p.exists && p.attr.IsDir():
			return f.openDir(ctx, name, flag, p)
		case p.exists && flag&syscall.O_DIRECTORY != 0:
			return nil, syscall.ENOTDIR
		}
		var h *Handle
		if p.exists {
			h, err = f.low.Open(ctx, f.cred, p.attr.Ino, flag)
		} else {
			_, h, err = f.low.Create(ctx, f.cred, p.parent.Ino, p.name, flag, PermBits(perm))
		}
		if err == nil {
			return newFile(ctx, f, name, h), nil
		}
		raced := p.exists && vanished(err) || !p.exists && !exclusive && fserr.Errno(err) == syscall.EEXIST
		if !raced {
			return nil, err
		}
	}
	return nil, fserr.New(syscall.EBUSY, "the name appears and vanishes")
}

func (f *FS) openDir(ctx context.Context, name string, flag int, p place) (*File, error) {
	if flag&syscall.O_ACCMODE != os.O_RDONLY || flag&(os.O_TRUNC|os.O_CREATE) != 0 {
		return nil, syscall.EISDIR
	}
	d, err := f.low.OpenDir(ctx, f.cred, p.attr.Ino)
	if err != nil {
		return nil, err
	}
	return newDirFile(ctx, f, name, d), nil
}

// Open opens a file or directory for reading.
func (f *FS) Open(ctx context.Context, name string) (*File, error) {
	return f.OpenFile(ctx, name, os.O_RDONLY, 0)
}

// Create makes a file, or empties the one that is there, and opens it for reading and writing.
func (f *FS) Create(ctx context.Context, name string) (*File, error) {
	return f.OpenFile(ctx, name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o666)
}

// Mkdir makes a directory.
func (f *FS) Mkdir(ctx context.Context, name string, perm fs.FileMode) error {
	return pathError("mkdir", name, again(func() error { return f.mkdir(ctx, name, perm) }))
}

func (f *FS) mkdir(ctx context.Context, name string, perm fs.FileMode) error {
	p, err := f.spot(ctx, name, true)
	switch {
	case err != nil:
		return err
	case p.exists:
		return syscall.EEXIST
	}
	_, err = f.low.Mkdir(ctx, f.cred, p.parent.Ino, p.name, PermBits(perm))
	return err
}

// MkdirAll makes a directory and those above it that do not exist. It is no error if it exists.
func (f *FS) MkdirAll(ctx context.Context, name string, perm fs.FileMode) error {
	return again(func() error { return f.mkdirAll(ctx, name, perm) })
}

func (f *FS) mkdirAll(ctx context.Context, name string, perm fs.FileMode) error {
	p, err := f.low.walk(ctx, f.cred, name, true)
	switch {
	case err == nil && p.exists && p.attr.IsDir():
		return nil
	case err == nil && p.exists:
		return pathError("mkdir", name, syscall.ENOTDIR)
	case err != nil && fserr.Errno(err) != syscall.ENOENT:
		return pathError("mkdir", name, err)
	}
	if up := parentPath(name); up != "" {
		if err := f.mkdirAll(ctx, up, perm); err != nil {
			return err
		}
	}
	err = f.mkdir(ctx, name, perm)
	if err != nil && fserr.Errno(err) == syscall.EEXIST {
		if p, again := f.low.walk(ctx, f.cred, name, true); again == nil && p.exists && p.attr.IsDir() {
			return nil // somebody else made it
		}
	}
	return pathError("mkdir", name, err)
}

// parentPath is a path without its last component, "" if nothing is left to be made.
func parentPath(name string) string {
	name = strings.TrimRight(name, "/")
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return ""
	}
	return strings.TrimRight(name[:i], "/")
}

// Remove removes a file or an empty directory.
func (f *FS) Remove(ctx context.Context, name string) error {
	return pathError("remove", name, again(func() error { return f.remove(ctx, name) }))
}

func (f *FS) remove(ctx context.Context, name string) error {
	for range maxRaces {
		p, err := f.spot(ctx, name, true)
		switch {
		case err != nil:
			return err
		case p.name == "":
			return syscall.EBUSY
		case !p.exists:
			return syscall.ENOENT
		}
		isDir := p.attr.IsDir()
		if !isDir && strings.HasSuffix(name, "/") {
			return syscall.ENOTDIR
		}
		if isDir {
			err = f.low.Rmdir(ctx, f.cred, p.parent.Ino, p.name)
		} else {
			err = f.low.Unlink(ctx, f.cred, p.parent.Ino, p.name)
		}
		errno := fserr.Errno(err)
		if !(isDir && errno == syscall.ENOTDIR || !isDir && errno == syscall.EISDIR) {
			return err // else the name means something else by now
		}
	}
	return fserr.New(syscall.EBUSY, "the name keeps changing")
}

// RemoveAll removes a file, or a directory with all that is in it. It is no error if it does not exist.
func (f *FS) RemoveAll(ctx context.Context, name string) error {
	if strings.HasSuffix(strings.TrimRight("/"+name, "/"), "/.") {
		return pathError("unlinkat", name, syscall.EINVAL)
	}
	var p place
	err := again(func() (err error) {
		p, err = f.spot(ctx, name, true)
		return err
	})
	switch {
	case err != nil && fserr.Errno(err) == syscall.ENOENT, err == nil && !p.exists:
		return nil
	case err != nil:
		return pathError("unlinkat", name, err)
	case p.name == "":
		return pathError("unlinkat", name, syscall.EBUSY)
	}
	return f.removeTree(ctx, name, p.parent.Ino, p.name, p.attr)
}

func (f *FS) removeTree(ctx context.Context, path string, parent Ino, name string, a Attr) error {
	for range maxRaces {
		var err error
		if a.IsDir() {
			err = f.low.Rmdir(ctx, f.cred, parent, name)
		} else {
			err = f.low.Unlink(ctx, f.cred, parent, name)
		}
		errno := fserr.Errno(err)
		switch {
		case err == nil || vanished(err): // the entry, or its directory
			return nil
		case errno == syscall.ENOTEMPTY || errno == syscall.EEXIST:
			if err := f.removeEntries(ctx, path, a.Ino); err != nil {
				return err
			}
		case a.IsDir() && errno == syscall.ENOTDIR || !a.IsDir() && errno == syscall.EISDIR:
			if a, err = f.low.Lookup(ctx, f.cred, parent, name); vanished(err) {
				return nil
			} else if err != nil {
				return pathError("unlinkat", path, err)
			}
		default:
			return pathError("unlinkat", path, err)
		}
	}
	return pathError("unlinkat", path, syscall.ENOTEMPTY)
}

func (f *FS) removeEntries(ctx context.Context, path string, ino Ino) error {
	d, err := f.low.OpenDir(ctx, f.cred, ino)
	if vanished(err) {
		return nil
	}
	if err != nil {
		return pathError("unlinkat", path, err)
	}
	var first error
	for offset := uint64(0); ; {
		entries, err := d.ReadAt(ctx, offset)
		if err != nil && !vanished(err) {
			return pathError("unlinkat", path, err)
		}
		if len(entries) == 0 {
			return first
		}
		for _, e := range entries {
			if err := f.removeTree(ctx, strings.TrimRight(path, "/")+"/"+e.Name, ino, e.Name, e.Attr); err != nil && first == nil {
				first = err
			}
			offset = e.Next
		}
		if ctx.Err() != nil {
			return pathError("unlinkat", path, ctx.Err())
		}
	}
}

// Rename moves a file or directory, replacing what has the new name, which if a directory must be empty.
func (f *FS) Rename(ctx context.Context, oldname, newname string) error {
	return linkError("rename", oldname, newname, again(func() error { return f.rename(ctx, oldname, newname) }))
}

func (f *FS) rename(ctx context.Context, oldname, newname string) error {
	from, err := f.spot(ctx, oldname, true)
	if err != nil {
		return err
	}
	if from.name == "" {
		return syscall.EBUSY
	}
	if !from.exists {
		return syscall.ENOENT
	}
	to, err := f.spot(ctx, newname, from.attr.IsDir())
	switch {
	case err != nil:
		return err
	case to.name == "":
		return syscall.EBUSY
	case !from.attr.IsDir() && (strings.HasSuffix(oldname, "/") || strings.HasSuffix(newname, "/")):
		return syscall.ENOTDIR
	}
	return f.low.Rename(ctx, f.cred, from.parent.Ino, from.name, to.parent.Ino, to.name, 0)
}

// Link gives the file oldname the further name newname.
func (f *FS) Link(ctx context.Context, oldname, newname string) error {
	err := again(func() error {
		from, err := f.find(ctx, oldname, false)
		if err != nil {
			return err
		}
		to, err := f.spot(ctx, newname, false)
		if err != nil {
			return err
		}
		if to.exists {
			return syscall.EEXIST
		}
		_, err = f.low.Link(ctx, f.cred, from.attr.Ino, to.parent.Ino, to.name)
		return err
	})
	return linkError("link", oldname, newname, err)
}

// Symlink makes newname a symlink to oldname.
func (f *FS) Symlink(ctx context.Context, oldname, newname string) error {
	err := again(func() error {
		to, err := f.spot(ctx, newname, false)
		if err != nil {
			return err
		}
		if to.exists {
			return syscall.EEXIST
		}
		_, err = f.low.Symlink(ctx, f.cred, to.parent.Ino, to.name, oldname)
		return err
	})
	return linkError("symlink", oldname, newname, err)
}

// Readlink returns a symlink's target.
func (f *FS) Readlink(ctx context.Context, name string) (string, error) {
	var target string
	err := f.at(ctx, name, false, func(a Attr) error {
		if !a.IsSymlink() {
			return syscall.EINVAL
		}
		target = a.Symlink
		return nil
	})
	return target, pathError("readlink", name, err)
}

// Stat returns what a path leads to, symlinks followed. Its Sys is an *Attr.
func (f *FS) Stat(ctx context.Context, name string) (fs.FileInfo, error) {
	return f.stat(ctx, "stat", name, true)
}

// Lstat is Stat that does not follow a symlink at the end.
func (f *FS) Lstat(ctx context.Context, name string) (fs.FileInfo, error) {
	return f.stat(ctx, "lstat", name, false)
}

func (f *FS) stat(ctx context.Context, op, name string, follow bool) (fs.FileInfo, error) {
	var info fs.FileInfo
	err := f.at(ctx, name, follow, func(a Attr) error {
		info = FileInfo(name, a)
		return nil
	})
	return info, pathError(op, name, err)
}

// at does something to what a path leads to, which must exist.
func (f *FS) at(ctx context.Context, name string, follow bool, do func(Attr) error) error {
	return again(func() error {
		p, err := f.find(ctx, name, follow)
		if err != nil {
			return err
		}
		return do(p.attr)
	})
}

// ReadDir lists a directory in the order of the names.
func (f *FS) ReadDir(ctx context.Context, name string) ([]fs.DirEntry, error) {
	d, err := f.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	entries, err := d.ReadDir(-1)
	return entries, errors.Join(err, d.Close())
}

// Truncate sets a file's size.
func (f *FS) Truncate(ctx context.Context, name string, size int64) error {
	if size < 0 {
		return pathError("truncate", name, syscall.EINVAL)
	}
	s := uint64(size)
	return f.change(ctx, "truncate", name, true, SetAttr{Size: &s})
}

// Chmod sets a file's permission bits.
func (f *FS) Chmod(ctx context.Context, name string, mode fs.FileMode) error {
	m := PermBits(mode)
	return f.change(ctx, "chmod", name, true, SetAttr{Mode: &m})
}

// Chown sets a file's owner and group; -1 leaves one as it is.
func (f *FS) Chown(ctx context.Context, name string, uid, gid int) error {
	return f.change(ctx, "chown", name, true, owners(uid, gid))
}

// Lchown is Chown that does not follow a symlink at the end.
func (f *FS) Lchown(ctx context.Context, name string, uid, gid int) error {
	return f.change(ctx, "lchown", name, false, owners(uid, gid))
}

func owners(uid, gid int) (s SetAttr) {
	if uid >= 0 {
		u := uint32(uid)
		s.UID = &u
	}
	if gid >= 0 {
		g := uint32(gid)
		s.GID = &g
	}
	return s
}

// Chtimes sets the times of last access and change; a zero time leaves one as it is.
func (f *FS) Chtimes(ctx context.Context, name string, atime, mtime time.Time) error {
	var s SetAttr
	if !atime.IsZero() {
		s.Atime = &atime
	}
	if !mtime.IsZero() {
		s.Mtime = &mtime
	}
	return f.change(ctx, "chtimes", name, true, s)
}

func (f *FS) change(ctx context.Context, op, name string, follow bool, s SetAttr) error {
	return pathError(op, name, f.at(ctx, name, follow, func(a Attr) error {
		_, err := f.low.SetAttr(ctx, f.cred, a.Ino, s)
		return err
	}))
}

// GetXattr returns the value of a file's extended attribute.
func (f *FS) GetXattr(ctx context.Context, name, attr string) ([]byte, error) {
	var value []byte
	err := f.at(ctx, name, true, func(a Attr) (err error) {
		value, err = f.low.GetXattr(ctx, f.cred, a.Ino, attr)
		return err
	})
	return value, pathError("getxattr", name, err)
}

// ListXattr returns the names of a file's extended attributes.
func (f *FS) ListXattr(ctx context.Context, name string) ([]string, error) {
	var names []string
	err := f.at(ctx, name, true, func(a Attr) (err error) {
		names, err = f.low.ListXattr(ctx, f.cred, a.Ino)
		return err
	})
	return names, pathError("listxattr", name, err)
}

// SetXattr sets a file's extended attribute; flags are XattrCreate, XattrReplace or 0.
func (f *FS) SetXattr(ctx context.Context, name, attr string, value []byte, flags int) error {
	return pathError("setxattr", name, f.at(ctx, name, true, func(a Attr) error {
		return f.low.SetXattr(ctx, f.cred, a.Ino, attr, value, flags)
	}))
}

// RemoveXattr removes a file's extended attribute.
func (f *FS) RemoveXattr(ctx context.Context, name, attr string) error {
	return pathError("removexattr", name, f.at(ctx, name, true, func(a Attr) error {
		return f.low.RemoveXattr(ctx, f.cred, a.Ino, attr)
	}))
}

// ReadFile returns what is in a file.
func (f *FS) ReadFile(ctx context.Context, name string) ([]byte, error) {
	file, err := f.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	b, err := file.readAll()
	return b, errors.Join(err, file.Close())
}

// WriteFile writes a file, which it makes or empties first.
func (f *FS) WriteFile(ctx context.Context, name string, data []byte, perm fs.FileMode) error {
	file, err := f.OpenFile(ctx, name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Close())
}
