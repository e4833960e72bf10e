// Package destination is every way in which Customer.io may fail.
package destination

import (
	"time"

	"ampcio-faults/scoreboard"
)

// Trials are those of this package.
func Trials() []scoreboard.Trial {
	return []scoreboard.Trial{
		{
			Name: "destination", Unit: "faults", Full: 1000, PerCase: faultsOfAStory, Waits: true, Case: live, Limit: 5 * time.Minute,
			Fault: "Customer.io is refused, unknown to DNS, behind broken TLS, silent, slow, cuts, redirects, answers nonsense, too late, 207, 4xx or 5xx: " +
				"nothing is lost or doubled, only poisoned events die, each with its reason",
		},
		{
			Name: "virtual days", Unit: "days", Full: 32, PerCase: daysOfStory, Build: buildDays, Case: virtualDays, Limit: 5 * time.Minute,
			Fault: "a key is revoked for 60 hours and then mended, one user fails for days, outages, 429 and answers too late last for hours, with crashes: " +
				"each event arrives once and in order, or is dead because it is bad",
		},
		{
			Name: "backlog", Unit: "events", Full: 1_000_000, Case: backlog, Alone: true, Limit: 10 * time.Minute,
			Fault: "a million events wait for a Customer.io that is down, and are drained while the daemon is killed: each arrives once and in order",
		},
	}
}
