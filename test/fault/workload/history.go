package workload

// History is what a client did, as its journal says.
type History struct {
	tail  tail
	files map[int64]*file
	paths map[string][]binding
	tree  *Tree // of a client that changes names
	begun *Entry
	Stats Stats
}

// file is a regular file, whatever its name is and has been.
type file struct {
	id     int64
	writes []write
	// The first so many writes are seen by whoever opens the file from now on.
	published int
	// failed: an operation on it failed. Nothing that it may have done counts as published any more.
	failed bool
}

type write struct {
	seq, off, len int64
	stamp         Stamp
}

// binding is what a name was made to mean.
type binding struct {
	file  *file // nil: nothing
	acked bool
}

// OpenHistory reads a journal; Refresh reads what is added to it.
func OpenHistory(path string) (*History, error) {
	h := &History{tail: tail{path: path}, files: map[int64]*file{}, paths: map[string][]binding{}, tree: NewTree()}
	return h, h.Refresh()
}

// Refresh reads what was added.
func (h *History) Refresh() error { return h.tail.next(h.add) }

func (h *History) add(e *Entry) {
	h.Stats.add(e, h.begun)
	if e.Op == opFound {
		return
	}
	if e.Done {
		h.begun = nil
		h.end(e)
	} else {
		h.begun = e
		h.begin(e)
	}
}

// begin notes what may be so from now on.
func (h *History) begin(e *Entry) {
	f := h.files[e.File]
	switch e.Op {
	case opCreate:
		f = &file{id: e.File}
		h.files[e.File] = f
		h.bind(e.Path, f)
	case opWrite, opAppend:
		f.writes = append(f.writes, write{e.Seq, e.Off, e.Len, e.Stamp})
	case opRename:
		if f != nil { // else it is of the tree
			h.bind(e.Path, nil)
			h.bind(e.To, f)
		}
	case opRemove:
		if f != nil {
			h.bind(e.Path, nil)
		}
	}
}

func (h *History) bind(path string, f *file) {
	h.paths[path] = append(h.paths[path], binding{file: f})
}

// end notes what is so from now on. An operation that failed may have been done or not.
func (h *History) end(e *Entry) {
	f := h.files[e.File]
	if f == nil {
		h.tree.Replay(e)
		return
	}
	if e.Errno != 0 {
		f.failed = true
		return
	}
	switch e.Op {
	case opSync, opClose:
		if !f.failed {
			f.published = len(f.writes)
		}
	case opCreate, opRemove:
		h.ack(e.Path)
	case opRename:
		h.ack(e.Path)
		h.ack(e.To)
	}
}

func (h *History) ack(path string) {
	b := h.paths[path]
	b[len(b)-1].acked = true
}
