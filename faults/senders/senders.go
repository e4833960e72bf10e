// Package senders is every way in which those who send may fail, or attack.
package senders

import "ampcio-faults/scoreboard"

// Trials are those of this package.
func Trials() []scoreboard.Trial { return nil }
