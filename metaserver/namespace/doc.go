// Package namespace is the metadata of the file system as a state machine: what the commands of the replicated log do to
// the state, and what can be read from it. It is pure: no clock, no I/O, no goroutine, no random bits, nothing that depends
// on the order of a map. The same log makes the same state on every replica, byte for byte.
//
// # Buckets, keys and values
//
// Numbers are big-endian. Every value begins with the version of its format, 1. Inode, chunk and session numbers have 8
// bytes, server numbers 4; none is ever used twice.
//
//	state           "cluster"                 the cluster's id, 16 bytes (without a version)
//	                "counters"                clock i64 (ns), next inode, chunk, session u64, next server u32, then u64 each:
//	                                          inodes, chunks, bytes in chunks, inline bytes, deletions, sessions, servers
//	dentry          parent, name              version and file type (st_mode >> 12) in half a byte each, inode
//	inode           inode                     mode, nlink, uid, gid, rdev u32; size, allocated u64; atime, mtime, ctime, btime
//	                                          i64 (ns); data version, version, parent u64; bytes of xattrs u32; length u16 and
//	                                          bytes of a symlink's target; number u16 of inline extents, of each: offset u64,
//	                                          length u16, data
//	extent          inode, block u64          extents in the block-th 64 MiB of the file, sorted, without overlap, of each:
//	                                          offset in the block u32, length u32, chunk u64, offset in the chunk u32
//	xattr           inode, name               the attribute's value
//	chunk           chunk                     replicas u8, min copies u8, owner u64, length u32, live bytes u64, numbers u8 of
//	                                          servers and of targets, and these
//	server-chunk    server, chunk             nothing: a copy of the chunk is, or is being written, there
//	owned-chunk     session, chunk            nothing: the session writes the chunk
//	server          server                    uuid (16 bytes), length u16 and bytes of the address, number u8 of failure domains,
//	                                          sorted by level, of each: length u8 and bytes of the level, the same of its value
//	server-uuid     uuid                      server
//	session         session                   opened i64 (ns), chunks that it writes u32, nonce (16 bytes), the client's name
//	session-nonce   nonce                     session
//	result          session, 0                the lowest sequence u64 whose result is kept; there as long as the session is
//	                session, sequence         the result of that command: a shoal.v1.Result (without a version)
//	orphan          inode, session            nothing: the session has the unlinked inode open
//	held-inode      session, inode            nothing: the same the other way round
//	deletion        server, time u64, chunk   nothing: since that time (ns) the server is to delete its copy
//	deletion-index  server, chunk             time u64: the same the other way round
//
// A value without content is the version alone. What cannot be decoded makes the command or the read fail with EIO and
// names the key.
//
// # Invariants
//
// Check verifies them, and says where they do not hold:
//
//   - Every name leads to an inode of the type it says. A directory has one name, in its parent, and is below the root; its
//     nlink is 2 and one more for each subdirectory, its size the number of its entries. Every other inode has as many names
//     as nlink says.
//   - An inode without a name is held by a session that lives; nothing else has holders.
//   - Extents are sorted, do not overlap each other, end within the file, and lie in the committed part of chunks that exist.
//     Inline data is at most 4096 bytes of a file.
//   - A chunk's live bytes are those of the extents that refer to it. A chunk with an owner is in the owner's index; one without
//     owner has live bytes. Its servers, or targets while it has an owner, are in the index of copies, and nothing else is.
//   - A copy to be deleted is not one that the chunk's record has.
//   - A session's results lie within its window.
//   - The counters are what there is.
//
// # Failure
//
// A command that fails has no effect but the record of its result. A result that says mismatch is not even recorded: the
// command is prepared again and applied under the same number.
package namespace
