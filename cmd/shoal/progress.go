package main

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
)

// meter shows how far a copy is. A nil *meter shows nothing.
type meter struct {
	progress     *mpb.Progress
	bar          *mpb.Bar
	files, total atomic.Int64
	bytes        atomic.Int64 // expected
}

// newMeter draws on w.
func newMeter(w io.Writer) *meter {
	m := &meter{progress: mpb.New(mpb.WithOutput(w), mpb.WithAutoRefresh())}
	m.bar = m.progress.New(0, mpb.BarStyle().Rbound("|").Lbound("|"),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string {
			return fmt.Sprintf("%d/%d files ", m.files.Load(), m.total.Load())
		})),
		mpb.AppendDecorators(
			decor.CountersKibiByte(" % .1f / % .1f"),
			decor.AverageSpeed(decor.SizeB1024(0), "  % .1f"),
		),
	)
	return m
}

// expect adds a file to what there is to do.
func (m *meter) expect(e *entry) {
	if m == nil {
		return
	}
	m.total.Add(1)
	if e.isRegular() {
		m.bar.SetTotal(m.bytes.Add(e.Size), false)
	}
}

func (m *meter) fileDone() {
	if m != nil {
		m.files.Add(1)
	}
}

// reader counts what is read through it.
func (m *meter) reader(r io.Reader) io.Reader {
	if m == nil {
		return r
	}
	return meterReader{r, m}
}

type meterReader struct {
	io.Reader
	m *meter
}

func (r meterReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.m.bar.IncrBy(n)
	return n, err
}

// stop leaves the bar as it is and ends its drawing.
func (m *meter) stop() {
	if m == nil {
		return
	}
	m.bar.Abort(false)
	m.progress.Wait()
}

// isTerminal tells whether w is a terminal, and how many columns it has.
func isTerminal(w io.Writer) (columns int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, false
	}
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	return int(ws.Col), true
}
