//go:build race

package delivery_test

// underRace says that the race detector watches.
const underRace = true
