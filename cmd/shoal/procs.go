package main

import (
	"os"
	"runtime"
)

// minProcs is how many threads run Go code at once, on machines with fewer CPUs than that too.
const minProcs = 8

// raiseProcs makes room for threads that wait. One in a system call (fdatasync, a read of /dev/fuse) keeps its place among
// GOMAXPROCS until the runtime's monitor takes it away: with two places that happens at nearly every change of metadata, which with
// more of them costs less CPU and, with several callers, takes a fifth less time. docs/benchmarks.md has the comparison. What
// the environment says comes first.
func raiseProcs() {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < minProcs {
		runtime.GOMAXPROCS(minProcs)
	}
}
