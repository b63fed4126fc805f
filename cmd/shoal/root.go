package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/internal/cluster"
	"github.com/shoalfs/shoalfs/internal/fserr"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// cli is one run of the program: where it reads and writes, and the flags that every command has.
type cli struct {
	in       io.Reader
	out, err io.Writer
	cluster  string
	timeout  time.Duration // for reaching the cluster; 0: as long as it takes
	logLevel string
	log      logWriter
}

// logWriter is where log lines go: standard error, or above a progress bar while there is one.
type logWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *logWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (l *logWriter) redirect(w io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w = w
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// errReported ends a command that has failed and has said so on standard error already.
var errReported = errors.New("failed")

// run is the program: it returns the exit status.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	c := &cli{in: in, out: out, err: errOut}
	c.log.redirect(errOut)
	root := newRoot(c)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	cmd, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errReported):
		return exitFailed
	}
	c.complain(cmd, err)
	var usage usageError
	if errors.As(err, &usage) {
		_, _ = fmt.Fprintf(c.err, "Run '%s --help' for usage.\n", cmd.CommandPath()) // nowhere left to complain to
		return exitUsage
	}
	return exitFailed
}

// complain writes an error to standard error, a line each for errors joined together.
func (c *cli) complain(cmd *cobra.Command, err error) {
	for line := range strings.SplitSeq(strings.TrimRight(describe(err), "\n"), "\n") {
		// Names of files are quoted where they need it; what else may command a terminal came with other errors.
		_, _ = fmt.Fprintf(c.err, "%s: %s\n", cmd.CommandPath(), shown(line, true)) // nowhere left to complain to
	}
}

