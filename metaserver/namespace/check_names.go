package namespace

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func (c *checker) readInodes() {
	c.begin("inodes", c.want.inodes)
	c.each(bInode, 8, func(k []byte) {
		c.blind.inodes = true
		if len(k) == 8 {
			c.have.inodes++
			c.inodes = append(c.inodes, inodeFacts{num: keyNumber(k), damaged: true})
		}
	}, func(k, v []byte) error {
		num := binary.BigEndian.Uint64(k)
		in, err := decodeInode(num, v)
		if err != nil {
			return err
		}
		inline := in.inlineBytes()
		c.have.inodes++
		c.have.inline += inline
		c.inodes = append(c.inodes, inodeFacts{num: num, parent: in.parent, size: in.size, allocated: in.allocated, nlink: in.nlink,
			xattrs: in.xattrBytes, typ: in.typ(), bytes: inline})
		c.numbered(bInode, k, num, c.want.nextInode, "inode")
		c.checkRecord(in)
		return nil
	})
	if root := c.inode(posix.RootInode); root == nil || !root.isDir() || root.parent != posix.RootInode {
		c.hopeless("there is no root directory")
	}
}

// checkRecord checks what an inode's record says on its own.
func (c *checker) checkRecord(in *inode) {
	fix := &pb.StateFix{Kind: pb.StateFix_INODE, Id: in.num}
	switch in.typ() {
	case syscall.S_IFREG, syscall.S_IFDIR, syscall.S_IFLNK, syscall.S_IFIFO, syscall.S_IFSOCK, syscall.S_IFBLK, syscall.S_IFCHR:
	default:
		c.hopeless("inode %d has mode %#o: there is no such type", in.num, in.mode)
	}
	if in.typ() == syscall.S_IFLNK && uint64(len(in.symlink)) != in.size {
		c.broken(stageRecords, fix, "inode %d: a symlink of %d bytes whose target has %d", in.num, in.size, len(in.symlink))
	}
	if in.typ() != syscall.S_IFLNK && len(in.symlink) > 0 {
		c.hopeless("inode %d: the target of a symlink in something else, mode %#o", in.num, in.mode)
	}
	if !in.isDir() && in.parent != 0 {
		c.broken(stageRecords, fix, "inode %d is no directory, but has parent %d", in.num, in.parent)
	}
	if !in.isDir() && !in.isFile() && !in.layout.IsZero() {
		c.broken(stageRecords, fix, "inode %d has a policy, which only files and directories have", in.num)
	}
	if n := len(in.inline); n > 0 && (!in.isFile() || in.inline[n-1].end() > in.size) {
		c.hopeless("inode %d: inline data beyond its %d bytes", in.num, in.size)
	}
}

// missingInode is one that other records speak of.
type missingInode struct {
	dentries         [][]byte // keys of those that lead to it
	typ              uint32   // as the last of them says
	entries, subdirs uint64   // below it
	bytes, end       uint64   // of extents; where the last one ends
	mixed            bool     // what is known of it does not fit together
}

func (c *checker) lacks(num uint64) *missingInode {
	m := c.missing[num]
	if m == nil {
		m = &missingInode{}
		c.missing[num] = m
	}
	return m
}

func (c *checker) readDentries() {
	c.begin("names", 0)
	var dir *inodeFacts // of the entry before: those of a directory come together
	c.each(bDentry, 0, func(k []byte) {
		c.blind.names = true
		if len(k) >= 9 {
			if dir := c.inode(keyNumber(k[:8])); dir != nil {
				dir.entries++
			} else {
				c.lacks(keyNumber(k[:8])).mixed = true
			}
		}
	}, func(k, v []byte) error {
		num, typ, err := decodeDentry(v)
		if err != nil || num == 0 {
			return errDamaged
		}
		parent, name := nameOf(k)
		if err := posix.CheckName(name); err != nil {
			c.hopeless("directory %d: %v", parent, err)
		}
		if dir == nil || dir.num != parent {
			dir = c.inode(parent)
		}
		in := c.inode(num)
		c.entry(parent, dir, in)
		switch {
		case in == nil:
			m := c.lacks(num)
			m.mixed = m.mixed || len(m.dentries) > 0 && m.typ != typ
			m.typ = typ
			m.dentries = append(m.dentries, slices.Clone(k))
		case in.damaged: // that it cannot be read was said
		default:
			in.names++
			in.namedIn = parent
			if in.typ != typ {
				c.broken(stageRecords, &pb.StateFix{Kind: pb.StateFix_NAME, Key: slices.Clone(k)},
					"directory %d: %q has type %#o, its inode %d type %#o", parent, name, typ, num, in.typ)
			}
		}
		return nil
	})
}

