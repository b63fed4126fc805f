package main

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// gauge shows on a terminal how far the cluster is with something, a bar for each part of it. A nil *gauge shows nothing. It
// is for one goroutine.
type gauge struct {
	c        *cli
	progress *mpb.Progress
	bars     map[string]*gaugeBar
}

type gaugeBar struct {
	bar  *mpb.Bar
	text atomic.Pointer[string]
}

// newGauge draws on standard error if that and standard output are terminals, else it is nil.
func (c *cli) newGauge() *gauge {
	for _, w := range []io.Writer{c.out, c.err} {
		if _, ok := isTerminal(w); !ok {
			return nil
		}
	}
	g := &gauge{c: c, progress: mpb.New(mpb.WithOutput(c.err), mpb.WithAutoRefresh()), bars: map[string]*gaugeBar{}}
	c.log.redirect(g.progress)
	return g
}

// show sets the bar of that name, with a text behind it. A total of 0 is one that is not known.
func (g *gauge) show(name string, done, total uint64, text string) {
	if g == nil || g.progress == nil {
		return
	}
	b := g.bars[name]
	if b == nil {
		b = &gaugeBar{}
		b.text.Store(&text)
		b.bar = g.progress.New(0, mpb.BarStyle().Rbound("|").Lbound("|"),
			mpb.PrependDecorators(decor.Name(name+" ", decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return " " + *b.text.Load() })))
		g.bars[name] = b
	}
	b.text.Store(&text)
	b.bar.SetTotal(int64(total), false)
	b.bar.SetCurrent(int64(min(done, total)))
}

// println writes a line to w, or above the bars if there are any.
func (g *gauge) println(w io.Writer, line string) error {
	if g != nil && g.progress != nil {
		w = g.progress
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

// stop leaves the bars as they are and ends their drawing. It may be called again.
func (g *gauge) stop() {
	if g == nil || g.progress == nil {
		return
	}
	g.c.log.redirect(g.c.err)
	for _, b := range g.bars {
		b.bar.Abort(false)
	}
	g.progress.Wait()
	g.progress = nil
}
