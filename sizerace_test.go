//go:build race

package main

// importSize is smaller under the race detector, where each event takes some ten times as long.
const importSize = 4_000

// underRace says that the race detector watches.
const underRace = true
