// Command ampcio-sdk-check lets the real Amplitude SDKs for Node, Go and browsers send to a real daemon, through a
// restart, a time in which it cannot store, a bad event among good ones, requests that are too large and a wrong key, and
// compares what a sandbox Customer.io then holds with what was sent.
// See ../run, which builds what it needs.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"time"
)

const (
	apiKey        = "0123456789abcdef0123456789abcdef"
	flushInterval = 200 * time.Millisecond // as in drive.js; 10 s is the SDKs' own
)

const configuration = `
[server]
%sadmin  = %q
socket = %q

[storage]
dir      = %q
min_free = %q

[project.app]
amplitude_api_keys = [%q]
relay = "off"

[sync.check]
region     = "us"
site_id    = "site"
api_key    = "key"
endpoint   = "http://%s"
identifier = "user_id"

[[sync.check.select]]
event = ["Order *", "Step", "revenue_amount", "App Opened", "[Amplitude] Page Viewed"]

[sync.check.events]
properties = ["total", "currency", "n", "$productId", "$price", "$quantity", "[Amplitude] Page Title"]

[sync.check.users]
properties = ["email", "plan", "trial", "first_seen", "campaign", "logins", "visited", "recent", "tags", "badges", "org"]
`

// answer says how the calls of a story ended: what the SDK told its caller, by code.
type answer struct {
	Calls int
	Codes map[string]int
}

// stored is how many of the calls the daemon has acknowledged, or got by a beacon or from the page after.
func (a answer) stored() int { return a.Codes["200"] + a.Codes["beacon"] + a.Codes["closed"] }

// A player tells stories with one SDK.
type player struct {
	name, prefix string
	last         int // n of the last Step it tells
	play         func(story string) (answer, error)
}

// outcome is how the calls of a story end; without one, all are acknowledged.
var outcome = map[string]map[string]int{
	"bad":   {"200": 99, "400": 1},
	"wrong": {"400": 3},
	"leave": {"beacon": 10},
	"close": {"closed": 12},
}

