// Package disk lets reads, writes and syncs fail, the disk fill up, and descriptors run out.
package disk

import "ampcio-faults/scoreboard"

// Trials are those of this package.
func Trials() []scoreboard.Trial { return nil }
