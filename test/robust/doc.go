// Package robust proves that a cluster keeps its promises while everything around it breaks, in the way of etcd's robustness
// tests: clients of the SDK and of mounts do random operations on few objects (package traffic) and note what they were told
// (package history), while a nemesis kills, stops, cuts off and slows servers down and takes their power; at the end all is
// healed, an auditor reads what there is, and every history must be linearizable (package model). It is for tests only, and
// needs root.
//
//	make robustness DURATION=30m METASERVERS=5
//	make robustness SEED=17                     # the same choices again; what they meet depends on time
//
// What it does not do yet: jumps of a process's clock, and failpoints between log, buffer, database, snapshot and reply, for which the
// servers have no hooks; delays of single packets, for which kernels need a module that not all have (a slow link, whose packets
// wait in a queue, takes their place); file locks, which hold within one mount only.
package robust
