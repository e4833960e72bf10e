package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ampcio/config"
	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
	"ampcio/users"
)

// wiretap hands requests on to a sandbox and keeps the bodies of data, byte for byte.
type wiretap struct {
	to http.Handler

	mu     sync.Mutex
	bodies []string
}

func (w *wiretap) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	if r.URL.Path == "/api/v2/batch" {
		w.mu.Lock()
		w.bodies = append(w.bodies, string(body))
		w.mu.Unlock()
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	w.to.ServeHTTP(rw, r)
}

// RoundTrip is for deliveries in this process.
func (w *wiretap) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, r)
	return rec.Result(), nil
}

func (w *wiretap) taken() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.bodies)
}

// operationsOf takes the operations out of requests.
func operationsOf(t testing.TB, bodies []string) (operations []string) {
	t.Helper()
	for _, b := range bodies {
		var request struct{ Batch []json.RawMessage }
		if err := json.Unmarshal([]byte(b), &request); err != nil {
			t.Fatalf("%v in %s", err, b)
		}
		for _, o := range request.Batch {
			operations = append(operations, string(o))
		}
	}
	return operations
}

// sameForEach compares what was explained with what was sent: the same operations, byte
// for byte, and for each person in the same order.
func sameForEach(t testing.TB, explained, sent []string) {
	t.Helper()
	byPerson := func(operations []string) map[string][]string {
		m := map[string][]string{}
		for _, o := range operations {
			var head struct{ Identifiers json.RawMessage }
			if err := json.Unmarshal([]byte(o), &head); err != nil {
				t.Fatal(err)
			}
			m[string(head.Identifiers)] = append(m[string(head.Identifiers)], o)
		}
		return m
	}
	want, got := byPerson(explained), byPerson(sent)
	for person := range want {
		if diff := cmpLines(strings.Join(want[person], "\n"), strings.Join(got[person], "\n")); diff != "" {
			t.Errorf("%s: -explained +sent\n%s", person, diff)
		}
	}
	if len(explained) != len(sent) {
		t.Errorf("%d operations explained, %d sent", len(explained), len(sent))
	}
}

func explained(t testing.TB, text string) (all []explanation) {
	t.Helper()
	for line := range strings.Lines(text) {
		var e explanation
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		all = append(all, e)
	}
	return all
}

func requestsOf(all []explanation) (bodies []string) {
	for _, e := range all {
		for _, y := range e.Syncs {
			for _, r := range y.Requests {
				bodies = append(bodies, string(r.Body))
			}
		}
	}
	return bodies
}

var ulids = regexp.MustCompile(`"id":"[0-9A-Z]{26}"`)

var timestamps = regexp.MustCompile(`"timestamp":\d+`)

