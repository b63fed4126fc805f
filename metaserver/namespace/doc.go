// Package namespace is the metadata of the file system as a state machine: what the commands of the replicated log do to
// the state, and what can be read from it. It is pure: no clock, no I/O, no goroutine, no random bits, nothing that depends
// on the order of a map. The same log makes the same state on every replica, byte for byte.
//
// # Buckets, keys and values
//
// docs/formats.md has every key and value byte by byte. In short: a dentry leads from directory and name to an inode; an inode
// has the attributes and small data; extents lead from a file's ranges to chunks; a chunk's record says which servers have it.
// Everything that is looked for from the other side too has an index: the copies on a server, the chunks of a session, the
// sessions that hold an unlinked inode, the deletions that a server has yet to do.
//
// Numbers are big-endian, and those of inodes, chunks, sessions and servers are never used twice. What cannot be decoded makes
// the command or the read fail with EIO and names the key.
//
// # Invariants
//
// Check verifies them, and says where they do not hold; RepairState restores those that follow from the rest:
//
//   - Every name leads to an inode of the type it says. A directory has one name, in its parent, and is below the root; its
//     nlink is 2 and one more for each subdirectory, its size the number of its entries. Every other inode has as many names
//     as nlink says.
//   - An inode without a name is held by a session that lives; nothing else has holders.
//   - Extents are sorted, do not overlap each other, end within the file, and lie in the committed part of chunks that exist.
//     Inline data is at most 4096 bytes of a file.
//   - A chunk's live bytes are those of the extents that refer to it. A chunk with an owner is in the owner's index; one without
//     owner has live bytes. Its servers, or targets while it has an owner, are in the index of copies, and nothing else is.
//   - No server has two shards of a chunk, or is to get one while it has another. Shards are on their way to registered servers only,
//     and only those of sealed chunks. A sealed chunk that lacks shards, or has some on their way, is in the index of degraded ones.
//   - A copy to be deleted is not one that the chunk's record has.
//   - A session's results lie within its window.
//   - The counters are what there is.
//
// # Failure
//
// A command that fails has no effect but the record of its result. A result that says mismatch is not even recorded: the
// command is prepared again and applied under the same number.
package namespace
