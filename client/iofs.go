package client

import (
	"context"
	"io/fs"
)

// ioFS is an FS for package io/fs.
type ioFS struct {
	ctx context.Context
	fs  *FS
}

var (
	_ fs.ReadDirFS  = ioFS{}
	_ fs.ReadFileFS = ioFS{}
	_ fs.StatFS     = ioFS{}
	_ fs.ReadLinkFS = ioFS{}
)

// IOFS returns the file system as an io/fs.FS, for reading. It lives as long as ctx.
func (f *FS) IOFS(ctx context.Context) fs.FS { return ioFS{ctx, f} }

// check refuses names that io/fs does not allow.
func (f ioFS) check(op, name string) error {
	if !fs.ValidPath(name) {
		return &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return nil
}

func (f ioFS) Open(name string) (fs.File, error) {
	if err := f.check("open", name); err != nil {
		return nil, err
	}
	file, err := f.fs.Open(f.ctx, name)
	if err != nil {
		return nil, err
	}
	return file, nil
}

func (f ioFS) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := f.check("readdir", name); err != nil {
		return nil, err
	}
	return f.fs.ReadDir(f.ctx, name)
}

func (f ioFS) ReadFile(name string) ([]byte, error) {
	if err := f.check("readfile", name); err != nil {
		return nil, err
	}
	return f.fs.ReadFile(f.ctx, name)
}

func (f ioFS) Stat(name string) (fs.FileInfo, error) {
	if err := f.check("stat", name); err != nil {
		return nil, err
	}
	return f.fs.Stat(f.ctx, name)
}

func (f ioFS) Lstat(name string) (fs.FileInfo, error) {
	if err := f.check("lstat", name); err != nil {
		return nil, err
	}
	return f.fs.Lstat(f.ctx, name)
}

func (f ioFS) ReadLink(name string) (string, error) {
	if err := f.check("readlink", name); err != nil {
		return "", err
	}
	return f.fs.Readlink(f.ctx, name)
}
