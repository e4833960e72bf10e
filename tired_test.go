package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// What queue-stats tells a tired person in each situation, of a real installation that is in
// it: the words that matter, and nothing that would send them the wrong way. (The whole
// texts are in admin/testdata.)
func TestWhatATiredPersonReads(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	failing := func(spec string) func(t *testing.T, r *rehearsal.Rehearsal) {
		f, err := sandbox.ParseFaults(spec)
		if err != nil {
			t.Fatal(err)
		}
		return func(t *testing.T, r *rehearsal.Rehearsal) { r.Sandbox.SetFaults(f) }
	}
	few := func(t *testing.T, r *rehearsal.Rehearsal) {
		for _, user := range []string{"ann-1", "bob-2", "eve-3", "dan-4"} {
			accepted(t, r, numbered(user, 1, 5))
		}
	}
	key := func(t *testing.T, r *rehearsal.Rehearsal, text string) {
		write(t, filepath.Join(r.Dir, "customerio_api_key"), text+"\n")
	}
	verb := func(args ...string) func(t *testing.T, r *rehearsal.Rehearsal) {
		return func(t *testing.T, r *rehearsal.Rehearsal) { did(t, r, args...) }
	}
	with := func(old, new string) func(t *testing.T, r *rehearsal.Rehearsal) {
		return func(t *testing.T, r *rehearsal.Rehearsal) { edit(t, r, old, new); did(t, r, "reload") }
	}
	all := func(steps ...func(t *testing.T, r *rehearsal.Rehearsal)) func(t *testing.T, r *rehearsal.Rehearsal) {
		return func(t *testing.T, r *rehearsal.Rehearsal) {
			for _, step := range steps {
				step(t, r)
			}
		}
	}
	const refused, lost = "NEW EVENTS ARE REFUSED", "; nothing is lost\n"
	tests := []struct {
		name          string
		storage, sync string
		before        func(t *testing.T, r *rehearsal.Rehearsal) // before the start
		then          func(t *testing.T, r *rehearsal.Rehearsal)
		says          []string
		not           []string
	}{
		{name: "all is well", then: few,
			says: []string{": delivering for ", "  to do      nothing\n", "taken 20 = delivered 20 + filtered 0 + dead 0\n"}, not: []string{refused, "waiting", "aside", lost}},
		{name: "Customer.io does not answer", before: failing("503=1"), then: few,
			says: []string{": unreachable for ", lost, "  why        ", "answers 503", "to try at once: ampcio sync retry demo\n", "  pending    20 records"}, not: []string{refused, "restart"}},
		{name: "it answers, but takes nothing", before: failing("503=1,on=data"), then: few,
			says: []string{": unreachable for ", lost, "does not take data (http_503)", "with what one user has; all go on when that gets through\n", "  waiting    http_503: "}, not: []string{refused, "restart"}},
		{name: "it hangs", before: failing("hang=1,hang_for=1h,on=data"), sync: "timeout = \"1s\"\n", then: few,
			says: []string{": unreachable for ", lost, "does not take data (timeout)"}, not: []string{refused}},
		{name: "it asks for patience", before: failing("429=1,retry_after=30s,on=data"), then: few,
			says: []string{": unreachable for ", lost, "asks to wait (http_429)"}, not: []string{refused}},
		{name: "a wrong key", before: func(t *testing.T, r *rehearsal.Rehearsal) { key(t, r, "not-the-key") }, then: few,
			says: []string{": blocked for ", lost, "does not accept the Site ID and API key", "  to do      check site_id and the Track API key", "next probe in ", "  pending    20 records"},
			not:  []string{refused, "sync retry"}},
		{name: "a revoked key", then: all(few, func(t *testing.T, r *rehearsal.Rehearsal) {
			drained(t, r)
			failing("401=1")(t, r)
			accepted(t, r, numbered("ann-1", 6, 9))
		}),
			says: []string{": blocked for ", lost, "does not accept the Site ID and API key", "  pending    4 records", "delivered 20"}, not: []string{refused}},
		{name: "the wrong region", before: func(t *testing.T, r *rehearsal.Rehearsal) { edit(t, r, `region       = "eu"`, `region       = "us"`) }, then: few,
			says: []string{": blocked for ", lost, `this account is in region "eu"`, `set region = "eu"`}, not: []string{refused}},
		{name: "paused", then: all(verb("sync", "pause", "demo"), few),
			says: []string{": paused for ", "paused by an operator", "new events are accepted and held", "  to do      ampcio sync resume demo\n", "  pending    20 records"}, not: []string{refused}},
		{name: "paused, with a wrong key", then: all(verb("sync", "pause", "demo"), func(t *testing.T, r *rehearsal.Rehearsal) { key(t, r, "not-the-key"); did(t, r, "reload") }, few),
			says: []string{": blocked for ", "it is paused, too: ampcio sync resume demo\n"}, not: []string{refused}},
		{name: "disabled", then: all(verb("sync", "pause", "demo"), few, with("[sync.demo]\n", "[sync.demo]\nenabled = false\n")),
			says: []string{": disabled", "sync.demo.enabled = false", "what is pending is held", "set sync.demo.enabled = true, then: ampcio reload", "  pending    20 records"}, not: []string{refused, "events are accepted"}},
		{name: "gone from the configuration", then: all(verb("sync", "pause", "demo"), few, func(t *testing.T, r *rehearsal.Rehearsal) { renameInConfig(t, r, "main"); did(t, r, "reload") }),
			says: []string{"demo (project app): orphaned", "[sync.demo] is gone from the configuration", "ampcio sync rename demo NEW", "ampcio sync remove demo", "main (project app): delivering", "  pending    20 records"},
			not:  []string{refused, "events are accepted"}},
		{name: "stopped", before: failing("503=1"), then: all(few, func(t *testing.T, r *rehearsal.Rehearsal) { down(t, r) }),
			says: []string{"ampcio is stopped: read from its files", "demo (project app): stopped\n", "systemctl start ampcio", "  pending    20 records"}, not: []string{refused}},
		{name: "killed", before: failing("503=1"), then: all(few, func(t *testing.T, r *rehearsal.Rehearsal) {
			if err := r.Kill(); err != nil {
				t.Fatal(err)
			}
		}), says: []string{"ampcio is stopped: read from its files", "demo (project app): stopped\n", "  pending    20 records"}, not: []string{refused}},
		{name: "one user fails", before: failing("poison=ann-1,poison_how=500"), sync: "retry_initial = \"20ms\"\n", then: few,
			says: []string{": delivering for ", "nothing for who waits aside", "  aside      1 user waits alone, 5 records, ", "others are not held up\n", "  waiting    http_500: 5 records of 1 user"}, not: []string{refused, lost}},
		{name: "refused for good", before: failing("refuse_event=Never"), then: func(t *testing.T, r *rehearsal.Rehearsal) {
			accepted(t, r, strings.ReplaceAll(numbered("ann-1", 1, 3), "Order Completed", "Never"))
		}, says: []string{": delivering for ", "see what was refused: ampcio dead-letters list --sync demo\n", "  dead       3 kept", `  refused    event invalid: 3, newest `, `e.g. "Never"`, "dead 3\n"}, not: []string{refused}},
		{name: "a rule that selects nothing", before: func(t *testing.T, r *rehearsal.Rehearsal) { edit(t, r, `event = ["*"]`, `event = ["Oder *"]`) }, then: few,
			says: []string{": delivering for ", `  not sent   event not_selected: 20, newest `, `e.g. "Order Completed"`}, not: []string{refused}},
		{name: "rewound", then: all(few, func(t *testing.T, r *rehearsal.Rehearsal) {
			drained(t, r)
			did(t, r, "sync", "rewind", "demo", "--since", "1h", "--yes")
		}),
			says: []string{"  rewound    ", "20 records were taken once more so far\n", "taken 20 + rewound 20 = delivered 40 "}, not: []string{refused, "OUT BY"}},
		{name: "the disk may not be filled further", storage: "max_bytes = \"1MiB\"\nrotate_bytes = \"1MiB\"\n", before: failing("503=1"),
			then: func(t *testing.T, r *rehearsal.Rehearsal) { fill(t, r, "ann-1") },
			says: []string{refused + ": ", "used of storage.max_bytes 1.0 MiB", "see sync demo, which is unreachable and holds most of it", "raise storage.max_bytes, then: ampcio reload", "storage_full: ", lost}},
		{name: "too little is free", storage: "min_free = \"4000TiB\"\n", then: func(t *testing.T, r *rehearsal.Rehearsal) { send(t, r, numbered("ann-1", 1, 5)) },
			says: []string{refused + ": ", "storage.min_free is 3.9 PiB", "free space on the disk of ", "lower storage.min_free, then: ampcio reload", ": delivering for "}},
		{name: "too much waits for it", sync: "max_pending_bytes = \"1MiB\"\n", before: failing("503=1"),
			then: func(t *testing.T, r *rehearsal.Rehearsal) { fill(t, r, "ann-1") },
			says: []string{refused, "of max_pending_bytes 1.0 MiB", "raise sync.demo.delivery.max_pending_bytes, then: ampcio reload", "or: ampcio sync pause demo", "see the sync that has so much pending"}},
		{name: "too much waits for it, and the oldest go", sync: "max_pending_bytes = \"1MiB\"\nwhen_full = \"discard_oldest\"\n", before: failing("503=1"),
			then: func(t *testing.T, r *rehearsal.Rehearsal) {
				for i := range 12 {
					accepted(t, r, padded("ann-1", 50*i+1, 50*i+50, noise(i)))
				}
			},
			says: []string{"  given up   max_pending_bytes: ", "if nothing may be discarded: raise sync.demo.delivery.max_pending_bytes, then: ampcio reload"}, not: []string{refused, lost}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := rehearse(t, rehearsal.Settings{Storage: test.storage, Sync: test.sync})
			if test.before != nil {
				test.before(t, r)
			}
			up(t, r)
			test.then(t, r)
			said, missing := "", ""
			began := time.Now()
			for missing = test.says[0]; missing != "" && time.Since(began) < 20*time.Second; {
				got := run(t, "queue-stats", "--config", r.ConfigPath)
				if got.code != 0 || got.stderr != "" {
					t.Fatalf("exit %d: %s", got.code, got.stderr)
				}
				said, missing = got.stdout, ""
				for _, part := range append(test.says, "  books      balanced\n") {
					if !strings.Contains(flat(said), flat(part)) {
						missing = part
					}
				}
			}
			if missing != "" {
				t.Errorf("%q is not in it:\n%s", missing, said)
			}
			for _, wrong := range test.not {
				if strings.Contains(flat(said), flat(wrong)) {
					t.Errorf("%q is in it:\n%s", wrong, said)
				}
			}
			for line := range strings.Lines(said) {
				if n := len([]rune(strings.TrimRight(line, "\n"))); n > 120 {
					t.Errorf("a line of %d columns: %s", n, line)
				}
			}
			r.Sandbox.SetFaults(sandbox.Faults{})
			if r.Daemon != nil {
				down(t, r)
			}
		})
	}
}

// flat is a text without its line breaks and columns.
func flat(text string) string { return strings.Join(strings.Fields(text), " ") }
