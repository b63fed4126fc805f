package fault

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/shoalfs/shoalfs/test/fault/workload"
)

// Result is what the clients of a load say that happened.
type Result struct {
	Clients []ClientResult
	Report  *workload.Report // of the checker
}

// ClientResult is what one client says.
type ClientResult struct {
	Name string
	workload.Stats
}

// Results reads the journals of all clients, and a checker's report that was made before.
func (l *Load) Results(r *workload.Report) (*Result, error) {
	res := &Result{Report: r}
	for _, cl := range l.Clients {
		h, err := workload.OpenHistory(cl.Journal)
		if err != nil {
			return nil, err
		}
		res.Clients = append(res.Clients, ClientResult{cl.Name(), h.Stats})
	}
	return res, nil
}

// errors lists those that the client saw.
func (c *ClientResult) errors() (out []string) {
	for _, e := range c.Stats.Errors {
		out = append(out, c.Name+": "+e)
	}
	return out
}

// Wrong lists what clients and checker found lost or wrong.
func (r *Result) Wrong() (out []string) {
	for _, c := range r.Clients {
		for _, f := range c.Stats.Found {
			out = append(out, c.Name+": "+f)
		}
	}
	if r.Report != nil {
		for _, p := range r.Report.Problems {
			out = append(out, "the checker: "+p.String())
		}
	}
	return out
}

// Operations counts those that were acknowledged to all clients.
func (r *Result) Operations() (n int64) {
	for _, c := range r.Clients {
		n += c.Stats.Operations
	}
	return n
}

// String is a table with a line for each client.
func (r *Result) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "client\toperations\tread MiB\twritten MiB\tfsyncs\terrors\tlongest stall\t")
	for _, c := range r.Clients {
		stall := ""
		if c.Stall > 0 {
			stall = fmt.Sprintf("%v (%s)", c.Stall.Round(time.Millisecond), c.Stalled)
		}
		fmt.Fprintf(w, "%s\t%d\t%.1f\t%.1f\t%d\t%d\t%s\t\n", c.Name, c.Stats.Operations, mib(c.Read), mib(c.Written), c.Synced, len(c.Stats.Errors), stall)
	}
	_ = w.Flush() // to memory
	if r.Report != nil {
		fmt.Fprintf(&b, "checked %d files of %.1f MiB and %d names: %d problems", r.Report.Files, mib(r.Report.Bytes), r.Report.Names, len(r.Report.Problems))
	}
	return b.String()
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// some joins the first of many messages, and what they begin with.
func some(messages []string) string {
	const most, length = 20, 500
	var out []string
	for i, m := range messages {
		if i == most {
			out = append(out, fmt.Sprintf("… and %d more", len(messages)-most))
			break
		}
		if m = strings.ReplaceAll(m, "\n", "; "); len(m) > length {
			m = m[:length] + "…"
		}
		out = append(out, m)
	}
	return strings.Join(out, "\n")
}
