package ingest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
)

// malformedCase is a request that must be refused, and the answer that Amplitude's API gives to it.
type malformedCase struct {
	Name     string `json:"name"`
	Method   string `json:"method"` // "" = POST
	Path     string `json:"path"`   // "" = /2/httpapi
	Query    string `json:"query"`
	Type     string `json:"type"` // Content-Type
	Encoding string `json:"encoding"`
	// Body is put together of texts, and of pairs of a text and how often it comes. $KEY and $GOOD stand for the key and
	// a good event. Latin1: each character is one byte, for what is no UTF-8.
	Body   []any  `json:"body"`
	Latin1 bool   `json:"latin1"`
	Status int    `json:"status"`
	Answer string `json:"answer"`
}

func (c malformedCase) body() string {
	var b strings.Builder
	for _, part := range c.Body {
		if pair, ok := part.([]any); ok {
			b.WriteString(strings.Repeat(pair[0].(string), int(pair[1].(float64))))
		} else {
			b.WriteString(part.(string))
		}
	}
	text := strings.NewReplacer("$KEY", key, "$GOOD", good).Replace(b.String())
	if !c.Latin1 {
		return text
	}
	var raw []byte
	for _, r := range text {
		raw = append(raw, byte(r))
	}
	return string(raw)
}

// malformed are the cases of testdata/malformed.jsonl, one a line.
func malformed(t testing.TB) (cases []malformedCase) {
	t.Helper()
	text, err := os.ReadFile("testdata/malformed.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var c malformedCase
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		c.Method, c.Path = cmp.Or(c.Method, "POST"), cmp.Or(c.Path, "/2/httpapi")
		cases = append(cases, c)
	}
	return cases
}

func (c malformedCase) ask(t *testing.T, path string) (status int, answer string) {
	t.Helper()
	store := &memory{}
	h := New(options(), store)
	header := []string{"Content-Type", c.Type}
	if c.Encoding != "" {
		header = append(header, "Content-Encoding", c.Encoding)
	}
	if c.Query != "" {
		path += "?" + c.Query
	}
	w := do(t, h, c.Method, path, c.body(), header...)
	if n := len(store.events()); n != 0 {
		t.Errorf("%d events stored", n)
	}
	if door := h.Door(); door.Events != 0 || len(door.Refused) != 1 {
		t.Errorf("door %+v", door)
	}
	return w.Code, w.Body.String()
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	cases := malformed(t)
	if len(cases) < 500 {
		t.Fatalf("%d cases", len(cases))
	}
	names := map[string]bool{}
	for _, c := range cases {
		if names[c.Name] {
			t.Errorf("%s is there twice", c.Name)
		}
		names[c.Name] = true
		t.Run(c.Name, func(t *testing.T) {
			status, answer := c.ask(t, c.Path)
			if status != c.Status || answer != c.Answer {
				t.Errorf("%s\n got %d %s\nwant %d %s", head(c.body()), status, answer, c.Status, c.Answer)
			}
			if status != 400 && status != 413 && status != 414 {
				t.Errorf("status %d", status)
			}
			if strings.HasPrefix(answer, "{") {
				if reason := spins(status, []byte(answer)); reason != "" {
					t.Errorf("%d %s: %s", status, answer, reason)
				}
			} else if !formPath[c.Path] {
				t.Errorf("%s answers %q, and SDKs want JSON", c.Path, answer)
			}
			if len(answer) > 2000 {
				t.Errorf("an answer of %d bytes", len(answer))
			}
			if c.Path == "/2/httpapi" && c.Method == "POST" {
				if status, answer := c.ask(t, "/batch"); status != c.Status || answer != c.Answer {
					t.Errorf("/batch answers %d %s, want %d %s", status, answer, c.Status, c.Answer)
				}
			}
		})
	}
}

func TestBodiesCutOffAreRefused(t *testing.T) {
	for _, c := range []struct{ path, kind, body string }{
		{"/2/httpapi", "application/json", batch(good)},
		{"/batch", "text/plain", batch(good)},
		{"/", "application/json", batch(good)},
		{"/", asForm, "client=" + key + "&e=" + url.QueryEscape("["+good+"]")},
		{"/identify", asForm, "api_key=" + key + "&identification=" + url.QueryEscape(`{"user_id":"user-1"}`)},
		{"/groupidentify", asForm, "api_key=" + key + "&identification=" + url.QueryEscape(`{"group_type":"org","group_value":"Acme"}`)},
		{"/httpapi", asForm, "api_key=" + key + "&event=" + url.QueryEscape(good)},
	} {
		for i := range c.body {
			cut := malformedCase{Method: "POST", Path: c.path, Type: c.kind, Body: []any{c.body[:i]}}
			if status, answer := cut.ask(t, c.path); status != 400 {
				t.Errorf("%s, cut after %d bytes: %d %s", c.path, i, status, answer)
			}
		}
	}
}

// What looks odd and is right.
func TestOddRequestsAreTaken(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + `1` + strings.Repeat(`}`, n) }
	bodies := map[string]string{
		"space everywhere":       "\r\n{ \"api_key\" : \"" + key + "\" ,\t\"events\" : [ " + good + " ] }\n",
		"events before the key":  `{"events":[` + good + `],"api_key":"` + key + `"}`,
		"escaped names":          `{"api\u005fkey":"` + key + `","\u0065vents":[` + good + `]}`,
		"an escaped key":         `{"api_key":"\u0030` + key[1:] + `","events":[` + good + `]}`,
		"options null":           `{"api_key":"` + key + `","options":null,"events":[` + good + `]}`,
		"options unknown":        `{"api_key":"` + key + `","options":{"x":[1]},"events":[` + good + `]}`,
		"unknown members":        `{"api_key":"` + key + `",` + manyNames(100) + `,"events":[` + good + `]}`,
		"half a surrogate aside": `{"api_key":"` + key + `","x":"\ud83d","events":[` + good + `]}`,
		"half a surrogate":       batch(`{"event_type":"E","user_id":"user-1","event_properties":{"cut":"so\ud83d"}}`),
		"40 deep":                batch(`{"event_type":"E","user_id":"user-1","event_properties":` + deep(40) + `}`),
		"brackets in text":       batch(`{"event_type":"E","user_id":"user-1","x":"}]\"}]\\"}`),
		"nulls":                  batch(`{"event_type":"E","user_id":"user-1","device_id":null,"time":null,"groups":null,"plan":null}`),
		"numbers":                batch(`{"event_type":"E","user_id":"user-1","event_properties":{"a":1e400,"b":9007199254740993,"c":-0}}`),
		"an empty name":          batch(`{"event_type":"E","user_id":"user-1","event_properties":{"":1}}`),
		"PHP's empty object":     batch(`{"event_type":"E","user_id":"user-1","event_properties":[]}`),
	}
	for name, body := range bodies {
		t.Run(name, func(t *testing.T) {
			store := &memory{}
			if status, answer := post(t, New(options(), store), "/2/httpapi", body); status != 200 || len(store.events()) != 1 {
				t.Errorf("%s: %d %s", head(body), status, answer)
			}
		})
	}
}

func manyNames(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"n%d":{}`, i)
	}
	return b.String()[1:]
}
