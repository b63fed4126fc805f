// Package fuse mounts a cluster as a directory. It adapts the client's inode API to the kernel's protocol and has no
// file-system logic of its own.
//
// What the kernel may cache is decided here. Attributes are cached as long as the client's lease lasts and dropped when it
// is revoked. Names are cached for a second in directories that only this client changes, and in the client alone
// elsewhere. Pages are kept across opens while the file's data version is the one that they were read at, so that data is
// close-to-open between mounts. See kernelCache.
//
// The client.FS of a mount should serve that mount only: what a program changes through the same FS beside the mount, the
// kernel learns late.
package fuse

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/shoalfs/shoalfs/client"
)

// Defaults of Options.
const (
	DefaultMaxWrite  = 1 << 20 // bytes; the most that Linux allows by default
	DefaultReadAhead = 4 << 20 // bytes
	maxBackground    = 64      // requests for readahead and direct I/O that the kernel has outstanding
)

// closeTimeout bounds how long files that are open when the mount goes away may take to be committed.
const closeTimeout = 10 * time.Second

// Options of a mount. The zero value is what most want.
type Options struct {
	Subdir string // directory of the cluster that becomes the root of the mount; empty: the cluster's root
	// AllowOther lets every user in; the kernel then checks permissions too. Without it only the user who mounts gets in. An
	// ordinary user needs user_allow_other in /etc/fuse.conf for it.
	AllowOther bool
	ReadOnly   bool
	Source     string // what mount(8) and df(1) show, by default "shoal"
	ReadAhead  int    // bytes that the kernel reads ahead; only root can raise it above the system's limit
	Debug      bool   // log every request, at level debug
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// Server is a mount.
type Server struct {
	dir   string
	conn  string // number of the connection under /sys/fs/fuse/connections
	raw   *gofuse.Server
	fs    *filesystem
	log   *slog.Logger
	stop  context.CancelFunc
	done  chan struct{}
	clean func() // gives up the metrics
}

// Mount mounts the file system on an existing directory and returns when the mount serves. ctx bounds the mounting only.
// The caller closes fsys after Wait has returned.
//
// The process that serves a mount, or a server of its cluster, must not map the mount's files for writing: munmap(2) stores what
// is dirty with the lock of the process's memory held, which storing it may need.
func Mount(ctx context.Context, fsys *client.FS, dir string, o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.ReadAhead <= 0 {
		o.ReadAhead = DefaultReadAhead
	}
	if o.Source == "" {
		o.Source = "shoal"
	}
	dir, err := checkMountPoint(dir)
	if err != nil {
		return nil, err
	}
	root, err := findRoot(ctx, fsys.Low(), fsys.Cred(), o.Subdir)
	if err != nil {
		return nil, fmt.Errorf("the directory to mount, %q: %w", o.Subdir, err)
	}
	m, unregister, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("metrics of the mount: %w", err)
	}
	base, stop := context.WithCancel(context.Background())
	f := &filesystem{RawFileSystem: gofuse.NewDefaultRawFileSystem(), ctx: base, low: fsys.Low(), root: root, log: o.Logger, metrics: m, unmounted: make(chan struct{})}
	s := &Server{dir: dir, fs: f, log: o.Logger, stop: stop, done: make(chan struct{}), clean: unregister}
	var raw *gofuse.Server
	f.kernel = newKernelCache(func(ino client.Ino) gofuse.Status { return raw.InodeNotify(f.node(ino), -1, 0) })
	if raw, err = mountRaw(f, dir, &o); err != nil {
		stop()
		unregister()
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	s.raw = raw
	f.low.Observe(f.kernel)
	go s.serve()
	if err := raw.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount on %s: %w", dir, err), s.Unmount())
	}
	if m := findMount(dir); m != nil {
		s.conn = m.minor
		m.setReadAhead(o.ReadAhead)
	}
	return s, nil
}

// findRoot walks to the directory that is mounted.
func findRoot(ctx context.Context, low *client.Low, cred client.Cred, subdir string) (client.Ino, error) {
	ino := client.Root
	for name := range strings.SplitSeq(strings.Trim(path.Clean("/"+subdir), "/"), "/") {
		if name == "" {
			break
		}
		a, err := low.Lookup(ctx, cred, ino, name)
		if err != nil {
			return 0, err
		}
		ino = a.Ino
	}
	a, err := low.GetAttr(ctx, ino)
	if err != nil {
		return 0, err
	}
	if !a.IsDir() {
		return 0, syscall.ENOTDIR
	}
	return ino, nil
}

