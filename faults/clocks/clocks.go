// Package clocks lets the time jump.
package clocks

import "ampcio-faults/scoreboard"

// Trials are those of this package.
func Trials() []scoreboard.Trial { return nil }
