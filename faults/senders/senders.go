// Package senders is every way in which those who send may fail, or attack.
package senders

import "ampcio-faults/scoreboard"

// Trials are those of this package.
func Trials() []scoreboard.Trial {
	return []scoreboard.Trial{{
		Name: "malformed requests", Unit: "requests", Full: 1_000_000, PerCase: requestsOfADaemon, Case: malformed,
		Fault: "requests broken in JSON, UTF-8, gzip, length, header, path or method: each is answered or its connection closed, never 200 for what is not stored, good ones between are served",
	}, {
		Name: "hostile senders", Unit: "attacks", Full: 140, PerCase: attacksAtOnce, Case: hostile, Waits: true, Alone: true, // it needs half of the process's files
		Fault: "slowloris, aborted uploads, gzip bombs, 10,000 levels of JSON, 10,000 idle connections, floods on one, retry storms: others are served, nothing lost or doubled, memory bounded",
	}}
}
