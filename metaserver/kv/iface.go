package kv

// Bucket is the number of a keyspace.
type Bucket uint8

// Reader reads one consistent state.
type Reader interface {
	// Get returns the value of a key, nil when it is absent. It stays valid until the View or Update ends and must not be
	// changed.
	Get(b Bucket, key []byte) []byte
	// Scan calls fn for every key from the first that is not less than from, in ascending order, until fn returns false.
	Scan(b Bucket, from []byte, fn func(key, value []byte) bool)
}

// Txn is the state that one command sees and changes.
type Txn interface {
	Reader
	Put(b Bucket, key, value []byte)
	Delete(b Bucket, key []byte)
	// Reset drops all writes of this Txn.
	Reset()
}
