package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/internal/httpd"
)

// webFlags are those of every process that can serve HTTP.
type webFlags struct {
	listen string
	debug  bool
}

func (w *webFlags) add(cmd *cobra.Command, listen string) {
	cmd.Flags().StringVar(&w.listen, "http", listen, "HOST:PORT of metrics, health and status page; empty: none")
	cmd.Flags().BoolVar(&w.debug, "debug", false, "serve profiles at /debug/pprof of the --http address")
}

// check finds a mistake in the address before anything is touched.
func (w *webFlags) check() error {
	if w.listen == "" {
		return nil
	}
	return checkAddress(w.listen, true)
}

// open listens for HTTP if it was asked for, so that a port in use is known before anything else is touched. Requests are
// answered from start on: health and page may use what is made between the two.
func (w *webFlags) open(log *slog.Logger, reg *prometheus.Registry, health func() error, page http.Handler) (*web, error) {
	if w.listen == "" {
		return &web{}, nil
	}
	if err := w.check(); err != nil {
		return nil, err
	}
	s, err := httpd.New(httpd.Config{Listen: w.listen, Gather: reg, Health: health, Page: page, Debug: w.debug, Logger: log})
	if err != nil {
		return nil, err
	}
	return &web{s}, nil
}

// web is an HTTP server, or none.
type web struct{ s *httpd.Server }

func (w *web) start() {
	if w.s != nil {
		w.s.Start()
	}
}

func (w *web) Close() error {
	if w.s == nil {
		return nil
	}
	return w.s.Close()
}

// url is where the status page is, "" if there is none.
func (w *web) url() string {
	if w.s == nil {
		return ""
	}
	return "http://" + w.s.Address() + "/"
}

// part is a server of the cluster.
type part interface {
	Run(context.Context) error
	Ready() <-chan struct{}
	Listening() string // host:port, with the port that it got
	Close() error
}

// listenError names the flag to change where a port is taken.
func listenError(err error, listen string) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s is in use: stop what listens there, or choose another address with --listen", listen)
	}
	return err
}

// runPart runs a server until ctx ends, and says when it serves. advertised is where others reach it, if it is not known to
// be where it listens.
func (c *cli) runPart(ctx context.Context, log *slog.Logger, p part, advertised string, w *web) error {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- p.Run(running) }()
	lines := []string{"listen " + p.Listening()}
	if advertised != "" && advertised != p.Listening() {
		lines = append(lines, "reached at "+advertised)
	}
	if u := w.url(); u != "" {
		lines = append(lines, "http   "+u)
	}
	for _, line := range lines {
		if err := c.announce(line); err != nil {
			return errors.Join(err, p.Close())
		}
	}
	ready := p.Ready()
	for {
		select {
		case <-ready:
			ready = nil
			if err := c.announce("ready"); err != nil {
				stop()
				return errors.Join(err, <-ended, p.Close())
			}
		case err := <-ended:
			if err == nil {
				err = errors.New("the server ended by itself")
			}
			return errors.Join(err, p.Close())
		case <-ctx.Done():
			log.Info("stopping; a second signal ends at once")
			stop()
			return errors.Join(withoutCancel(<-ended), p.Close())
		}
	}
}

// withoutCancel drops the error that only says that we stopped it.
func withoutCancel(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// announce writes a line to standard output at once.
func (c *cli) announce(line string) error {
	_, err := fmt.Fprintln(c.out, line)
	return err
}
