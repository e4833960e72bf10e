// Package planted holds bugs that the other trials must find.
package planted

import "ampcio-faults/scoreboard"

// Trials are those of this package.
func Trials() []scoreboard.Trial { return nil }
