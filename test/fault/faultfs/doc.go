// Package faultfs makes directories that lie on a disk with faults: one that returns errors, is slow, is full, or loses power.
// It is a FUSE file system, served by the test's own process.
//
// Power loss is strict. A file has afterwards what it had at its last successful fsync, a directory the names that it had at
// its own last fsync: a file whose directory was never synced is gone, however often it was synced itself. A rename is
// atomic: after the loss it was done or it was not, also when only one of its two directories was synced. Losing power with a
// source of random numbers is kinder, as real disks are: of the blocks and names that were not synced any may have
// reached the disk, in no order, except that no change of a name is there without an earlier one of the same name.
//
// What is not modelled: modes, owners and times are durable at once; a file is not moved to another disk. The kernel's page
// cache lies above, as above a real disk: what it has cached is read without a fault.
//
// Nothing here is really synced, so that a disk without faults is faster than a real one. Whatever process serves the
// directory, it must not touch files in it itself: it could wait for itself.
package faultfs
