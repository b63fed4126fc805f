// Package kv is the metaserver's database: bbolt with an ordered write buffer in front of it.
//
// A command applied with Update changes memory only. A flusher empties the buffer into one bbolt transaction every so
// often, together with the index of the last command in it, so that the file always holds exactly the state after some
// index of the log: whoever replays the log after a crash skips what comes up to there. Reads merge buffer and file.
//
// There are two generations of the buffer: the active one, which Update writes to, and the one being flushed. Above them,
// inside an Update, lie the writes of that command, which become visible to others all at once or not at all.
//
// # On disk
//
// One bbolt file. Bucket "shoalfs" holds what belongs to this package: key "format", a big-endian uint32, the version of
// this layout (1); key "applied", a big-endian uint64, the index of the last command whose effects are in the file. The
// other buckets are named by Options.Buckets and belong to the caller. A file is made whole under the name PATH.new and then
// renamed, both when it is new and when Replace puts another one in its place; a PATH.new that is found at Open is left
// over from a crash and removed.
package kv
