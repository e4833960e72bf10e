//go:build !race

package main

// importSize is how many events the largest import of the tests has.
const importSize = 20_000

// underRace says that the race detector watches.
const underRace = false
