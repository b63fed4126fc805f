// Package workload puts a file system under load and knows afterwards what it must hold.
//
// A client is a process that writes, reads, or changes names. It notes every operation in a journal, before it begins and
// after it returned, so that what was acknowledged is known whenever the client or the file system dies: History is what a
// journal says. All contents follow from the number of the write that they are of, so that every byte can be checked by whoever
// has the journals: the readers do while the writers write, and Check does at the end.
//
// What must hold (see allowed.go): a read returns, for each byte, what the last write left that was published (its file synced
// or closed) before the read began, or what a later one wrote that had begun when the read ended. A name that was made,
// removed or renamed is so from the moment on at which the call returned.
package workload
