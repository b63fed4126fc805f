package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

// humanSize writes bytes as ls -h and du -h do: 512, 1.5K, 23M, rounded up.
func humanSize(n uint64) string {
	if n < 1024 {
		return strconv.FormatUint(n, 10)
	}
	v, unit := float64(n), -1
	for v >= 1024 && unit < 5 {
		v /= 1024
		unit++
	}
	if up := math.Ceil(v*10) / 10; up < 10 {
		return fmt.Sprintf("%.1f%c", up, "KMGTPE"[unit])
	}
	if up := math.Ceil(v); up < 1024 || unit == 5 {
		return fmt.Sprintf("%.0f%c", up, "KMGTPE"[unit])
	}
	return fmt.Sprintf("1.0%c", "KMGTPE"[unit+1])
}

// plural counts things: "1 shard", "2 shards", "2 directories".
func plural(n uint64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	if stem, ok := strings.CutSuffix(thing, "y"); ok {
		thing = stem + "ie"
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// blocks writes bytes in units of 1024, rounded up, or as humanSize.
func blocks(n uint64, human bool) string {
	if human {
		return humanSize(n)
	}
	return strconv.FormatUint(n/1024+min(1, n%1024), 10)
}

// modeString writes a mode as ls -l does: drwxr-xr-x.
func modeString(mode uint32) string {
	b := []byte("?rwxrwxrwx")
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			b[i+1] = '-'
		}
	}
	b[0] = kindLetter(mode)
	special := func(bit uint32, at int, with, without byte) {
		if mode&bit != 0 {
			if b[at] == 'x' {
				b[at] = with
			} else {
				b[at] = without
			}
		}
	}
	special(syscall.S_ISUID, 3, 's', 'S')
	special(syscall.S_ISGID, 6, 's', 'S')
	special(syscall.S_ISVTX, 9, 't', 'T')
	return string(b)
}

func kindLetter(mode uint32) byte {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		return 'd'
	case syscall.S_IFLNK:
		return 'l'
	case syscall.S_IFIFO:
		return 'p'
	case syscall.S_IFSOCK:
		return 's'
	case syscall.S_IFCHR:
		return 'c'
	case syscall.S_IFBLK:
		return 'b'
	case syscall.S_IFREG:
		return '-'
	}
	return '?'
}

func kindName(mode uint32) string {
	switch kindLetter(mode) {
	case 'd':
		return "directory"
	case 'l':
		return "symlink"
	case 'p':
		return "fifo"
	case 's':
		return "socket"
	case 'c':
		return "character device"
	case 'b':
		return "block device"
	case '-':
		return "file"
	}
	return "unknown"
}

// listTime writes a time as ls -l does: with the hour for the last six months, with the year otherwise.
func listTime(t, now time.Time) string {
	const halfYear = 365 * 24 * time.Hour / 2
	if t.After(now.Add(time.Hour)) || t.Before(now.Add(-halfYear)) {
		return t.Format("Jan _2  2006")
	}
	return t.Format("Jan _2 15:04")
}

// names looks up user and group names, each once.
type names struct {
	numeric       bool
	users, groups map[uint32]string
}

func (n *names) user(id uint32) string {
	return n.find(&n.users, id, func(s string) (string, error) {
		u, err := user.LookupId(s)
		if err != nil {
			return "", err
		}
		return u.Username, nil
	})
}

func (n *names) group(id uint32) string {
	return n.find(&n.groups, id, func(s string) (string, error) {
		g, err := user.LookupGroupId(s)
		if err != nil {
			return "", err
		}
		return g.Name, nil
	})
}

func (n *names) find(cache *map[uint32]string, id uint32, lookup func(string) (string, error)) string {
	if name, ok := (*cache)[id]; ok {
		return name
	}
	number := strconv.FormatUint(uint64(id), 10)
	name := number
	if !n.numeric {
		if found, err := lookup(number); err == nil {
			name = found
		}
	}
	if *cache == nil {
		*cache = map[uint32]string{}
	}
	(*cache)[id] = name
	return name
}

// shown makes a name fit for a terminal: control characters and what is not UTF-8 become question marks.
func shown(name string, terminal bool) string {
	if !terminal {
		return name
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, name)
}

// quoted is a name for an error message: as it is if all of it can be seen, else quoted, so that it neither commands the
// terminal nor ends the line.
func quoted(name string) string {
	if utf8.ValidString(name) && strings.IndexFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return name
	}
	return strconv.Quote(name)
}

// writeJSON writes one value, indented.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// jsonEntry is how commands with --json show a file.
type jsonEntry struct {
	Path      string      `json:"path"`
	Name      string      `json:"name"`
	Type      string      `json:"type"`
	Mode      string      `json:"mode"` // octal permission bits
	Size      int64       `json:"size"` // bytes
	Allocated int64       `json:"allocated"`
	Inode     uint64      `json:"inode"`
	Links     uint64      `json:"links"`
	UID       uint32      `json:"uid"`
	GID       uint32      `json:"gid"`
	Device    string      `json:"device,omitempty"` // major:minor of a device node
	Target    string      `json:"target,omitempty"` // of a symlink
	Modified  time.Time   `json:"modified"`
	Accessed  time.Time   `json:"accessed"`
	Changed   time.Time   `json:"changed"`
	Created   time.Time   `json:"created"`
	Children  []jsonEntry `json:"children,omitempty"` // tree only
}

func toJSON(path string, e *entry) jsonEntry {
	j := jsonEntry{
		Path: path, Name: e.Name, Type: kindName(e.Mode), Mode: fmt.Sprintf("%04o", e.permBits()), Size: e.Size, Allocated: e.Allocated,
		Inode: e.ID.ino, Links: e.Nlink, UID: e.UID, GID: e.GID, Target: e.LinkTarget,
		Modified: e.Mtime.UTC(), Accessed: e.Atime.UTC(), Changed: e.Ctime.UTC(), Created: e.Btime.UTC(),
	}
	if k := e.kind(); k == syscall.S_IFCHR || k == syscall.S_IFBLK {
		j.Device = device(e.Rdev, ":")
	}
	return j
}

// padded fills up with blanks to a width in characters; a negative width puts them in front.
func padded(s string, width int) string {
	n := utf8.RuneCountInString(s)
	if width < 0 {
		return strings.Repeat(" ", max(0, -width-n)) + s
	}
	return s + strings.Repeat(" ", max(0, width-n))
}

// table writes rows in columns as wide as they need to be; the columns named in right are aligned there. The last column
// is not padded.
func table(w io.Writer, rows [][]string, right ...int) error {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, i := range right {
		if i < len(widths) {
			widths[i] = -widths[i]
		}
	}
	var b strings.Builder
	for _, row := range rows {
		line := make([]string, len(row))
		for i, cell := range row {
			if i == len(row)-1 && widths[i] > 0 {
				line[i] = cell
				continue
			}
			line[i] = padded(cell, widths[i])
		}
		b.WriteString(strings.Join(line, " "))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}