// entry counts an entry of a directory that leads to in.
func (c *checker) entry(parent uint64, dir, in *inodeFacts) {
	switch {
	case dir == nil:
		m := c.lacks(parent)
		m.entries++
		if in != nil && in.isDir() {
			m.subdirs++
		}
	case dir.damaged:
	case !dir.isDir():
		if dir.entries++; dir.entries == 1 {
			c.hopeless("inode %d has entries like a directory, but is none", parent)
		}
	default:
		dir.entries++
		if in != nil && in.isDir() {
			dir.subdirs++
		}
	}
}

func (c *checker) readXattrs() {
	c.begin("xattrs", 0)
	c.each(bXattr, 0, func([]byte) { c.blind.xattrs = true }, func(k, v []byte) error {
		value, err := decodeXattr(v)
		if err != nil {
			return err
		}
		if in := c.inode(keyNumber(k[:8])); in != nil {
			in.xattrBytes += uint32(len(k) - 8 + len(value))
		} else {
			c.hopeless("an xattr of an inode that does not exist: %x", k)
		}
		return nil
	})
}

// remains is what there is of an inode that does not exist.
func (m *missingInode) remains(num uint64) (asDir, asFile, puzzling bool) {
	asDir, asFile = m.entries > 0, m.bytes > 0
	switch {
	case !asDir && !asFile:
		return false, false, m.mixed
	case m.mixed, asDir && asFile, asDir && len(m.dentries) > 1, num >= nextLimit(bInode):
		return false, false, true
	case len(m.dentries) > 0 && asDir != (m.typ == syscall.S_IFDIR), len(m.dentries) > 0 && asFile != (m.typ == syscall.S_IFREG):
		return false, false, true
	}
	return asDir, asFile, false
}

// checkMissing says what becomes of names and data whose inode is not there.
func (c *checker) checkMissing() {
	nums := slices.Sorted(maps.Keys(c.missing))
	for _, num := range nums { // what is made anew is counted where it belongs
		asDir, asFile, puzzling := c.missing[num].remains(num)
		if asDir || asFile {
			c.have.inodes++
		} else if !puzzling && c.missing[num].typ == syscall.S_IFREG {
			c.losses = true // if there is data that nobody refers to
		}
		if d := c.missing[num].dentries; asDir && len(d) > 0 {
			parent, _ := nameOf(d[0])
			if dir := c.inode(parent); dir != nil {
				dir.subdirs++
			} else {
				c.lacks(parent).subdirs++
			}
		}
	}
	c.lookForLosses()
	for _, num := range nums {
		m := c.missing[num]
		asDir, asFile, puzzling := m.remains(num)
		fix := &pb.StateFix{Kind: pb.StateFix_REMAKE, Id: num}
		if len(m.dentries) > 0 {
			fix.Key = m.dentries[0]
		}
		switch {
		case puzzling:
			c.hopeless("inode %d does not exist, but %d names, %d entries and %d bytes of data of it do", num, len(m.dentries), m.entries, m.bytes)
		case asDir:
			fix.Size, fix.Links = m.entries, 2+m.subdirs
			c.broken(stageNames, fix, "directory %d does not exist, but its %d entries do", num, m.entries)
		case asFile:
			fix.Size, fix.Allocated, fix.Links = m.end, m.bytes, max(uint64(len(m.dentries)), 1)
			c.broken(stageNames, fix, "file %d does not exist, but its %d bytes of data do", num, m.bytes)
		case c.losses && m.typ == syscall.S_IFREG && len(m.dentries) > 0:
			parent, name := nameOf(m.dentries[0])
			c.hopeless("directory %d: %q is file %d, which does not exist"+seemLost, parent, name, num)
		default:
			for _, k := range m.dentries {
				parent, name := nameOf(k)
				c.broken(stageNames, &pb.StateFix{Kind: pb.StateFix_NAME, Key: k}, "directory %d: %q is inode %d, which does not exist", parent, name, num)
			}
		}
	}
}

const seemLost = "; it seems that records were lost, and data is kept that they may have referred to"

// lookForLosses tells whether files seem to have lost extents: chunks have more live bytes than extents refer to, and there are
// signs on the other side, too. The data is there still, and a peer, or a backup, may have the extents. Where live bytes were
// put right, it would be deleted; where the signs were, the next check would do so.
func (c *checker) lookForLosses() {
	signs := c.losses || c.have.inodes < c.want.inodes ||
		slices.ContainsFunc(c.inodes, func(in inodeFacts) bool { return !in.damaged && in.allocated > in.bytes })
	c.losses = signs && slices.ContainsFunc(c.chunks, func(ch chunkFacts) bool { return !ch.damaged && ch.used < ch.live })
}

