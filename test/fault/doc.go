// Package fault runs whole clusters of separate processes, breaks things under load, and checks that what was acknowledged is
// there. It is for tests only, and needs root: every process is in a network namespace of its own.
//
//	go test ./test/fault                                                       # the short matrix, as CI runs it
//	SHOAL_FAULTS=all go test -timeout 20m ./test/fault -run TestFaults -v      # every fault, with short load
//	SHOAL_LONG=1 go test -timeout 2h ./test/fault -run TestFaults -v           # every fault, with long load
//	go test ./test/fault -run 'TestFaults/replicas=3/power_loss_of_everything$' -v
//
// SHOAL_SEED makes another load, SHOAL_POLICIES chooses the policies ("replicas=3 ec=4+2"), SHOAL_BINARY is a program that is
// built already, and SHOAL_KEEP is a directory in which logs, journals and data are left.
//
// Cluster starts and stops the processes and does the faults. What lies below it can be used alone: test/fault/netns makes
// the networks, test/fault/faultfs the disks, test/fault/workload the load and the check at its end.
package fault
