package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

var update = flag.Bool("update", false, "write the expected files of testdata anew; then read each of them")

func cmpLines(want, got string) string {
	return cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n"))
}

// workspace is what Customer.io has after a recorded request, as the files of
// testdata/recorded show it: everybody as they are then, and the events that the
// request brought.
type workspace struct {
	SDK     string            `json:"sdk"`
	People  []shownPerson     `json:"people"`
	Events  []shownEvent      `json:"events"`
	NotSent map[string]uint64 `json:"not_sent"` // events of this request, by reason
}

type shownPerson struct {
	ID         string                     `json:"id"`
	Email      string                     `json:"email,omitempty"`
	Attributes map[string]json.RawMessage `json:"attributes"`
}

// shownEvent's time is that of the client where it said no upload time, else "as it
// was received": the recordings are old, and clocks that are far off are corrected.
type shownEvent struct {
	Person     string          `json:"person"`
	Action     string          `json:"action"`
	Name       string          `json:"name"`
	ID         string          `json:"id"`
	Time       string          `json:"time"`
	Attributes json.RawMessage `json:"attributes"`
}

const timeOfReceipt = "as it was received"

// before gives the person of the recordings something to lose, so that one sees what
// each of the ten operations does.
const before = `{"api_key":"` + recordings.Key + `","events":[{"event_type":"$identify","user_id":"user-000001","device_id":"device-before","user_properties":{"$set":{
	"role":"guest","old":"yes","n":41,"logins":40,"first_seen":"2023-05-05","org":"Before",
	"list":["before"],"list2":["before"],"plist":["before"],"pre":["before"],"post":["before"],"rem":["gone","stays"]}}}]}`

// What real SDKs sent, byte for byte, into a real daemon; and what Customer.io has then.
// The requests of one SDK come one after the other to one installation.
func TestRecordedRequests(t *testing.T) {
	t.Parallel()
	bySDK := map[string][]recordings.Request{}
	for _, rec := range recordings.All() {
		sdk, _, _ := strings.Cut(rec.Name, "-")
		bySDK[sdk] = append(bySDK[sdk], rec)
	}
	for sdk, recs := range bySDK {
		t.Run(sdk, func(t *testing.T) {
			t.Parallel()
			r := rehearse(t, rehearsal.Settings{})
			edit(t, r, `properties = ["plan", "email", "role"]`, `properties = ["role", "tags", "old", "n", "logins", "first_seen", "org", "cohort",
  "list", "list2", "plist", "pre", "post", "rem"]`)
			edit(t, r, `properties = ["seq", "total", "currency"]`, "properties = [\"*\"]\nfields = [\"platform\", \"os\", \"revenue\"]")
			up(t, r)
			accepted(t, r, before)
			counts := eventsNotSent(t, r)
			var after int64
			for _, rec := range recs {
				sendRecorded(t, r, rec)
				now := eventsNotSent(t, r)
				w := workspace{SDK: rec.SDK, People: showPeople(r.Sandbox.People()), NotSent: map[string]uint64{}}
				for reason, n := range now {
					if n > counts[reason] {
						w.NotSent[reason] = n - counts[reason]
					}
				}
				counts = now
				events := r.Sandbox.Events(after, 0)
				if len(events) > 0 {
					after = events[len(events)-1].Number
				}
				w.Events = showEvents(t, rec, events)
				golden(t, "recorded/"+rec.Name+".json", toJSON(t, w))
			}
			if report := r.Sandbox.Report(); len(report.Invalid) != 0 {
				t.Errorf("Customer.io refused %v: %s", report.Invalid, report.FirstInvalid)
			}
			down(t, r)
		})
	}
}

// eventsNotSent waits until all is delivered, and counts events by why they were not sent.
func eventsNotSent(t *testing.T, r *rehearsal.Rehearsal) map[string]uint64 {
	t.Helper()
	snap := drained(t, r)
	balanced(t, snap)
	counts := map[string]uint64{}
	for _, f := range only(t, snap).Filtered {
		if f.Kind == "event" {
			counts[f.Reason] = f.Count
		}
	}
	return counts
}

// sendRecorded writes a recorded request to the wire as the SDK did, but for the port
// in its Host.
func sendRecorded(t *testing.T, r *rehearsal.Rehearsal, rec recordings.Request) {
	t.Helper()
	c, err := net.Dial("tcp", r.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n", rec.Method, rec.Path)
	for _, h := range rec.Header {
		fmt.Fprintf(&b, "%s: %s\r\n", h[0], strings.ReplaceAll(h[1], "127.0.0.1:PORT", r.Listen))
	}
	b.WriteString("\r\n")
	b.Write(rec.Body)
	if _, err := c.Write([]byte(b.String())); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%s: %v", rec.Name, err)
	}
	defer resp.Body.Close()
	var said struct {
		Code     int `json:"code"`
		Ingested int `json:"events_ingested"`
		Size     int `json:"payload_size_bytes"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&said); err != nil || resp.StatusCode != 200 || said.Code != 200 ||
		said.Ingested != len(sentEvents(t, rec)) || said.Size != len(rec.Body) {
		t.Fatalf("%s was answered %s %+v, %v", rec.Name, resp.Status, said, err)
	}
}

type sentEvent struct {
	Time     int64  `json:"time"`
	InsertID string `json:"insert_id"`
	Type     string `json:"event_type"`
}

func sentEvents(t *testing.T, rec recordings.Request) []sentEvent {
	t.Helper()
	var body struct {
		Events []sentEvent `json:"events"`
	}
	if err := json.Unmarshal(rec.Body, &body); err != nil {
		t.Fatal(err)
	}
	return body.Events
}

func showPeople(people []sandbox.Person) []shownPerson {
	shown := []shownPerson{}
	for _, p := range people {
		s := shownPerson{ID: p.ID, Email: p.Email, Attributes: map[string]json.RawMessage{}}
		for name, value := range p.Attributes {
			s.Attributes[name] = value
		}
		shown = append(shown, s)
	}
	return shown
}

func showEvents(t *testing.T, rec recordings.Request, events []sandbox.Event) []shownEvent {
	t.Helper()
	uploaded := strings.Contains(string(rec.Body), `"client_upload_time"`)
	clients := map[string][]time.Time{} // by event type
	for _, e := range sentEvents(t, rec) {
		clients[e.Type] = append(clients[e.Type], time.UnixMilli(e.Time).Truncate(time.Second))
	}
	shown := []shownEvent{}
	for _, e := range events {
		s := shownEvent{Person: e.PersonID, Action: e.Action, Name: e.Name, ID: e.ID, Attributes: e.Attributes}
		got := time.Unix(e.Timestamp, 0)
		s.Time = got.UTC().Format(time.RFC3339)
		// A request that was sent at once holds events of the last seconds.
		if age := e.Received.Sub(got); uploaded && age >= 0 && age < 20*time.Second {
			s.Time = timeOfReceipt
		}
		if cs := clients[e.Name]; !uploaded && len(cs) > 0 && cs[0].After(e.Received.Add(time.Minute)) {
			s.Time = cs[0].UTC().Format(time.RFC3339) // this machine's clock is older than the recording: held at its minute
		}
		shown = append(shown, s)
	}
	return shown
}
