package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// scanners is how many directories are looked through at once: on a cold disk the time goes by waiting.
const scanners = 8

// scan finds all chunks and their lengths.
func (d *Disk) scan() error {
	g := new(errgroup.Group)
	g.SetLimit(scanners)
	for i := range 256 {
		g.Go(func() error { return d.scanDir(i) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if d.cluster().IsZero() && len(d.chunks) > 0 {
		return fmt.Errorf("it holds chunks but belongs to no cluster: %s is not its own", identityName)
	}
	return nil
}

func (d *Disk) scanDir(low int) error {
	dir := filepath.Join(d.path, chunksName, fmt.Sprintf("%02x", low))
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	for _, name := range names {
		if id, err := parseName(name, copySuffix, low); err == nil {
			d.removeAside(filepath.Join(dir, name), id)
			continue
		}
		id, err := parseName(name, suffix, low)
		if err != nil {
			d.log.Warn("a file that is no chunk lies among the chunks; it is left alone", "file", filepath.Join(dir, name), "err", err)
			d.mu.Lock()
			d.foreign++
			d.mu.Unlock()
			continue
		}
		s, err := d.inspect(id)
		if err != nil {
			return err
		}
		d.mu.Lock()
		d.setState(id, s)
		if s.bad {
			d.bad++
		}
		d.mu.Unlock()
	}
	return nil
}

// removeAside removes a copy that was being made when the server stopped: it is in no chunk's place yet.
func (d *Disk) removeAside(path string, id chunk.ID) {
	if err := d.background.Remove(path); err != nil {
		d.ioFailed(err)
		d.log.Warn("an unfinished copy could not be removed", "file", path, "err", err)
		return
	}
	d.log.Info("removed an unfinished copy of a chunk", "chunk", id)
}

func parseName(name, suffix string, low int) (chunk.ID, error) {
	hex, ok := strings.CutSuffix(name, suffix)
	if !ok {
		return 0, fmt.Errorf("its name does not end in %s", suffix)
	}
	id, err := chunk.ParseID(hex)
	if err == nil && int(uint8(id)) != low {
		err = fmt.Errorf("chunk %v belongs to another directory", id)
	}
	return id, err
}

// inspect reads what a chunk file holds. One that was being written is sealed, if it is whole: after that it takes appends
// no more, and opens at once. An error says that the process lacks something, and nothing about the chunk.
func (d *Disk) inspect(id chunk.ID) (state, error) {
	f, err := d.background.Open(d.pathOf(id))
	if lacking(err) {
		return state{}, err
	}
	if err != nil {
		return d.badState(id, 0, err), nil
	}
	defer f.Close() // nothing that was not synced is written through it
	if length, ok := d.sealedLength(f, id); ok {
		return state{length: uint32(length)}, nil
	}
	l, err := load(f, d.cluster(), id)
	if lacking(err) {
		return state{}, err
	}
	if err != nil {
		return d.badState(id, 0, err), nil
	}
	if l.bad != nil {
		return d.badState(id, l.length, l.bad), nil
	}
	if !l.sealed && l.length > 0 {
		d.log.Info("recovered a chunk that was being written", "chunk", id, "length", l.length, "file", l.size)
		d.cutZeros(f, id, l)
		// That it survived the end of a process says nothing about a loss of power.
		if err := errors.Join(d.syncFile(f), d.background.SyncDir(d.dirOf(id))); err != nil {
			d.ioFailed(err)
			return d.badState(id, l.length, err), nil
		}
		l.sealed = l.dense && d.sealRecovered(f, id, l)
	}
	return state{length: uint32(l.length), loose: !l.sealed}, nil
}

// sealedLength is the length of a chunk with a valid trailer, whose index is read when it is needed.
func (d *Disk) sealedLength(f File, id chunk.ID) (uint64, bool) {
	size, err := f.Size()
	if err != nil || size < headerSize+recordSize+trailerSize {
		return 0, false
	}
	var b [trailerSize]byte
	if readFull(f, b[:], size-trailerSize) != nil {
		return 0, false
	}
	t, err := decodeTrailer(b[:], identity(d.cluster(), id), size)
	return t.length, err == nil
}

// cutZeros cuts off what was written ahead of the records, so that nothing lies in the file that no checksum covers. A torn record
// stays.
func (d *Disk) cutZeros(f File, id chunk.ID, l *loaded) {
	end := l.endOf(len(l.frames))
	buf := make([]byte, min(aheadSize, l.size-end))
	for at := end; at < l.size; at += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), l.size-at)]
		if readFull(f, buf, at) != nil || !bytes.Equal(buf, zeros[:len(buf)]) {
			return
		}
	}
	if end == l.size {
		return
	}
	if err := f.Truncate(end); err != nil {
		d.log.Warn("what was written ahead of a chunk could not be cut off", "chunk", id, "err", err)
		return
	}
	l.size = end
}

// sealRecovered writes an index behind everything that is in the file, which is on disk; a torn record before it stays. When that
// fails, the chunk is as good as before: it will be walked again.
func (d *Disk) sealRecovered(f File, id chunk.ID, l *loaded) bool {
	err := d.admit(maxRecordHead + maxIndex)
	if err == nil {
		err = f.WriteBuffers([][]byte{appendSeal(nil, d.cluster(), id, l.salt, &l.index, l.size)}, l.size)
	}
	if err == nil {
		err = d.syncFile(f)
	}
	if err != nil {
		d.ioFailed(err)
		d.log.Warn("a recovered chunk could not be sealed", "chunk", id, "err", err)
	}
	return err == nil
}

func (d *Disk) badState(id chunk.ID, length uint64, err error) state {
	d.readFailed(id, err)
	d.log.Error("a chunk file is damaged; it is kept, but has to be copied from another server", "chunk", id, "err", err)
	return state{length: uint32(length), bad: true}
}
