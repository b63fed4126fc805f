// Package httpd is the HTTP side of a shoalfs process, for people and for monitoring: metrics at /metrics, health at
// /healthz, a status page at /, and profiles at /debug/pprof where they are wanted. Everything is read-only, and
// everything that a page needs is in the binary.
package httpd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// How long a request may take to arrive, its answer to leave, and requests in flight to end when the server stops.
const (
	headerTimeout = 5 * time.Second
	idleTimeout   = time.Minute
	stopTimeout   = time.Second
	maxHeader     = 64 << 10 // bytes
)

// NewRegistry makes the registry of a process, with the metrics of the Go runtime and of the process in it.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Config says what is served and where.
type Config struct {
	Listen string              // host:port; port 0 takes a free one
	Gather prometheus.Gatherer // what /metrics shows
	Health func() error        // nil: all is well; an error is answered with 503 and its text, a problem a line
	Page   http.Handler        // what / shows; nil: a list of what there is
	Debug  bool                // serve /debug/pprof
	Logger *slog.Logger        // nil: silent
}

// Server answers HTTP on one address.
type Server struct {
	http     http.Server
	listener net.Listener
	log      *slog.Logger
	serving  sync.WaitGroup
	close    sync.Once
	closeErr error
}

// New listens; requests are answered from Start on.
func New(cfg Config) (*Server, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s is in use: choose another address with --http, or none with --http ''", cfg.Listen)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q (--http): %w", cfg.Listen, err)
	}
	return &Server{
		listener: l,
		log:      cfg.Logger,
		http: http.Server{
			Handler: handler(cfg), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
			ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
		},
	}, nil
}

// Address is where the server listens, with the port that it got.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Start answers requests in the background until Close.
func (s *Server) Start() {
	s.serving.Go(func() {
		if err := s.http.Serve(s.listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("the http server ended", "address", s.Address(), "error", err)
		}
	})
}

// Close stops listening, gives requests in flight a second, and returns when everything has ended.
func (s *Server) Close() error {
	s.close.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := s.http.Shutdown(ctx); err != nil {
			s.closeErr = s.http.Close()
		}
		_ = s.listener.Close() // closed already if it served
		s.serving.Wait()
	})
	return s.closeErr
}

func handler(cfg Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Gather, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { health(w, cfg.Health) })
	page := cfg.Page
	if page == nil {
		page = http.HandlerFunc(index)
	}
	mux.Handle("GET /{$}", page)
	if cfg.Debug {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return secured(mux)
}

// secured keeps a browser from being talked into anything by what a page shows.
func secured(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head := w.Header()
		head.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Cache-Control", "no-store")
		h.ServeHTTP(w, r)
	})
}

func health(w http.ResponseWriter, check func() error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if check != nil {
		if err := check(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = fmt.Fprintln(w, strings.TrimSpace(err.Error())) // the reader may be gone
			return
		}
	}
	_, _ = fmt.Fprintln(w, "ok")
}

func index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "shoalfs\n\n/metrics  Prometheus metrics\n/healthz  health\n")
}
