//go:build race

package data

// patience is how many times longer short timeouts of tests are: encoding is a hundred times slower when it is watched.
const patience = 4
