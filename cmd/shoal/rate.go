package main

import (
	"errors"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// rate is a flag: bytes a second as people write them, or a word for none or any.
type rate struct {
	rateFlag
	bytes int64 // 0: the default; negative: what the word says
	text  string
}

// rateFlag says what a rate is for.
type rateFlag struct {
	name, usage string
	word        string // what stands for a negative number
	def         string // the default, as shown; the server knows it
}

var (
	scrubRate  = rateFlag{"scrub-rate", "bytes a second that a chunk server reads to check all that it holds, for ever, such as 500K, 8M; off: it does not", "off", "8M"}
	repairRate = rateFlag{"repair-rate", "bytes a second that repair, draining and rebalancing write to one chunk server, such as 64M; unlimited: as many as they can", "unlimited", "256M"}
)

func (r *rate) add(cmd *cobra.Command, f rateFlag) {
	r.rateFlag, r.text = f, f.def
	cmd.Flags().Var(r, f.name, f.usage)
}

// Type implements pflag.Value.
func (r *rate) Type() string { return "rate" }

// String implements pflag.Value.
func (r *rate) String() string { return r.text }

// Set implements pflag.Value. Units are of 1024, with or without "B", "iB" and "/s" behind them.
func (r *rate) Set(s string) error {
	if s == r.word {
		r.bytes, r.text = -1, s
		return nil
	}
	n, ok := parseSize(strings.TrimSuffix(s, "/s"))
	if !ok || n == 0 {
		return errors.New("bytes a second, such as " + r.def + ", or " + r.word)
	}
	r.bytes, r.text = n, s
	return nil
}

// parseSize reads bytes: 4096, 500K, 8M, 1.5GiB.
func parseSize(s string) (int64, bool) {
	s = strings.ToUpper(s)
	s = strings.TrimSuffix(strings.TrimSuffix(s, "B"), "I")
	unit := 1.0
	if n := len(s); n > 0 {
		if i := strings.IndexByte("KMGTP", s[n-1]); i >= 0 {
			unit = math.Pow(1024, float64(i+1))
			s = s[:n-1]
		}
	}
	if s == "" || strings.Trim(s, "0123456789.") != "" {
		return 0, false
	}
	v, err := strconv.ParseFloat(s, 64)
	v *= unit
	if err != nil || v > math.MaxInt64/2 {
		return 0, false
	}
	return int64(v), true
}
