// Package traffic is what clients do in robustness tests: random operations on few objects, at which they meet. Every operation is
// noted in a journal that package history reads and package model judges.
//
// Objects live for a generation, some seconds, which all clients know by the clock that they share: what the histories of
// objects cost to check grows faster than their length. When all is over an Auditor reads every object of every generation.
//
// What is one operation to a program need not be one to a file system: rename(2) looks two names up, one after the other, before it
// asks for anything. Mounts get only those operations whose answer comes from one moment; clients of the SDK, which have an
// interface in terms of inodes, get all.
package traffic
