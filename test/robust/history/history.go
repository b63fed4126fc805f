// Package history records what clients asked of the file system and what they were told, with times: the material from which
// package model judges whether the answers can be explained by one file system that does one thing at a time.
package history

import (
	"fmt"
	"math"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Op is what an operation does.
type Op string

// The operations.
const (
	// Of a directory.
	Create    Op = "create" // of a file that must not exist
	Mkdir     Op = "mkdir"
	Unlink    Op = "unlink"
	Rmdir     Op = "rmdir"
	Rename    Op = "rename" // replaces what has the new name
	NoReplace Op = "rename-noreplace"
	Exchange  Op = "rename-exchange"
	Link      Op = "link" // of an inode
	Lookup    Op = "lookup"
	Links     Op = "links" // how many an inode has
	List      Op = "list"
	// Of a file's attributes.
	Chmod    Op = "chmod"
	Truncate Op = "truncate"
	Stat     Op = "stat"
	// Of a file's content, from open to close.
	Write  Op = "write" // over all of it, and fsync
	Append Op = "append"
	Read   Op = "read"
)

// Reads tells whether the operation changes nothing.
func (o Op) Reads() bool {
	switch o {
	case Lookup, Links, List, Stat, Read:
		return true
	}
	return false
}

// Input is what an operation was asked to do.
type Input struct {
	Op    Op     `json:"op"`
	Name  string `json:"name,omitempty"`
	To    string `json:"to,omitempty"`    // the new name of a rename or link
	Inode uint64 `json:"ino,omitempty"`   // that Link and Links are of
	Mode  uint32 `json:"mode,omitempty"`  // of Chmod
	Size  int64  `json:"size,omitempty"`  // of Truncate
	Value uint64 `json:"value,omitempty"` // of Write and Append; no two have the same
}

// Output is what an operation returned.
type Output struct {
	Errno syscall.Errno `json:"errno,omitempty"`
	Inode uint64        `json:"ino,omitempty"` // 0: the caller was not told
	Dir   bool          `json:"dir,omitempty"`
	Links uint32        `json:"links,omitempty"`
	Names []string      `json:"names,omitempty"` // of a directory, in order
	Mode  uint32        `json:"mode,omitempty"`
	Size  int64         `json:"size,omitempty"`
	List  []uint64      `json:"list,omitempty"` // the values that a file holds
	Torn  string        `json:"torn,omitempty"` // what is wrong with the content, if it is made of no whole values
}

// Operation is one call of a client.
type Operation struct {
	Client string
	Worker int    // of the client; one does one thing at a time
	Object string // what it was done to: operations on different objects do not affect each other
	Input  Input
	// Output is nil when the outcome is not known: the operation may have been done at any time after Call, or never.
	Output *Output
	Call   time.Duration // on the machine's monotonic clock
	Return time.Duration // Never where the outcome is not known
	Err    string        // an error that it had no reason to return
}

// Never is the time at which an operation returns whose outcome is not known.
const Never = time.Duration(math.MaxInt64)

// String is the operation as people read it.
func (i Input) String() string {
	var args []string
	for _, s := range []string{i.Name, i.To} {
		if s != "" {
			args = append(args, s)
		}
	}
	switch i.Op {
	case Link, Links:
		args = append([]string{fmt.Sprintf("#%d", i.Inode)}, args...)
	case Chmod:
		args = append(args, fmt.Sprintf("%#o", i.Mode))
	case Truncate:
		args = append(args, fmt.Sprint(i.Size))
	case Write, Append:
		args = append(args, fmt.Sprint(i.Value))
	}
	return fmt.Sprintf("%s(%s)", i.Op, strings.Join(args, ", "))
}

// String is the answer as people read it.
func (o *Output) String() string {
	switch {
	case o == nil:
		return "unknown"
	case o.Errno != 0:
		return unix.ErrnoName(o.Errno)
	case o.Torn != "":
		return "torn: " + o.Torn
	}
	var parts []string
	add := func(is bool, format string, args ...any) {
		if is {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(o.Inode != 0, "#%d", o.Inode)
	add(o.Dir, "directory")
	add(o.Links != 0, "%d links", o.Links)
	add(o.Names != nil, "%v", o.Names)
	add(o.Mode != 0, "%#o, %d bytes", o.Mode, o.Size)
	add(o.List != nil, "%v", o.List)
	if len(parts) == 0 {
		return "ok"
	}
	return strings.Join(parts, " ")
}

// String is operation and answer.
func (o *Operation) String() string {
	return fmt.Sprintf("%s/%d %s %v -> %v", o.Client, o.Worker, o.Object, o.Input, o.Output)
}
