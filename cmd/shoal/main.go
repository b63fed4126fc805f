// Command shoal is shoalfs: a whole cluster in one process (up), its parts run apart (meta, chunk, mount), and the tools
// to work with one.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	raiseProcs()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal does what it does by default: it ends the process at once. But not one that comes with the first: timeout(1)
	// sends two.
	context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, stop) })
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
