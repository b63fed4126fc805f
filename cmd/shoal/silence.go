package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/metaserver/liveness"
)

// silence is how long chunk servers may be silent.
type silence struct{ suspect, dead time.Duration }

func (s *silence) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.DurationVar(&s.suspect, "suspect-after", liveness.DefaultSuspectAfter, "silence after which a chunk server gets nothing new, and is read from last")
	f.DurationVar(&s.dead, "dead-after", liveness.DefaultDeadAfter, "silence after which what a chunk server holds is made anew on others")
}

func (s silence) check() error {
	const least = 100 * time.Millisecond
	if s.suspect < least || s.dead < s.suspect {
		return usagef("--suspect-after %v --dead-after %v: want at least %v, and death no earlier than suspicion", s.suspect, s.dead, least)
	}
	return nil
}