func newRoot(c *cli) *cobra.Command {
	var showVersion bool
	root := &cobra.Command{
		Use:   "shoal",
		Short: "A distributed file system: mount it, copy to it, run it",
		Long: `shoal runs and uses shoalfs, a distributed file system.

  shoal up --mount DIR    runs a whole cluster in this process and mounts it
  shoal cp -r DIR shoal:/ copies a directory into it
  shoal status            tells how it is

Paths in the cluster are written shoal:/path; all others are local. The cluster is the one that --cluster or the
environment variable SHOAL_CLUSTER names.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			msg := fmt.Sprintf("unknown command %q", args[0])
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				msg += fmt.Sprintf("; did you mean %s?", strings.Join(s, " or "))
			}
			return usageError{errors.New(msg)}
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if showVersion {
				_, err := fmt.Fprintln(c.out, thisVersion())
				return err
			}
			if err := cmd.Help(); err != nil {
				return err
			}
			return usagef("a command is missing")
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(&cobra.Command{Use: "help", Short: "Show what a command does, and its flags", Hidden: true, Args: anyArgs, RunE: func(_ *cobra.Command, args []string) error {
		cmd, rest, err := root.Find(args)
		if err != nil || len(rest) > 0 {
			return usagef("no help for %q: there is no such command", strings.Join(args, " "))
		}
		return cmd.Help()
	}})
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{flagError(err)} })
	root.Flags().BoolVar(&showVersion, "version", false, "show which shoal this is")
	fl := root.PersistentFlags()
	fl.StringVar(&c.cluster, "cluster", defaultCluster(), "metaservers to connect to, HOST:PORT[,HOST:PORT…] (environment: SHOAL_CLUSTER)")
	fl.DurationVar(&c.timeout, "timeout", 10*time.Second, "how long to wait for the cluster to let us in; 0: for ever")
	fl.StringVar(&c.logLevel, "log-level", "", "debug, info, warn or error (default: info for servers, else warn)")
	root.AddCommand(
		newUp(c), newMeta(c), newChunk(c), newMount(c), newUmount(c),
		newCp(c), newMv(c), newRm(c), newLs(c), newCat(c), newMkdir(c), newStat(c), newDu(c), newDf(c), newTree(c),
		newStatus(c), newServers(c), newPolicy(c), newScrub(c), newFsck(c), newCompletion(c), newVersion(c),
	)
	guardTexts(root)
	return root
}

func defaultCluster() string {
	if s := os.Getenv("SHOAL_CLUSTER"); s != "" {
		return s
	}
	return cluster.DefaultListen
}

// logger logs at the level asked for, or at fallback.
func (c *cli) logger(fallback slog.Level) (*slog.Logger, error) {
	level := fallback
	if c.logLevel != "" {
		if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
			return nil, usagef("--log-level %q: want debug, info, warn or error", c.logLevel)
		}
	}
	return slog.New(slog.NewTextHandler(&c.log, &slog.HandlerOptions{Level: level})), nil
}

// dial connects to the cluster. Whoever calls it closes the FS.
func (c *cli) dial(ctx context.Context, opts ...client.Option) (*client.FS, error) {
	log, err := c.logger(slog.LevelWarn)
	if err != nil {
		return nil, err
	}
	return connect(ctx, c.cluster, c.timeout, append([]client.Option{client.WithLogger(log)}, opts...)...)
}

func connect(ctx context.Context, addrs string, timeout time.Duration, opts ...client.Option) (*client.FS, error) {
	if err := checkAddresses(addrs); err != nil {
		return nil, err
	}
	dialing := ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		dialing, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	fsys, err := client.Dial(dialing, addrs, opts...)
	if err != nil && ctx.Err() == nil && dialing.Err() != nil {
		return nil, unanswered(err, addrs, timeout)
	}
	return fsys, err
}

// unanswered says what the cluster is missing that did not let us in.
func unanswered(err error, addrs string, timeout time.Duration) error {
	var refused *client.ConnectError
	var followers, others []string
	if errors.As(err, &refused) {
		for _, p := range refused.Metaservers {
			if p.Follower {
				followers = append(followers, p.Address)
			} else {
				others = append(others, p.String())
			}
		}
	}
	causes := ""
	switch {
	case len(others) == 1 && refused.Metaservers[0].Address == addrs:
		causes = " (" + refused.Metaservers[0].Reason + ")"
	case len(others) > 0:
		causes = " (" + strings.Join(others, ", ") + ")"
	}
	switch len(followers) {
	case 0:
		return fmt.Errorf("no cluster answers at %s within %v%s: is it running (shoal up), and is the address right (--cluster)?", addrs, timeout, causes)
	case 1:
		return fmt.Errorf("the metaserver at %s answers, but no leader is known%s: are most of the metaservers up and reachable?", followers[0], causes)
	}
	return fmt.Errorf("the metaservers at %s answer, but no leader is known%s: are most of the metaservers up and reachable?", strings.Join(followers, ", "), causes)
}

// withFS runs fn with a connection to the cluster.
func (c *cli) withFS(ctx context.Context, fn func(*client.FS) error) error {
	fsys, err := c.dial(ctx)
	if err != nil {
		return err
	}
	return errors.Join(fn(fsys), fsys.Close())
}

// describe says what went wrong the way command-line tools do: the path first, then the reason.
func describe(err error) string {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.As(err, &path) && err == error(path):
		return quoted(path.Path) + ": " + reason(path.Err)
	case errors.As(err, &link) && err == error(link):
		return quoted(link.Old) + " to " + quoted(link.New) + ": " + reason(link.Err)
	}
	return withoutRPC(err.Error())
}

var rpcPrefix = regexp.MustCompile(`rpc error: code = \w+ desc = `)

// withoutRPC takes out how gRPC introduces an error: that is for programmers.
func withoutRPC(msg string) string { return rpcPrefix.ReplaceAllLiteralString(msg, "") }

// reason strips what names the operation and the path from an error, for those who name the path themselves.
func reason(err error) string {
	var path *fs.PathError
	var link *os.LinkError
	var call *os.SyscallError
	said, detailed := err.(*fserr.Error)
	switch {
	case detailed && said.Errno == syscall.EINVAL && said.Detail != "":
		return said.Detail // which says what is wrong; "invalid argument" adds nothing
	case errors.As(err, &path):
		return reason(path.Err)
	case errors.As(err, &link):
		return reason(link.Err)
	case errors.As(err, &call):
		return reason(call.Err)
	case errors.Is(err, syscall.ENOENT):
		return "no such file or directory"
	}
	return withoutRPC(err.Error())
}

// Positional arguments, with errors that count as usage errors.
func anyArgs(*cobra.Command, []string) error { return nil }

func exactly(n int, what string) cobra.PositionalArgs { return between(n, n, what) }

func between(low, high int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < low:
			return usagef("%s is missing", what)
		case high >= 0 && len(args) > high:
			return usagef("unexpected argument %q", args[high])
		}
		return nil
	}
}

func atLeast(n int, what string) cobra.PositionalArgs { return between(n, -1, what) }
