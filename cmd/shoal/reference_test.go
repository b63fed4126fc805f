package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/cli.md anew")

const referenceFile = "../../docs/cli.md"

const referenceHead = `# Command-line reference

Written by ` + "`go test ./cmd/shoal -run TestReference -update`" + ` from the commands' own help; a test checks that it is current.

- Paths in the cluster are written ` + "`shoal:/path`" + `, all others are local, ` + "`-`" + ` is standard input or output where that is said. A local file
  whose name begins with ` + "`shoal:`" + ` is written ` + "`./shoal:…`" + `.
- The exit status is 0 for success, 1 when something failed, and 2 for a command line that makes no sense.
- Errors go to standard error, as ` + "`shoal COMMAND: what: why`" + `. Where one of several things fails the others are still done.
- ` + "`--json`" + `, where something is listed, writes one JSON value; times are in RFC 3339, sizes in bytes.
- Commands that serve write ` + "`ready`" + ` on a line of its own when they do, log to standard error, and stop cleanly at SIGINT and SIGTERM; a
  second signal ends them at once.
`

// reference is docs/cli.md.
func reference() string {
	root := newRoot(&cli{})
	var b strings.Builder
	b.WriteString(referenceHead)
	fmt.Fprintf(&b, "\n## Flags of every command\n\n%s", flagTable(root.PersistentFlags()))
	for _, cmd := range root.Commands() {
		if !cmd.Hidden {
			describeCommand(&b, cmd)
		}
	}
	return b.String()
}

func describeCommand(b *strings.Builder, cmd *cobra.Command) {
	fmt.Fprintf(b, "\n## %s\n\n    %s\n\n", cmd.CommandPath(), strings.TrimSuffix(cmd.UseLine(), " [flags]"))
	text := cmd.Long
	if text == "" {
		text = cmd.Short + "."
	}
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, "  ") {
			line = "  " + line // a code block
		}
		b.WriteString(line + "\n")
	}
	if cmd.Example != "" {
		b.WriteString("\nExamples:\n\n")
		for line := range strings.SplitSeq(cmd.Example, "\n") {
			b.WriteString("    " + strings.TrimPrefix(line, "  ") + "\n")
		}
	}
	if table := flagTable(cmd.LocalNonPersistentFlags()); table != "" {
		b.WriteString("\n" + table)
	}
	for _, sub := range cmd.Commands() {
		if !sub.Hidden {
			describeCommand(b, sub)
		}
	}
}

func flagTable(fs *pflag.FlagSet) string {
	var b strings.Builder
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		usage := strings.ReplaceAll(f.Usage, "|", "\\|")
		switch f.DefValue {
		case "", "false", "0", "[]":
		default:
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(&b, "| %s | %s |\n", name, usage)
	})
	if b.Len() == 0 {
		return ""
	}
	return "| flag | meaning |\n| --- | --- |\n" + b.String()
}

func TestReference(t *testing.T) {
	t.Setenv("SHOAL_CLUSTER", "")
	want := reference()
	if *update {
		if err := os.WriteFile(referenceFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not current: go test ./cmd/shoal -run TestReference -update", referenceFile)
	}
}

// docs/dependencies.md lists what go.mod requires directly, and nothing else.
func TestDependencies(t *testing.T) {
	const list = "../../docs/dependencies.md"
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, "|"); len(cells) > 2 && strings.Contains(cells[1], ".") {
			for name := range strings.SplitSeq(cells[1], ",") {
				listed[strings.TrimSpace(name)] = true
			}
		}
	}
	required := map[string]bool{}
	for line := range strings.Lines(string(mod)) {
		switch f := strings.Fields(line); {
		case !strings.HasPrefix(line, "\t"), strings.HasSuffix(line, "// indirect\n"):
		case len(f) == 2 && !listed[f[0]]:
			t.Errorf("%s lacks %s", list, f[0])
		default: // required, or a tool
			required[f[0]] = true
		}
	}
	for name := range listed {
		if !required[name] && !required[name+"/cmd/staticcheck"] {
			t.Errorf("%s lists %s, which go.mod does not require directly", list, name)
		}
	}
}
