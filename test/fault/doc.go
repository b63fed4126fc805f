// Package fault runs whole clusters of separate processes, breaks things under load, and checks that what was acknowledged is
// there. It is for tests only, and needs root: every process is in a network namespace of its own.
//
//	go test ./test/fault                     # the short matrix of faults, as CI runs it
//	SHOAL_LONG=1 go test -timeout 2h ./test/fault -run TestFaults -v
//
// Cluster starts and stops the processes and does the faults. What lies below it can be used alone: test/fault/netns makes
// the networks, test/fault/faultfs the disks, test/fault/workload the load and the check at its end.
package fault