// What explain says of what real SDKs have sent, before it comes and when it is stored,
// is what Customer.io receives of it.
func TestExplainedIsWhatIsReceived(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	tap := &wiretap{to: r.Sandbox}
	server := httptest.NewServer(tap)
	defer server.Close()
	edit(t, r, r.SandboxURL, server.URL)
	edit(t, r, `retry_max = "2s"`, "retry_max = \"2s\"\nbatch_operations = 1")
	edit(t, r, `properties = ["plan", "email", "role"]`, `properties = ["*"]`)
	edit(t, r, `properties = ["seq", "total", "currency"]`, "properties = [\"*\"]\nfields = [\"platform\", \"os\", \"revenue\"]\nuser_properties = [\"role\"]")
	up(t, r)
	accepted(t, r, before)
	drained(t, r)
	first := len(tap.taken())

	var bodies bytes.Buffer
	recs := slices.Clone(recordings.All())
	for _, rec := range recs {
		bodies.Write(rec.Body)
		bodies.WriteString("\n")
	}
	// All other shapes of events that were ever recorded of SDKs, in requests that are none of theirs.
	others, err := os.ReadFile("testdata/sdk-transcripts.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	bodies.Write(others)
	path := filepath.Join(r.Dir, "input.jsonl")
	write(t, path, bodies.String())
	foretold := explained(t, did(t, r, "explain", "--json", path))

	did(t, r, "sync", "pause", "demo")
	for _, rec := range recs {
		sendRecorded(t, r, rec)
	}
	for body := range strings.Lines(string(others)) {
		accepted(t, r, body)
	}
	n := only(t, stats(t, r)).Books.Taken
	stored := explained(t, did(t, r, "explain", "--json", "--seq", fmt.Sprintf("2-%d", n)))
	if again := explained(t, did(t, r, "explain", "--json", "--seq", fmt.Sprintf("2-%d", n))); toJSON(t, again) != toJSON(t, stored) {
		t.Error("explaining has changed something")
	}
	if len(tap.taken()) != first {
		t.Error("explain has sent something")
	}
	did(t, r, "sync", "resume", "demo")
	drained(t, r)
	sent := tap.taken()[first:]
	if len(sent) < 60 {
		t.Fatalf("only %d requests", len(sent))
	}
	// Whole requests: each has one operation.
	want, got := slices.Sorted(slices.Values(requestsOf(stored))), slices.Sorted(slices.Values(sent))
	if diff := cmpLines(strings.Join(want, "\n"), strings.Join(got, "\n")); diff != "" {
		t.Errorf("-explained +received\n%s", diff)
	}
	sameForEach(t, operationsOf(t, requestsOf(stored)), operationsOf(t, sent))

	// Foretold was the same, but for the time of receipt, and for ids that are made when an
	// event is stored.
	plain := func(all []explanation) string {
		for i := range all {
			e := &all[i]
			e.From, e.Sequence, e.Before, e.Notes = "", 0, nil, nil
			e.Received, e.Time = time.Time{}, time.Time{}
			for j := range e.Syncs {
				y := &e.Syncs[j]
				for k := range y.Operations {
					y.Operations[k].Body = timestamps.ReplaceAll(y.Operations[k].Body, []byte(`"timestamp":0`))
				}
				for k := range y.Requests {
					y.Requests[k].Body = timestamps.ReplaceAll(y.Requests[k].Body, []byte(`"timestamp":0`))
				}
			}
		}
		return toJSON(t, all)
	}
	if len(foretold) != len(stored) {
		t.Fatalf("%d foretold, %d stored", len(foretold), len(stored))
	}
	for i := range foretold {
		if foretold[i].StandIn {
			foretold[i].ULID, foretold[i].StandIn, stored[i].ULID = "", false, ""
		}
	}
	if diff := cmpLines(plain(foretold), plain(stored)); diff != "" {
		t.Errorf("-foretold +stored\n%s", diff)
	}

	// By now nothing is new; and stopped it is explained as it is while it runs.
	e := filepath.Join(r.Dir, "event.json")
	write(t, e, `{"event_type":"Visit","user_id":"user-000001","device_id":"device-000001","insert_id":"explained-1","time":1700000000000}`)
	running := did(t, r, "explain", "--json", e)
	contains(t, running, `"no_identify_because":"unchanged"`, `"last_sent":"something"`)
	contains(t, did(t, r, "explain", e), "identify not sent: nothing has changed since")
	contains(t, did(t, r, "explain", "--new", e), "before     {}\n")
	down(t, r)
	files := did(t, r, "explain", "--json", e)
	cut := func(text string) string {
		return regexp.MustCompile(`"received":"[^"]*"|"timestamp":\d+`).ReplaceAllString(text, "")
	}
	if cut(files) != cut(running) {
		t.Errorf("running and stopped:\n%s%s", running, files)
	}
	if again := explained(t, did(t, r, "explain", "--json", "--seq", "2-4")); len(again) != 3 || toJSON(t, again[0].After) != toJSON(t, stored[0].After) {
		t.Errorf("stopped: %+v", again)
	}
}

// A pair of mapping/testdata, as far as it is of use here.
type mappingPair struct {
	Story  string
	Config struct {
		Identifier     string                       `json:"identifier"`
		IdentifierKind string                       `json:"identifier_kind"`
		Select         []map[string]json.RawMessage `json:"select"`
		Events         map[string]json.RawMessage   `json:"events"`
		Users          map[string]json.RawMessage   `json:"users"`
	}
	Events []struct {
		Received time.Time
		Event    json.RawMessage
		Refused  *string
	}
}

// tomlOf writes a JSON value in TOML.
func tomlOf(t testing.TB, value json.RawMessage) string {
	t.Helper()
	switch value[0] {
	case '{':
		var members []string
		if err := mapping.Members(value, func(name string, v []byte) error {
			members = append(members, fmt.Sprintf("%q = %s", name, tomlOf(t, v)))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return "{ " + strings.Join(members, ", ") + " }"
	case '[':
		var list []json.RawMessage
		if err := json.Unmarshal(value, &list); err != nil {
			t.Fatal(err)
		}
		var items []string
		for _, v := range list {
			items = append(items, tomlOf(t, v))
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	return string(value)
}

// generationOf is the pair's configuration, in the words of a file.
func (p *mappingPair) generationOf(t testing.TB, batch int) *generation {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "[project.app]\namplitude_api_keys = [%q]\nrelay = \"off\"\n[sync.demo]\nregion = \"eu\"\nsite_id = %q\napi_key = %q\nidentifier = %q\n", recordings.Key, rehearsal.SiteID, rehearsal.APIKey, p.Config.Identifier)
	if p.Config.IdentifierKind != "" {
		fmt.Fprintf(&b, "identifier_kind = %q\n", p.Config.IdentifierKind)
	}
	table := func(head string, members map[string]json.RawMessage) {
		fmt.Fprintln(&b, head)
		for _, name := range sortedKeys(members) {
			fmt.Fprintf(&b, "%s = %s\n", name, tomlOf(t, members[name]))
		}
	}
	for _, s := range p.Config.Select {
		table("[[sync.demo.select]]", s)
	}
	table("[sync.demo.events]", p.Config.Events)
	table("[sync.demo.users]", p.Config.Users)
	fmt.Fprintf(&b, "[sync.demo.delivery]\nbatch_operations = %d\n", batch)
	path := filepath.Join(t.TempDir(), "config.toml")
	write(t, path, b.String())
	cfg, err := config.Load(path, config.Environment{})
	if err != nil {
		t.Fatalf("%v in\n%s", err, b.String())
	}
	g, err := newGeneration(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// What explain says of every pair of mapping is what a delivery sends of it, and what the
// pair expects.
func TestExplainedIsWhatIsDelivered(t *testing.T) {
	names, err := filepath.Glob("mapping/testdata/*.in.json")
	if err != nil || len(names) < 20 {
		t.Fatal("no pairs", names, err)
	}
	for i, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".in.json"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var p mappingPair
			if err := json.Unmarshal(text, &p); err != nil {
				t.Fatal(err)
			}
			g := p.generationOf(t, 1+499*(i%2))
			x := newExplainer(g, []string{"demo"}, newMemory())
			defer x.close()
			var all []explanation
			house := newPairHouse(t, g)
			for _, e := range p.Events {
				if e.Refused != nil {
					t.Skip("of a refusal by Customer.io")
				}
				in, err := readRequest(e.Event, "")
				if err != nil {
					t.Skip("not taken at the door: ", err)
				}
				err = x.input(t.Context(), in, e.Received.UnixMilli(), func(one explanation) error { all = append(all, one); return nil })
				if err != nil {
					t.Fatal(err)
				}
				house.take(mapping.Arrival{Project: "app", Received: e.Received.UnixMilli(), Source: mapping.SourceHTTP, Events: in.Events})
			}
			sent := operationsOf(t, house.deliver())
			operations := operationsOf(t, requestsOf(all))
			masked := func(list []string) []string { return list }
			if slices.ContainsFunc(all, func(e explanation) bool { return e.StandIn }) { // its id is made when it is stored
				masked = func(list []string) []string {
					for i := range list {
						list[i] = ulids.ReplaceAllString(list[i], `"id":"…"`)
					}
					return list
				}
			}
			sent, operations = masked(sent), masked(operations)
			sameForEach(t, operations, sent)

			out, err := os.ReadFile(strings.TrimSuffix(name, ".in.json") + ".out.json")
			if err != nil {
				t.Fatal(err)
			}
			var want []struct {
				Operations []json.RawMessage
				After      json.RawMessage `json:"user_properties_after"`
				Refused    string          `json:"refused_because"` // then nothing is sent
			}
			if err := json.Unmarshal(out, &want); err != nil || len(want) != len(all) {
				t.Fatalf("%v, %d outcomes, %d explained", err, len(want), len(all))
			}
			var expected []string
			for i, w := range want {
				for _, o := range w.Operations {
					if w.Refused != "" {
						break
					}
					expected = append(expected, string(o))
				}
				var a, b any
				if json.Unmarshal(w.After, &a) != nil || json.Unmarshal(all[i].After, &b) != nil || toJSON(t, a) != toJSON(t, b) {
					t.Errorf("event %d: properties %s, want %s", i, all[i].After, w.After)
				}
			}
			if diff := cmpLines(strings.Join(masked(expected), "\n"), strings.Join(operations, "\n")); diff != "" {
				t.Errorf("-expected by mapping +explained\n%s", diff)
			}
		})
	}
}

// pairHouse is the rooms that an event passes, in this process: so that its time of
// receipt can be said.
type pairHouse struct {
	t     *testing.T
	g     *generation
	log   *queue.Log
	users *users.Store
	c     *queue.Consumer
	stop  context.CancelFunc
	ended chan error
	parts int
}

func newPairHouse(t *testing.T, g *generation) *pairHouse {
	t.Helper()
	dir := t.TempDir()
	h := &pairHouse{t: t, g: g, ended: make(chan error, 4)}
	var err error
	if h.log, err = queue.Open(queue.Options{Dir: dir, RotateBytes: 64 << 20, RotateAfter: time.Hour, InFlightBytes: 1 << 20, Now: time.Now}); err != nil {
		t.Fatal(err)
	}
	if h.c, err = queue.OpenConsumer(h.log, queue.ConsumerOptions{Name: "demo", Project: "app", Enabled: true, WindowBytes: 1 << 20, Now: time.Now}); err != nil {
		t.Fatal(err)
	}
	if h.users, err = users.Open(t.Context(), h.log, users.Options{Path: filepath.Join(dir, "users.db"), Carry: g.carries}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	h.run(ctx, h.log.Run)
	h.run(ctx, h.c.Run)
	t.Cleanup(func() {
		stop()
		for range h.parts {
			if err := <-h.ended; err != nil {
				t.Error(err)
			}
		}
		for _, close := range []func() error{h.users.Close, h.c.Close, h.log.Close} {
			if err := close(); err != nil {
				t.Error(err)
			}
		}
	})
	return h
}

func (h *pairHouse) run(ctx context.Context, f func(context.Context) error) {
	h.parts++
	go func() { h.ended <- f(ctx) }()
}

func (h *pairHouse) take(a mapping.Arrival) {
	h.t.Helper()
	if _, err := h.users.Append(h.t.Context(), a); err != nil {
		h.t.Fatal(err)
	}
}

// deliver lets a delivery send all of it to a sandbox, and gives the bodies.
func (h *pairHouse) deliver() []string {
	h.t.Helper()
	tap := &wiretap{to: sandbox.New(sandbox.Options{SiteID: rehearsal.SiteID, APIKey: rehearsal.APIKey, Region: "eu"})}
	o := accountOptions(h.g.cfg.Sync["demo"])
	o.Transport = tap
	s := delivery.New(h.c, h.g.rules["demo"], o)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	eventually(h.t, 20*time.Second, "all is delivered", func() bool {
		st, err := h.c.Stats()
		return err == nil && st.Books.Pending == 0
	})
	stop()
	if err := <-ended; err != nil {
		h.t.Error(err)
	}
	return tap.taken()
}
