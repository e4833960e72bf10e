// Package power cuts the power: what was not synced is forgotten, in every way a disk may forget it.
package power

import "ampcio-faults/scoreboard"

// Trials are those of this package.
func Trials() []scoreboard.Trial {
	needs := []scoreboard.Need{scoreboard.Root, scoreboard.FUSE}
	return []scoreboard.Trial{
		{
			Name: "crash images", Unit: "images", Full: 500_000, Needs: needs, Case: images,
			Fault: "the power goes at any moment, and of what was not synced any part is lost, down to sectors; what was acknowledged is there, byte for byte, and ends once",
		},
	}
}
