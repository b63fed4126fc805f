// Package consensus replicates the metaserver's commands with raft and applies them to its database.
//
// The raft log, in raft-wal segments and synced in group commits, is the write-ahead log of the database: a command is
// durable once a majority has it in the log, and applying it changes memory only. The database says up to which index it
// is on disk; what it holds already is skipped when the log is replayed, so that every command is applied exactly once to
// each replica.
//
// # Snapshots
//
// A local snapshot does not copy the database. It flushes the database's buffer and records index, term and membership:
// from there on the database itself is the snapshot, and the log before it may go. Only a follower that is so far behind
// that the log cannot help is sent a copy, streamed from a consistent state that may be newer than the snapshot's index; it
// then skips what it holds. A received copy is kept as a file until the database was replaced by it. At start, a database
// that is behind the newest snapshot is first replaced by the copy that came with it.
//
// # Reads
//
// ReadIndex makes a read of the local database linearizable. The leader asks its followers whether it still leads and
// counts only answers to questions that were sent after the read came, so that an answer that lay in a socket while this
// process was paused proves nothing. One such round serves all reads that came before it began. See read.go for why no read
// has to wait for the log.
//
// # On disk
//
// Below Config.Dir, in the directory raft:
//
//	lock               held by the process that uses the directory
//	node               identity, JSON: {"format":1,"id":3}
//	condemned          why the directory is of no use any more; see states.go
//	log/               segments and wal-meta.db of raft-wal
//	snapshots/ID.snap  a snapshot's record; see record
//	snapshots/ID.data  the copy that came with a snapshot from the leader, until it is in the database; see stream.go
package consensus
