package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/client"
)

type lsOptions struct {
	long, all, human, self, recursive, byTime, bySize, reverse, onePerLine, inode, numeric, json bool
}

func newLs(c *cli) *cobra.Command {
	var o lsOptions
	cmd := &cobra.Command{
		Use:   "ls [-l] [PATH…]",
		Short: "List directories of the cluster",
		Long:  "ls lists directories of the cluster, the root if no path is given, the way ls(1) does.",
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := remotePaths(args)
			if err != nil {
				return err
			}
			return c.withFS(cmd.Context(), func(fsys *client.FS) error {
				out := bufio.NewWriter(c.out)
				l := &lister{o: o, tree: remoteTree{fsys}, out: out, now: time.Now(), names: names{numeric: o.numeric}}
				l.columns, l.terminal = isTerminal(c.out)
				l.run(cmd.Context(), paths)
				if err := out.Flush(); err != nil {
					l.failed.add(err)
				}
				return c.report(cmd, &l.failed)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.long, "long", "l", false, "show mode, links, owner, group, size and modification time")
	f.BoolVarP(&o.all, "all", "a", false, "show names that begin with a dot too")
	f.BoolVarP(&o.human, "human-readable", "h", false, "with -l: sizes such as 1.5K, 23M")
	f.BoolVarP(&o.self, "directory", "d", false, "show directories themselves, not what is in them")
	f.BoolVarP(&o.recursive, "recursive", "R", false, "show directories below, too")
	f.BoolVarP(&o.byTime, "time", "t", false, "newest first")
	f.BoolVarP(&o.bySize, "size", "S", false, "largest first")
	f.BoolVarP(&o.reverse, "reverse", "r", false, "the other way round")
	f.BoolVarP(&o.onePerLine, "one", "1", false, "one name a line")
	f.BoolVarP(&o.inode, "inode", "i", false, "show inode numbers")
	f.BoolVarP(&o.numeric, "numeric", "n", false, "with -l: numbers of owner and group instead of names")
	f.BoolVar(&o.json, "json", false, "write JSON: an array with an object for each entry")
	longHelpOnly(cmd)
	return cmd
}

// longHelpOnly frees -h for a command that means something else by it.
func longHelpOnly(cmd *cobra.Command) {
	cmd.Flags().Bool("help", false, "show this help")
}

type lister struct {
	o        lsOptions
	tree     tree
	out      io.Writer
	terminal bool
	columns  int
	now      time.Time
	names    names
	failed   failures
	json     []jsonEntry
	printed  bool
}

// item is an entry with the path to show for it.
type item struct {
	name, path string
	e          *entry
}

func (l *lister) run(ctx context.Context, paths []string) {
	var single []item
	var dirs []string
	l.json = []jsonEntry{}
	for _, p := range paths {
		stat := l.tree.Stat
		if l.o.self || l.o.long {
			stat = l.tree.Lstat
		}
		e, err := stat(ctx, p)
		if errors.Is(err, syscall.ENOENT) {
			e, err = l.tree.Lstat(ctx, p) // a symlink to nothing
		}
		switch {
		case err != nil:
			l.failed.addUnlessDone(ctx, at(l.tree, p, err))
		case e.isDir() && !l.o.self:
			dirs = append(dirs, p)
		default:
			single = append(single, item{l.tree.Show(p), p, e})
		}
	}
	if len(single) > 0 {
		l.show(l.sorted(single), false)
	}
	for _, p := range dirs {
		l.dir(ctx, p, len(paths) > 1 || l.o.recursive)
	}
	if l.o.json {
		l.write(func() error { return writeJSON(l.out, l.json) })
	}
}

func (l *lister) write(fn func() error) {
	if err := fn(); err != nil {
		l.failed.add(err)
	}
}

func (l *lister) dir(ctx context.Context, p string, titled bool) {
	list, err := l.tree.ReadDir(ctx, p)
	if err != nil {
		l.failed.addUnlessDone(ctx, at(l.tree, p, err))
		return
	}
	var items []item
	for _, e := range list {
		if l.o.all || !strings.HasPrefix(e.Name, ".") {
			items = append(items, item{e.Name, l.tree.Join(p, e.Name), e})
		}
	}
	items = l.sorted(items)
	if titled && !l.o.json {
		title := l.tree.Show(p) + ":\n"
		if l.printed {
			title = "\n" + title
		}
		l.write(func() error { _, err := io.WriteString(l.out, shownTitle(title, l.terminal)); return err })
	}
	l.show(items, true)
	if !l.o.recursive {
		return
	}
	for _, it := range items {
		if it.e.isDir() && ctx.Err() == nil {
			l.dir(ctx, it.path, true)
		}
	}
}

func shownTitle(title string, terminal bool) string {
	if !terminal {
		return title
	}
	lines := strings.Split(title, "\n")
	for i := range lines {
		lines[i] = shown(lines[i], true)
	}
	return strings.Join(lines, "\n")
}

func (l *lister) sorted(items []item) []item {
	slices.SortStableFunc(items, func(a, b item) int {
		var d int
		switch {
		case l.o.byTime:
			d = b.e.Mtime.Compare(a.e.Mtime)
		case l.o.bySize:
			d = cmp.Compare(b.e.Size, a.e.Size)
		}
		if d == 0 {
			d = cmp.Compare(a.name, b.name)
		}
		if l.o.reverse {
			d = -d
		}
		return d
	})
	return items
}

// show writes a listing; a directory's begins with its size in blocks, as ls -l has it.
func (l *lister) show(items []item, dir bool) {
	l.printed = true
	switch {
	case l.o.json:
		for _, it := range items {
			l.json = append(l.json, toJSON(it.path, it.e))
		}
	case l.o.long:
		if dir {
			var total uint64
			for _, it := range items {
				total += uint64(it.e.Allocated)
			}
			l.write(func() error {
				_, err := fmt.Fprintf(l.out, "total %s\n", blocks(total, l.o.human))
				return err
			})
		}
		l.write(func() error { return l.longList(items) })
	default:
		l.write(func() error { return l.shortList(items) })
	}
}

func (l *lister) longList(items []item) error {
	rows := make([][]string, 0, len(items))
	for _, it := range items {
		e := it.e
		size := strconv.FormatInt(e.Size, 10)
		switch k := e.kind(); {
		case k == syscall.S_IFCHR || k == syscall.S_IFBLK:
			size = device(e.Rdev, ", ")
		case l.o.human:
			size = humanSize(uint64(e.Size))
		}
		name := shown(it.name, l.terminal)
		if e.isSymlink() {
			name += " -> " + shown(e.LinkTarget, l.terminal)
		}
		row := []string{modeString(e.Mode), strconv.FormatUint(e.Nlink, 10), l.names.user(e.UID), l.names.group(e.GID), size, listTime(e.Mtime, l.now), name}
		if l.o.inode {
			row = append([]string{strconv.FormatUint(e.ID.ino, 10)}, row...)
		}
		rows = append(rows, row)
	}
	if l.o.inode {
		return table(l.out, rows, 0, 2, 5)
	}
	return table(l.out, rows, 1, 4)
}

// device writes a device number as major and minor.
func device(rdev uint32, sep string) string {
	return fmt.Sprintf("%d%s%d", unix.Major(uint64(rdev)), sep, unix.Minor(uint64(rdev)))
}

func (l *lister) shortList(items []item) error {
	cells := make([]string, 0, len(items))
	for _, it := range items {
		cell := shown(it.name, l.terminal)
		if l.o.inode {
			cell = strconv.FormatUint(it.e.ID.ino, 10) + " " + cell
		}
		cells = append(cells, cell)
	}
	if l.terminal && !l.o.onePerLine {
		return inColumns(l.out, cells, l.columns)
	}
	for _, cell := range cells {
		if _, err := io.WriteString(l.out, cell+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// inColumns writes cells down columns, as few lines as fit into width.
func inColumns(w io.Writer, cells []string, width int) error {
	const gap = 2
	for lines := 1; lines <= len(cells); lines++ {
		cols := (len(cells) + lines - 1) / lines
		widths := make([]int, cols)
		for i, cell := range cells {
			widths[i/lines] = max(widths[i/lines], len([]rune(cell)))
		}
		total := gap * (cols - 1)
		for _, n := range widths {
			total += n
		}
		if total > width && lines < len(cells) {
			continue
		}
		for line := range lines {
			var b strings.Builder
			for i := line; i < len(cells); i += lines {
				if i+lines < len(cells) {
					b.WriteString(padded(cells[i], widths[i/lines]+gap))
				} else {
					b.WriteString(cells[i])
				}
			}
			if _, err := fmt.Fprintln(w, b.String()); err != nil {
				return err
			}
		}
		return nil
	}
	return nil
}
