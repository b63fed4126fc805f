package main

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
)

func newPolicyApply(c *cli) *cobra.Command {
	var inherit, noWait bool
	cmd := &cobra.Command{
		Use:   "apply PATH",
		Short: "Store what files hold already as their policies say",
		Long: `apply has the data of the files at and below PATH that is stored in another way than their policies say written anew, and
waits for it. Files can be read and written meanwhile. Each file keeps the policy that it has; with --inherit all files and directories
below PATH first get the policy of PATH. Only the owner of a file and root may do this.

An interruption ends it: what is done stays done, and costs nothing when apply is run again. With --no-wait the cluster goes on by
itself, unless another metaserver takes the lead before all is done; 'shoal status' says how much there is left. Data that a client
wrote just now waits until that client has given up the chunk that it is in, which it does some 30 s after its last write there.`,
		Example: `  shoal policy set shoal:/archive ec=4+2
  shoal policy apply --inherit shoal:/archive`,
		Args: exactly(1, "a path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := remotePath(args[0])
			if err != nil {
				return err
			}
			return c.withFS(cmd.Context(), func(fsys *client.FS) error { return c.applyPolicy(cmd, fsys, path, inherit, noWait) })
		},
	}
	cmd.Flags().BoolVar(&inherit, "inherit", false, "first give everything below PATH the policy of PATH")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "start it, and do not wait for its end")
	return cmd
}

func (c *cli) applyPolicy(cmd *cobra.Command, fsys *client.FS, path string, inherit, noWait bool) error {
	ctx := cmd.Context()
	t := remoteTree{fsys}
	var failed failures
	g := c.newGauge()
	defer g.stop()
	w := &applyWatch{show: t.Show}
	p, err := fsys.ApplyPolicy(ctx, path, client.ApplyOptions{
		Inherit: inherit, NoWait: noWait,
		Failed: func(err error) { failed.addUnlessDone(ctx, atPath(t, path, err)) },
		Progress: func(p client.ApplyProgress) {
			g.show(t.Show(path), p.Total-p.Left, p.Total, fmt.Sprintf("%s of %s, %d of %s", humanSize(p.Total-p.Left), humanSize(p.Total), p.Done, plural(p.Files, "file")))
			if say := w.look(time.Now(), p); say != "" {
				c.notice(cmd, say)
			}
		},
	})
	g.stop()
	reported := c.report(cmd, &failed)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("interrupted: %s of %s have yet to be written anew, as far as is known; run it again to go on", humanSize(p.Left), humanSize(p.Total))
	case err != nil:
		return atPath(t, path, err)
	}
	say := fmt.Sprintf("%s: %s as the policy says; %s written anew", t.Show(path), plural(p.Done, "file"), humanSize(p.Total))
	if noWait {
		say = fmt.Sprintf("%s: %s being looked at, and written anew where the policy says", t.Show(path), plural(p.Files, "file"))
	}
	if err := c.announce(say); err != nil {
		return err
	}
	return reported
}

// atPath names the path that an error of the SDK is about as paths are written here, and the given one if it names none.
func atPath(t tree, path string, err error) error {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		path, err = pe.Path, pe.Err
	}
	return at(t, path, err)
}

// applyWatch notices when nothing moves.
type applyWatch struct {
	show  func(path string) string
	last  client.ApplyProgress
	moved time.Time
	told  string
}

// look takes what the cluster says at a time, and returns what there is to say.
func (w *applyWatch) look(now time.Time, p client.ApplyProgress) string {
	why := p.Waiting
	if p.WaitingFor != "" {
		why = w.show(p.WaitingFor) + ": " + why
	}
	p.Waiting, p.WaitingFor = "", ""
	if w.moved.IsZero() || p != w.last {
		w.last, w.moved, w.told = p, now, ""
	}
	if why == "" || why == w.told || now.Sub(w.moved) < stallAfter {
		return ""
	}
	w.told = why
	return fmt.Sprintf("%s left: %s", humanSize(p.Left), why)
}
