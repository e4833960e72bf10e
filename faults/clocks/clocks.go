// Package clocks lets the time jump: by days, forward and back, while the daemon runs and while it does not.
package clocks

import (
	"context"
	"time"

	"ampcio-faults/scoreboard"
)

// Trials are those of this package.
func Trials() []scoreboard.Trial {
	return []scoreboard.Trial{{
		Name: "clocks", Unit: "jumps", Full: 240, PerCase: jumpsOfStory, Waits: true, Case: jumps, Limit: 5 * time.Minute,
		Build: func(ctx context.Context, folder string) error { return build(ctx, "..", folder) },
		Fault: "the clock is set forward and back by days and years, while the daemon runs and between two lives, and events are dated 1970 and 2100: " +
			"nothing is lost, doubled or held up, what is kept is kept as long as was asked for, and alerts are told",
	}}
}
