// Package disk keeps chunks in one data directory of a chunk server.
//
// Each chunk is one file, written front to back: a header, then a record for every append (its checksums and its bytes),
// and, once no more will be appended, an index of all records that can be found from the end of the file. docs/formats.md
// describes each byte; nothing outside format.go touches them.
//
// What the package promises:
//
//   - A read returns exactly the bytes that the writer sent, or an error. Every 64 KiB block that a read touches is checked
//     whole against its writer's checksum before anything of it is handed out.
//   - What Writer.Sync has returned nil for survives a loss of power. Everything else that was appended survives the end of
//     the process, and after a loss of power is kept as far as its checksums prove it.
//   - A write or fsync that fails is never tried again: its chunk is closed and reported as bad.
//   - Nothing that was acknowledged is changed, nor deleted but at Delete's word. Damaged, foreign and unfinished files stay as
//     they are; the end of a record that did not fit on the disk is cut off, and a chunk that never got a byte is removed.
//   - A Copy, made of what other servers hold, takes the place of what is there only when all of it is on disk.
//   - Verify finds every changed byte of a chunk's file that could ever matter, and reads it from the disk to do so. Of a chunk
//     that is being written it reads from the disk what is there for certain.
//   - Whoever asks how the disk is (Stats, List, Held) never waits for it: it may hang.
//   - A chunk takes appends only from the Writer that created it. After a restart it takes none.
package disk
