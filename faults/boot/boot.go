// Package boot is the package and its units in a real systemd.
package boot

import "ampcio-faults/scoreboard"

// Trials are those of this package.
func Trials() []scoreboard.Trial { return nil }