func (c *checker) checkInodes() {
	c.begin("links", c.have.inodes)
	for i := range c.inodes {
		if c.done++; c.done%progressEvery == 0 {
			if c.progress(); c.err != nil {
				return
			}
		}
		in := &c.inodes[i]
		if in.damaged {
			continue
		}
		c.checkNames(in)
		if in.isDir() && in.size != in.entries {
			c.broken(stageSums, c.addToInode(pb.StateFix_ENTRIES, in.num, in.entries, in.size), "directory %d has %d entries, its size is %d", in.num, in.entries, in.size)
		}
		switch {
		case in.allocated == in.bytes || in.partial:
		case in.allocated > in.bytes && c.losses:
			c.hopeless("inode %d: %d bytes are recorded, its extents have %d"+seemLost, in.num, in.allocated, in.bytes)
		default:
			c.broken(stageSums, c.addToInode(pb.StateFix_ALLOCATED, in.num, in.bytes, in.allocated), "inode %d: extents have %d bytes, %d are recorded", in.num, in.bytes, in.allocated)
		}
		if in.xattrs != in.xattrBytes && !c.blind.xattrs {
			c.broken(stageSums, c.addToInode(pb.StateFix_XATTR_BYTES, in.num, uint64(in.xattrBytes), uint64(in.xattrs)),
				"inode %d: xattrs have %d bytes, %d are recorded", in.num, in.xattrBytes, in.xattrs)
		}
	}
}

// checkNames checks that an inode has the names that its record says.
func (c *checker) checkNames(in *inodeFacts) {
	links := in.names
	if in.isDir() {
		links = 2 + in.subdirs
	}
	switch {
	case in.num == posix.RootInode:
		if in.names > 0 {
			c.hopeless("the root directory has a name, in directory %d", in.namedIn)
		}
	case in.names == 0 && in.nlink == 0 && in.holders > 0: // unlinked, but open
		return
	case in.names == 0 && c.blind.names:
		c.hopeless("inode %d has no name that can be read", in.num)
		return
	case in.names == 0:
		c.broken(stageLost, c.attach(in, nil), "inode %d has no name, though its link count is %d, and nobody holds it: it belongs into /lost+found", in.num, in.nlink)
		return
	case !in.isDir():
	case in.names > 1:
		c.hopeless("directory %d has %d names, the last one in directory %d", in.num, in.names, in.namedIn)
	case in.parent != in.namedIn:
		c.broken(stageRecords, &pb.StateFix{Kind: pb.StateFix_PARENT, Id: in.num, Key: c.dentryOf(in)},
			"directory %d has its name in %d, its parent is %d", in.num, in.namedIn, in.parent)
	}
	switch {
	case in.nlink == links:
	case in.nlink > links && c.blind.names:
		c.hopeless("inode %d has a link count of %d, by the names that can be read %d", in.num, in.nlink, links)
	default:
		c.broken(stageSums, c.addToInode(pb.StateFix_NLINK, in.num, uint64(links), uint64(in.nlink)), "inode %d has a link count of %d, by its names %d", in.num, in.nlink, links)
	}
}

// addToInode is addFix for a sum that an inode's record has.
func (c *checker) addToInode(field pb.StateFix_Sum, num, have, want uint64) *pb.StateFix {
	fix := addFix(field, num, have, want)
	if rec, err := getInode(c.r, num); err == nil {
		fix.Version = rec.version
	}
	return fix
}

// attach gives an inode a name in /lost+found, in place of one that it has.
func (c *checker) attach(in *inodeFacts, instead []byte) *pb.StateFix {
	fix := &pb.StateFix{Kind: pb.StateFix_ATTACH, Id: in.num, Links: 1, Key: instead}
	if in.isDir() {
		fix.Links = 2 + uint64(in.subdirs)
		if instead != nil && in.namedIn == in.num {
			fix.Links-- // it is one of its own subdirectories
		}
	}
	if rec, err := getInode(c.r, in.num); err == nil {
		fix.Version = rec.version
	}
	return fix
}

// dentryOf finds the name of a directory.
func (c *checker) dentryOf(in *inodeFacts) (key []byte) {
	scan8(c.r, bDentry, in.namedIn, func(name, v []byte) bool {
		if num, _, err := decodeDentry(v); err == nil && num == in.num {
			key = dentryKey(in.namedIn, bytes.Clone(name))
		}
		return key == nil
	})
	return key
}

// loop reports directories that lie below each other, and has one of them taken out.
func (c *checker) loop(path []*inodeFacts) {
	const named = 8
	first := path[0]
	var list []string
	for _, in := range path {
		if in.num < first.num {
			first = in
		}
		if len(list) < named {
			list = append(list, fmt.Sprint(in.num))
		}
	}
	if len(path) > named {
		list = append(list, "…")
	}
	const text = "directories %s lie below each other, where nobody can reach them"
	if slices.ContainsFunc(path, func(in *inodeFacts) bool { return in.names > 1 }) {
		c.hopeless(text, strings.Join(list, ", "))
		return
	}
	c.broken(stageLost, c.attach(first, c.dentryOf(first)), text, strings.Join(list, ", "))
}
