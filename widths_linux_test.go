package main

import (
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"ampcio/alerts"
)

// On a terminal, sentences are broken between words, so that no line is longer than it.
func TestSentencesFitTheTerminal(t *testing.T) {
	const advice = "check site_id and the Track API key (Settings, API Credentials in Customer.io), and that the account is in region \"us\"; then: systemctl restart ampcio"
	now := time.Date(2026, 11, 26, 8, 0, 0, 0, time.UTC)
	list := alertList{Configured: true, List: alerts.List{
		Firing:  []alerts.Firing{{Kind: "blocked", Of: "production", Level: "critical", Since: now.Add(-time.Hour), What: strings.Repeat("what is wrong ", 12), Do: advice}},
		Waiting: []alerts.Message{{At: now, Event: "firing", Level: "critical", Kind: "blocked", Troubles: []alerts.Told{{Of: "a-name-that-is-as-long-as-it-gets"}, {Of: "another-that-is-as-long-as-it-is"}}}}}}
	stuck := drainReport{State: drainStuck, Syncs: []drainSync{
		{Sync: "production", Status: "blocked", Pending: 200, Stuck: true, Why: "Customer.io does not accept the Site ID and API key", Advice: advice},
		{Sync: "second", Status: "unreachable", Pending: 3, Advice: advice}}}
	traced := tracedFor{Sync: "production", State: "waiting", Tries: 1, Reason: "http_503", Next: &now, Behind: true, Aside: true,
		Earlier: []tracedEnd{{State: "dead", At: now, Reason: strings.Repeat("long ", 20)}}, Now: &tracedByRule{Event: verdictSent, User: verdictSent}, Rule: 1}
	refused := testRun{report: testReport{Plan: &testPlan{Event: "ampcio send-test", Syncs: []testSync{{Sync: "production", Event: verdictSent, User: "unchanged",
		State: testState{Status: "unreachable", Reason: "http_503", Detail: "https://track.customer.io does not take data (http_503)", Advice: advice}}}}}}
	for name, write := range map[string]func(io.Writer){
		"alerts list": func(w io.Writer) { list.print(w, now, terminalColumns(w)) },
		"drain":       func(w io.Writer) { stuck.print(w, true) },
		"send-test":   refused.writePlan,
		"trace":       func(w io.Writer) { traced.write(w) },
	} {
		for _, columns := range []int{80, 160} {
			said := onScreen(t, columns, write)
			if strings.Count(said, "(http_503)") > 1 {
				t.Errorf("%s says it twice: %q", name, said)
			}
			if strings.Count(said, "\n") < 2 {
				t.Errorf("%s says too little: %q", name, said)
			}
			for line := range strings.Lines(said) {
				if line = strings.TrimRight(line, "\r\n"); utf8.RuneCountInString(line) >= columns {
					t.Errorf("%s: longer than %d: %q", name, columns, line)
				}
			}
		}
	}
}

// onScreen is what stands on a terminal of so many columns.
func onScreen(t *testing.T, columns int, write func(io.Writer)) string {
	t.Helper()
	keyboard, screen := terminal(t)
	defer keyboard.Close()
	if err := unix.IoctlSetWinsize(int(keyboard.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: uint16(columns)}); err != nil {
		t.Fatal(err)
	}
	go func() {
		write(screen)
		screen.Close()
	}()
	var said strings.Builder
	io.Copy(&said, keyboard) // it ends with an error when the other end is closed
	return said.String()
}
