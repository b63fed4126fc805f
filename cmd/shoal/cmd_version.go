package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersion(c *cli) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show which shoal this is",
		Long:  "version shows which shoal this is, as \"shoal --version\" does.",
		Args:  exactly(0, "nothing"),
		RunE: func(*cobra.Command, []string) error {
			v := thisVersion()
			if asJSON {
				return writeJSON(c.out, v)
			}
			_, err := fmt.Fprintln(c.out, v)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

type version struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the source, with "+dirty" where that was changed
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (v version) String() string {
	s := "shoal " + v.Version
	if v.Revision != "" {
		s += " (" + v.Revision + ")"
	}
	return s + ", " + v.Go + ", " + v.Platform
}

func thisVersion() version {
	v := version{Version: "development", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if m := info.Main.Version; m != "" && m != "(devel)" {
		v.Version = m
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			v.Revision = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true" && v.Revision != "":
			v.Revision += "+dirty"
		}
	}
	return v
}