// serve answers the kernel until the mount is gone.
func (s *Server) serve() {
	s.raw.Serve()
	close(s.fs.unmounted)
	s.fs.kernel.close()
	s.fs.lost.held.Wait()
	ctx, cancel := context.WithTimeout(s.fs.ctx, closeTimeout)
	s.fs.releaseAll(ctx)
	cancel()
	s.stop()
	s.clean()
	close(s.done)
}

// releaseAll commits and closes what was open when the mount went away. The kernel says nothing any more then.
func (f *filesystem) releaseAll(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(16)
	for fh := range f.files.all() {
		o, ok := f.files.remove(fh)
		if !ok {
			continue
		}
		g.Go(func() error { return f.release(ctx, o) })
	}
	_ = g.Wait() // each is logged
}

// flushAll commits what is open.
func (f *filesystem) flushAll(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(16)
	for _, o := range f.files.all() {
		if o.flags&syscall.O_ACCMODE == syscall.O_RDONLY {
			continue
		}
		g.Go(func() error {
			err := o.h.Flush(ctx)
			if err != nil {
				f.log.Error("an open file could not be written back", "inode", uint64(o.ino), "err", err)
			}
			return err
		})
	}
	_ = g.Wait() // each is logged
}

// Dir is where the mount is, an absolute path.
func (s *Server) Dir() string { return s.dir }

// Wait returns when the mount is gone, by Unmount or from outside, and all that was open is committed.
func (s *Server) Wait() error {
	<-s.done
	return nil
}

// Done is closed when Wait would return.
func (s *Server) Done() <-chan struct{} { return s.done }

// Unmount takes the mount away and waits until all that was written is committed. Where programs still use the mount, it
// is taken out of the directory tree at once, and what these have open fails from then on; so it does where other mount
// namespaces got a copy of the mount.
func (s *Server) Unmount() error {
	select {
	case <-s.done:
		return nil
	default:
	}
	err := unmountPatiently(s.dir)
	switch {
	case errors.Is(err, syscall.EBUSY):
		s.log.Warn("the mount is in use and is detached; what is still open there fails from now on", "dir", s.dir)
		s.commitOpen()
		err = unmount(s.dir, true)
	case err == nil:
		select {
		case <-s.fs.unmounted:
			<-s.done
			return nil
		case <-time.After(elsewhereAfter):
		}
		if !s.mounted() { // files that were closed are still being committed
			<-s.done
			return nil
		}
		s.log.Warn("another mount namespace has the mount, too, such as that of a container; it fails there from now on", "dir", s.dir)
		s.commitOpen()
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", s.dir, err)
	}
	if s.mounted() && !s.abort() {
		return nil // the connection ends with this process
	}
	<-s.done
	return nil
}

// elsewhereAfter is how long the kernel may take to say that the last mount of the file system is gone.
const elsewhereAfter = 2 * time.Second

// commitOpen commits what is open before it is cut off.
func (s *Server) commitOpen() {
	ctx, cancel := context.WithTimeout(s.fs.ctx, closeTimeout)
	defer cancel()
	s.fs.flushAll(ctx)
}

// mounted tells whether the kernel has the file system mounted, wherever that is. When it has not, the number of the connection may be
// that of another mount already.
func (s *Server) mounted() bool { return s.raw.InodeNotify(gofuse.FUSE_ROOT_ID, -1, 0).Ok() }

// abort ends the connection to the kernel of a detached mount, which otherwise lasts until the last program has closed its
// files there, and says whether it could.
func (s *Server) abort() bool {
	return s.conn != "" && os.WriteFile("/sys/fs/fuse/connections/"+s.conn+"/abort", []byte("1"), 0) == nil
}

// requestLog is where go-fuse logs: requests if Debug is set, and else only what is wrong.
func requestLog(o *Options) *log.Logger {
	level := slog.LevelWarn
	if o.Debug {
		level = slog.LevelDebug
	}
	return slog.NewLogLogger(o.Logger.Handler(), level)
}
