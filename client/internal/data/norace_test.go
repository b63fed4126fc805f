//go:build !race

package data

const patience = 1
