// Package disk lets writes and syncs fail, the disk fill up, and descriptors run out.
package disk

import (
	"time"

	"ampcio-faults/scoreboard"
)

// Trials are those of this package.
func Trials() []scoreboard.Trial {
	needs := []scoreboard.Need{scoreboard.Root, scoreboard.FUSE}
	real := append(needs[:2:2], scoreboard.Command("mkfs.ext4", "e2fsprogs"), scoreboard.Command("mount", "mount"))
	return []scoreboard.Trial{{
		Name: "I/O errors", Unit: "points", Full: 3000, PerCase: 100, Needs: needs, Limit: 20 * time.Minute, Case: ioErrors, // a case goes through all operations of what it does
		Fault: "the n-th write, fsync, truncate, rename or fsync of a folder fails, once or for ever, with EIO or ENOSPC, for each n; nothing is acknowledged after it, the process ends, and the next start has all that was",
	}, {
		Name: "forgetful fsync", Unit: "fsyncs", Full: 1500, PerCase: fsyncsOfACase, Needs: needs, Limit: 5 * time.Minute, Case: forgetful,
		Fault: "an fsync fails once, and the kernel forgets what was not written while it can still be read; then ampcio starts again, and the power goes in one of its next operations",
	}, {
		Name: "disk full", Unit: "shortages", Full: 200, PerCase: shortagesOfACase, Needs: real, Limit: 5 * time.Minute, Case: full,
		Fault: "the disk or the quota fills up and empties, the disk becomes read-only, or descriptors run out, at any moment; new events are answered 503 while deliveries go on, what ends by it says why, and the next start has all that was acknowledged",
	}}
}