func main() {
	binary := flag.String("ampcio", "", "the binary")
	node := flag.String("node", "", "folder with drive.js and its node_modules")
	browser := flag.String("browser", "", "folder with the browser's drive.js and its node_modules")
	chromium := flag.String("chromium", "", "a Chromium; without one the browser SDK is left out")
	folder := flag.String("folder", "", "empty folder for state and logs")
	flag.Parse()
	if err := check(*binary, *node, *browser, *chromium, *folder); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(binary, node, browser, chromium, folder string) error {
	h, err := openHouse(binary, folder)
	if err != nil {
		return err
	}
	defer h.close()
	nodePlay, closeNode, err := startDriver(node, h.url, "node")
	if err != nil {
		return err
	}
	defer closeNode()
	servers := []player{
		{"analytics-node 1.5.73", "node", 249, nodePlay},
		{"analytics-go 1.3.1", "go", 249, newGoSDK(h.url, apiKey, "go").play},
	}
	players := servers
	if err := h.start("config.toml"); err != nil {
		return err
	}
	var inBrowser []player
	if chromium != "" {
		play, closeBrowser, err := startDriver(browser, h.url, "browser", chromium, filepath.Join(folder, "profile"))
		if err != nil {
			return err
		}
		defer closeBrowser()
		inBrowser = []player{{"analytics-browser 2.45.0", "browser", 299, play}}
		players = append(players, inBrowser...)
	}
	stored := 0
	do := func(story string, players []player, meanwhile func() error) {
		if err == nil {
			var n int
			n, err = tell(story, players, meanwhile)
			stored += n
		}
	}
	again := func(config string) {
		if err == nil {
			err = errors.Join(h.stop(), h.start(config))
		}
	}
	do("login", players, nil)

	// A restart: what is sent meanwhile waits in the socket's queue.
	if err == nil {
		err = h.stop()
	}
	do("restart", players, func() error {
		time.Sleep(5 * flushInterval) // for the SDKs to have connected: nobody is there to tell
		return h.start("config.toml")
	})

	// A disk that is full: 503, which all survive by sending again. A browser tries five times.
	again("full.toml")
	if err == nil {
		if status, postErr := h.post(); postErr != nil || status != 503 {
			err = fmt.Errorf("with a full disk an event was answered %d, %v; want 503", status, postErr)
		}
	}
	do("full", players, func() error {
		err := waitFor("each SDK to have met 503", func() error {
			n, err := h.refused("storage_full")
			if err == nil && n < 1+2*len(players) {
				err = fmt.Errorf("refused so far: %d requests", n)
			}
			return err
		})
		return errors.Join(err, h.stop(), h.start("config.toml"))
	})

	do("bad", players, nil)
	do("large", players, nil)
	do("wrong", players, nil)
	if err == nil {
		err = h.turnedAway(len(players))
	}

	// A browser's page is left; a tab is closed with a request under way, since nobody is there to answer; and what is
	// sent by HTTPS, compressed.
	do("leave", inBrowser, nil)
	if inBrowser != nil {
		if err == nil {
			err = h.stop()
		}
		do("close", inBrowser, nil)
		if err == nil {
			err = h.start("config.toml")
		}
		if err == nil {
			err = waitFor("what the closed tab had", func() error {
				s, err := h.stats()
				if err == nil && s.Syncs[0].Books.Taken != stored {
					err = fmt.Errorf("%d events taken of %d", s.Syncs[0].Books.Taken, stored)
				}
				return err
			})
		}
		again("tls.toml")
		do("secure "+strings.Replace(h.url, "http:", "https:", 1), inBrowser, nil)
	}
	if err != nil {
		return err
	}
	return verdict(h, players, stored)
}

// turnedAway checks that each SDK met each refusal, and that none looped.
func (h *house) turnedAway(players int) error {
	var errs []error
	for reason, most := range map[string]int{"invalid_events": players, "too_large": 20 * players, "invalid_api_key": players} {
		if n, err := h.refused(reason); err != nil || n < players || n > most {
			errs = append(errs, fmt.Errorf("%d requests were refused as %s (%v), want %d to %d", n, reason, err, players, most))
		}
	}
	return errors.Join(errs...)
}

// tell has all players tell a story at the same time, while meanwhile is done, and returns how many events of theirs are stored.
func tell(story string, players []player, meanwhile func() error) (stored int, err error) {
	name, _, _ := strings.Cut(story, " ")
	type end struct {
		who player
		answer
		err error
	}
	ends := make(chan end)
	for _, p := range players {
		go func() {
			a, err := p.play(story)
			ends <- end{p, a, err}
		}()
	}
	var errs []error
	if meanwhile != nil {
		errs = append(errs, meanwhile())
	}
	timeout := time.After(90 * time.Second)
	for range players {
		select {
		case e := <-ends:
			fmt.Printf("%-8s %-24s %3d calls, answered %v\n", name, e.who.name, e.Calls, e.Codes)
			stored += e.stored()
			want := outcome[name]
			if want == nil {
				want = map[string]int{"200": e.Calls}
			}
			if e.err == nil && (e.Calls == 0 || !maps.Equal(e.Codes, want)) {
				e.err = fmt.Errorf("answered %v, want %v", e.Codes, want)
			}
			if e.err != nil {
				errs = append(errs, fmt.Errorf("%s, %s: %w", e.who.name, name, e.err))
			}
		case <-timeout:
			return stored, errors.Join(append(errs, fmt.Errorf("%s: an SDK was not done after 90 s", name))...)
		}
	}
	return stored, errors.Join(errs...)
}

// startDriver starts a drive.js for the events of a prefix; play writes a story to it and reads the answer.
func startDriver(folder, url, prefix string, more ...string) (play func(string) (answer, error), stop func(), err error) {
	process := exec.Command("node", append([]string{filepath.Join(folder, "drive.js"), url, apiKey, prefix}, more...)...)
	process.Stderr = os.Stderr
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := process.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := process.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := process.Start(); err != nil {
		return nil, nil, err
	}
	lines := bufio.NewReader(out)
	play = func(story string) (a answer, err error) {
		if _, err := io.WriteString(in, story+"\n"); err != nil {
			return a, err
		}
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return a, fmt.Errorf("drive.js of %s: %w", prefix, err)
		}
		return a, json.Unmarshal(line, &a)
	}
	stop = func() {
		_ = process.Process.Kill()
		_ = process.Wait()
	}
	return play, stop, nil
}

// The sandbox's answers, as far as they are checked.
type (
	person struct {
		ID         string
		Attributes map[string]any
		Events     []event
	}
	event struct {
		Name       string
		Attributes map[string]any
	}
	report struct {
		Events     map[string]any
		Identifies map[string]any
		Order      map[string]any
		Invalid    map[string]int
	}
)

