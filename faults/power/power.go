// Package power cuts the power: what was not synced is forgotten, in every way a disk may forget it.
package power

import (
	"os"
	"time"

	"ampcio-faults/scoreboard"
)

// Trials are those of this package.
func Trials() []scoreboard.Trial {
	needs := []scoreboard.Need{scoreboard.Root, scoreboard.FUSE}
	return []scoreboard.Trial{
		{
			Name: "crash images", Unit: "images", Full: 500_000, Needs: needs, Case: images,
			Fault: "the power goes at any moment, and of what was not synced any part is lost, down to sectors; what was acknowledged is there, byte for byte, and ends once",
		},
		{
			Name: "power cuts", Unit: "power cuts", Full: 3000, Needs: needs, Case: cuts, PerCase: cutsOfAnInstallation, Limit: 5 * time.Minute,
			Fault: "the power of a running installation is cut, also at start; every acknowledged event arrives once and in order",
		},
		{
			Name: "ext4 cuts", Unit: "ext4 cuts", Full: 500, Case: ext4, PerCase: cutsOfAnExt4, Limit: 10 * time.Minute,
			Needs: append(needs, scoreboard.Command("mkfs.ext4", "e2fsprogs"), scoreboard.Command("mount", "mount"), loopDevices),
			Fault: "the same on a real ext4, whose disk loses what it was not told to flush",
		},
	}
}

var loopDevices = scoreboard.Need{Name: "loop devices", Has: func() error {
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}}
