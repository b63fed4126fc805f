package workload

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// ProcessEnv is what makes a process that calls ProcessMain with the same variable a client of that configuration.
func ProcessEnv(variable string, config any) string {
	b, err := json.Marshal(config)
	if err != nil {
		panic(err) // there is nothing in it that has no JSON
	}
	return variable + "=" + string(b)
}

// ProcessMain returns where ProcessEnv was not given to this program, otherwise the process ends with the client's work: run is cancelled
// when standard input ends.
func ProcessMain[C any](variable string, run func(C, context.Context) error) {
	text := os.Getenv(variable)
	if text == "" {
		return
	}
	var c C
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // it ends, or cannot be read, when the parent is done with us
		stop()
	}()
	if err := run(c, ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
