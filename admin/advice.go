package admin

import (
	"fmt"
	"slices"
	"strings"
)

// Advise puts into words why each sync is as it is and what to do about it, where
// nobody has said it yet: Detail and Advice of the syncs and of the disk. Whoever fills
// a Snapshot calls it last.
func (s *Snapshot) Advise() {
	for i := range s.Syncs {
		s.Syncs[i].advise(s)
	}
	s.Disk.Advice = s.adviseDisk()
}

// advise completes a sync's Detail and Advice. What is most urgent comes first.
func (y *Sync) advise(s *Snapshot) {
	var todo []string
	do := func(format string, args ...any) { todo = append(todo, fmt.Sprintf(format, args...)) }
	if y.NoCheckpoint != "" {
		do("free space on the disk of %s (df -h %[1]s): it goes on by itself", s.Disk.Dir)
	}
	if !y.Books.Balanced && !y.LedgerDamaged {
		do("see what is wrong with the books: ampcio audit, and tell us what it says")
	}
	if y.overfull() || y.refused(s.Disk.Full) {
		y.adviseBound(do)
	}
	apply := "ampcio reload"
	if s.Source == "files" {
		apply = "systemctl start ampcio"
	}
	switch y.Status {
	case StatusChecking:
		if y.isRelay() {
			do("wait some seconds: Amplitude is asked whether it knows the API key")
		} else {
			do("wait some seconds: region and credentials are being confirmed")
		}
	case StatusUnreachable:
		if y.Advice != "" {
			do("%s", y.Advice)
		}
		do("to try at once: ampcio sync retry %s", y.Name)
	case StatusBlocked:
		if y.Advice != "" {
			do("%s", y.Advice)
		}
		switch {
		case y.isRelay(): // nothing of it is a secret that came with the start
			do("then: ampcio reload; or, if it is Amplitude that was mended: ampcio sync retry %s", y.Name)
		case y.OtherWorkspace == nil:
			do("then: systemctl restart ampcio")
		}
	case StatusPaused:
		y.Detail = "paused by an operator; new events are accepted and held"
		do("ampcio sync resume %s", y.Name)
	case StatusDisabled:
		y.Detail = fmt.Sprintf("sync.%s.enabled = false: new events are not taken, what is pending is held", y.Name)
		do("set sync.%s.enabled = true, then: %s", y.Name, apply)
	case StatusDryRun:
		y.Detail = fmt.Sprintf("sync.%s.dry_run = true: nothing is sent, what would be is written to a file", y.Name)
		do("see what would be sent, by hour and event: ampcio dry-run report --sync %s; to send: set sync.%[1]s.dry_run = false, then: %s", y.Name, apply)
	case StatusOrphaned:
		if y.isRelay() {
			y.Detail = fmt.Sprintf("project.%s.relay is off; what is pending is held", y.Project)
			do("set relay to \"us\" or \"eu\" under [project.%s] again, then: %s; or give up what is pending: ampcio sync remove %s", y.Project, apply, y.Name)
			break
		}
		y.Detail = fmt.Sprintf("[sync.%s] is gone from the configuration; what is pending is held", y.Name)
		do("put [sync.%s] back, then: %s; or hand it on: ampcio sync rename %[1]s NEW; or give it up: ampcio sync remove %[1]s", y.Name, apply)
	case StatusStopped:
		do("start ampcio (systemctl start ampcio)")
	}
	if y.PausedSince != nil && y.Status != StatusPaused {
		do("it is paused, too: ampcio sync resume %s", y.Name)
	}
	if y.Aside.Users > 0 && y.Status == StatusOK {
		do("nothing for who waits aside: it is tried again by itself; to try at once: ampcio sync retry %s", y.Name)
	}
	if y.Kept.Count > 0 {
		do("see what was refused: ampcio dead-letters list --sync %s", y.Name)
	}
	if y.LedgerDamaged {
		y.Detail = "its ledger is damaged: what is pending is unknown; a start sets it aside and goes on with what can be read of it"
	}
	y.Advice = strings.Join(todo, "; ")
}

// isRelay says whether it goes to Amplitude.
func (y *Sync) isRelay() bool { return y.Destination == ToAmplitude }

// nearFull is the share of max_pending_bytes from which on it is worth a word.
const nearFull = 0.8

// overfull says whether max_pending_bytes is near, or reached.
func (y *Sync) overfull() bool {
	return y.MaxPending > 0 && float64(y.PendingBytes) >= nearFull*float64(y.MaxPending)
}

// refuses says whether the sync may let new events be refused: never one that an
// operator or a wrong key keeps from delivering.
func (y *Sync) refuses() bool { return y.Status == StatusOK || y.Status == StatusUnreachable }

func (y *Sync) adviseBound(do func(format string, args ...any)) {
	key := fmt.Sprintf("sync.%s.delivery.max_pending_bytes", y.Name)
	if y.isRelay() {
		key = fmt.Sprintf("project.%s.relay_max_pending_bytes", y.Project)
	}
	switch {
	case y.WhenFull == "discard_oldest":
		do("if nothing may be discarded: raise %s, then: ampcio reload", key)
	case y.refuses():
		do("if no event may be refused: raise %s, then: ampcio reload; or: ampcio sync pause %s", key, y.Name)
	}
}

// refused says whether it is this sync's max_pending_bytes that makes new events refused,
// by the reason for that. A large request does not fit long before the bound is reached.
func (y *Sync) refused(full string) bool {
	return strings.Contains(full, "max_pending_bytes") && strings.Contains(full, "sync "+y.Name+",")
}

// gaveUp says whether the oldest have been given up, beyond max_pending_bytes, since the
// sync is as it is.
func (y *Sync) gaveUp() bool {
	return slices.ContainsFunc(y.Discarded, func(r Reason) bool {
		return r.Reason == "max_pending_bytes" && r.Newest != nil && y.Since != nil && !r.Newest.Before(*y.Since)
	})
}

// bound says what happens at max_pending_bytes; full is why new events are refused now.
func (y *Sync) bound(full string) string {
	reached := y.PendingBytes >= y.MaxPending
	switch {
	case y.WhenFull == "discard_oldest" && reached:
		return "THE OLDEST ARE DISCARDED"
	case y.WhenFull == "discard_oldest":
		return "beyond that the oldest are discarded"
	case !y.refuses():
		return "nothing is refused for that while it does not deliver"
	case reached:
		return "NEW EVENTS ARE REFUSED"
	case y.refused(full):
		return "NEW EVENTS ARE REFUSED, as far as a request does not fit"
	}
	return "beyond that new events are refused"
}

// adviseDisk says what to do when the disk makes new events refused.
func (s *Snapshot) adviseDisk() string {
	full := s.Disk.Full
	switch {
	case full == "":
		return ""
	case strings.Contains(full, "max_pending_bytes"):
		return "see the sync that has so much pending"
	case strings.Contains(full, "min_free"):
		return fmt.Sprintf("free space on the disk of %s (df -h %[1]s): it goes on by itself; or lower storage.min_free, then: ampcio reload", s.Disk.Dir)
	}
	var most *Sync
	for i := range s.Syncs {
		if y := &s.Syncs[i]; y.PendingBytes > 0 && (most == nil || y.PendingBytes > most.PendingBytes) {
			most = y
		}
	}
	raise := "raise storage.max_bytes, then: ampcio reload"
	if most == nil {
		return raise
	}
	return fmt.Sprintf("see sync %s, which is %s and holds most of it; or %s", most.Name, most.Status, raise)
}