// expected are the people that the stories of one prefix make.
func expected(prefix string, last int) []person {
	ada := person{ID: prefix + "-ada", Attributes: map[string]any{
		"id": prefix + "-ada", "email": prefix + "-ada@example.com", "plan": "team", "first_seen": "2026-01-01",
		"campaign": "spring", // set while anonymous, taken over at login
		"logins":   3.0, "visited": []any{"cart"}, "recent": []any{"b", "a"}, "tags": []any{"x"},
		"badges": []any{"silver", "gold"}, "org": []any{"Acme", "Globex"},
	}, Events: []event{
		{"Order Completed", map[string]any{"total": 19.5, "currency": "EUR"}},
		{"Order Completed", map[string]any{"total": 7.0}}, // by device alone
		{"revenue_amount", map[string]any{"$productId": "sku-1", "$price": 4.99, "$quantity": 3.0}},
	}}
	bob := person{ID: prefix + "-bob", Attributes: map[string]any{"id": prefix + "-bob"}}
	for n := 1; n <= last; n++ {
		if prefix == "browser" && n == 260 { // of the tab that is closed
			bob.Attributes["plan"] = "closed"
			bob.Events = append(bob.Events, event{"[Amplitude] Page Viewed", map[string]any{"[Amplitude] Page Title": "check"}})
		}
		properties := map[string]any{"n": float64(n)}
		if prefix == "browser" && n >= 260 && n <= 269 { // the SDK says of each event on which page it was
			properties["[Amplitude] Page Title"] = "check"
		}
		bob.Events = append(bob.Events, event{"Step", properties})
	}
	return []person{ada, bob}
}

// verdict waits until all is delivered and compares.
func verdict(h *house, players []player, stored int) error {
	var s stats
	err := waitFor("the queue to drain", func() (err error) {
		if s, err = h.stats(); err == nil && s.Syncs[0].Books.Pending > 0 {
			err = fmt.Errorf("%d pending, sync %s", s.Syncs[0].Books.Pending, s.Syncs[0].Status)
		}
		return err
	})
	if err != nil {
		return err
	}
	var wrong []string
	differ := func(what string, got, want any) {
		if !reflect.DeepEqual(got, want) {
			wrong = append(wrong, fmt.Sprintf("%s:\n  got  %v\n  want %v", what, got, want))
		}
	}

	// Of each prefix's calls four are not for Customer.io: the two while anonymous, Not Selected and the group's.
	filtered := 4 * len(players)
	books, totals := s.Syncs[0].Books, s.Syncs[0].Totals
	differ("taken", books.Taken, stored)
	differ("delivered, filtered, dead, lost", [...]int{totals.Delivered, totals.Filtered, totals.Dead, totals.Lost},
		[...]int{stored - filtered, filtered, 0, 0})
	differ("books balanced", books.Balanced, true)

	var all struct{ People []person }
	if err := getJSON("http://"+h.sandbox+"/_sandbox/people", &all); err != nil {
		return err
	}
	differ("people", len(all.People), 2*len(players))
	events := 0
	for _, p := range players {
		for _, want := range expected(p.prefix, p.last) {
			events += len(want.Events)
			var got person
			if err := getJSON("http://"+h.sandbox+"/_sandbox/people/"+want.ID, &got); err != nil {
				wrong = append(wrong, err.Error())
				continue
			}
			differ("attributes of "+want.ID, got.Attributes, want.Attributes)
			differ("events of "+want.ID, got.Events, want.Events)
		}
	}
	var r report
	if err := getJSON("http://"+h.sandbox+"/_sandbox/report", &r); err != nil {
		return err
	}
	differ("events accepted", r.Events["unique_events"], float64(events))
	differ("events doubled", r.Events["duplicate_events"], 0.0)
	differ("ids shared by two events", r.Events["duplicate_events_differing"], 0.0)
	differ("identifies out of date", r.Identifies["stale"], 0.0)
	differ("identifies that Customer.io would drop", r.Identifies["failed_attribute_changes"], 0.0)
	differ("out of order", r.Order["out_of_order_events"], 0.0)
	differ("missing", r.Order["missing_events"], 0.0)
	differ("requests that overlap", r.Order["overlapping_requests"], 0.0)
	differ("refused by Customer.io", len(r.Invalid), 0)

	if len(wrong) > 0 {
		return fmt.Errorf("WRONG\n%s", strings.Join(wrong, "\n"))
	}
	fmt.Printf("right: %d stored, %d events and %d people in Customer.io, in order, none lost, none doubled\n", stored, events, len(all.People))
	return nil
}
