package ingest

import (
	"bufio"
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"ampcio/logbook"
	"ampcio/mapping"
	"ampcio/queue"
)

// transcript is one recording of a real SDK: its first request, and what it was answered. What it then did is in sdk.
type transcript struct {
	Case    string      `json:"case"`
	Answers []any       `json:"answers"` // a status, or words when the connection was cut
	Path    string      `json:"path"`
	Header  [][2]string `json:"header"`
	Body    json.RawMessage
}

// transcripts are all 94, with the requests of others where a recording has none of its own: nobody was listening, or
// only the events' types were kept.
func transcripts(t testing.TB) []transcript {
	t.Helper()
	text, err := os.ReadFile("testdata/transcripts.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var list []transcript
	byName := map[string]transcript{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var one transcript
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			t.Fatal(err)
		}
		list = append(list, one)
		byName[one.Case] = one
	}
	if len(list) != 94 {
		t.Fatalf("%d recordings, want 94", len(list))
	}
	for i, one := range list {
		if one.Body == nil {
			other := byName[one.family()+"-track-200"]
			if one.family() == "legacy-js" {
				other = byName["legacy-js-200"]
			}
			list[i].Path, list[i].Header, list[i].Body = other.Path, other.Header, other.Body
		}
	}
	return list
}

func (r transcript) family() string {
	if strings.HasPrefix(r.Case, "legacy-js") {
		return "legacy-js"
	}
	family, _, _ := strings.Cut(r.Case, "-")
	return family
}

// story is what a recording is about, without the SDK.
func (r transcript) story() string { return strings.TrimPrefix(r.Case, r.family()+"-") }

// request writes what the SDK sends for some of the recorded events.
func (r transcript) request(t *testing.T, events []json.RawMessage) []byte {
	t.Helper()
	list, err := json.Marshal(events)
	if err != nil {
		t.Fatal(err)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(r.Body, &members); err != nil {
		t.Fatal(err)
	}
	if r.family() == "legacy-js" {
		v := url.Values{}
		for name, value := range members {
			var text string
			if json.Unmarshal(value, &text) == nil {
				v.Set(name, text)
			}
		}
		v.Set("e", string(list))
		sum := md5.Sum([]byte(v.Get("v") + v.Get("client") + v.Get("e") + v.Get("upload_time")))
		if recordedSum := v.Get("checksum"); len(events) == len(r.events(t)) && recordedSum != hex.EncodeToString(sum[:]) {
			t.Fatal("the checksum is not the recorded one: the events are not written as the SDK wrote them")
		}
		v.Set("checksum", hex.EncodeToString(sum[:]))
		return []byte(v.Encode())
	}
	members["events"] = list
	body, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func (r transcript) events(t *testing.T) (events []json.RawMessage) {
	t.Helper()
	var body struct{ Events []json.RawMessage }
	if err := json.Unmarshal(r.Body, &body); err != nil {
		t.Fatal(err)
	}
	return body.Events
}

// with gives a recorded event another value of a member; nil takes the member away.
func with(t *testing.T, event json.RawMessage, name string, value any) json.RawMessage {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal(event, &members); err != nil {
		t.Fatal(err)
	}
	members[name] = value
	if value == nil {
		delete(members, name)
	}
	out, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// house is the door that an SDK of a recording finds, and what goes wrong at it.
type house struct {
	options Options
	store   *memory
	path    string                   // that the SDK asks; "" = the recorded one
	fails   []error                  // of the store, one request after the other, and then no more
	always  bool                     // the last of fails stays
	spoil   func(body []byte) []byte // on the way
	cut     int                      // of so many answers the connection is cut before they come
	requests,
	bytes int
}

// serve sends one request of r with some events to h.
func (w *house) serve(t *testing.T, h *Handler, r transcript, events []json.RawMessage) (int, []byte, error) {
	t.Helper()
	w.store.err = nil
	if w.requests < len(w.fails) {
		w.store.err = w.fails[w.requests]
	} else if w.always {
		w.store.err = w.fails[len(w.fails)-1]
	}
	w.requests++
	body := r.request(t, events)
	if w.spoil != nil {
		body = w.spoil(body)
	}
	path := r.Path
	if w.path != "" {
		path = w.path
	}
	header := []string{}
	for _, pair := range r.Header {
		header = append(header, pair[0], pair[1])
		if strings.EqualFold(pair[0], "Content-Encoding") {
			body = []byte(compress(t, body))
		}
	}
	w.bytes = len(body)
	answer := do(t, h, http.MethodPost, path, string(body), header...)
	if w.requests <= w.cut {
		return 0, nil, errors.New("connection reset by peer")
	}
	return answer.Code, answer.Body.Bytes(), nil
}

// What becomes of the events, by index.
type ending struct {
	stored, dropped, kept []int
	most                  int // requests
}

func upTo(n int) (all []int) {
	for i := range n {
		all = append(all, i)
	}
	return all
}

func TestEveryRecording(t *testing.T) {
	disk := errors.New("input/output error")
	for _, r := range transcripts(t) {
		events := r.events(t)
		n, size := len(events), len(events)
		w := &house{options: options(), store: &memory{}}
		want := ending{stored: upTo(n), most: 1}
		player := &sdk{family: r.family()}
		failed := 0
		for _, status := range r.Answers {
			if s, ok := status.(float64); ok && s >= 429 {
				failed++
			}
		}
		switch story := r.story(); {
		case story == "track-without-ids-200":
			want = ending{dropped: []int{0}, most: 1}
		case strings.HasSuffix(story, "-200") && !strings.Contains(story, "-then-"), strings.HasPrefix(story, "200"), strings.HasPrefix(story, "serverurl"):
			// Delivered by the first request.
		case story == "400-events_with_invalid_fields", story == "400-events_with_missing_fields", story == "400-events_with_invalid_id_lengths":
			switch story {
			case "400-events_with_invalid_fields":
				events[1] = with(t, events[1], "time", "2026-11-23T11:16:57Z")
			case "400-events_with_missing_fields":
				events[1] = with(t, events[1], "event_type", nil)
			default:
				events[1] = with(t, with(t, events[1], "user_id", "ab"), "device_id", nil)
			}
			want = ending{stored: []int{0, 2}, dropped: []int{1}, most: 2}
		case story == "400-silenced_events", story == "429-throttled_events", story == "429-exceeded_daily_quota", story == "429-bare":
			// Nobody is silenced or throttled here; when there is too much, it is a 503, which all survive.
			w.fails = []error{queue.ErrBusy, fmt.Errorf("append: %w", &queue.FullError{Reason: "min_free"})}
			want.most = 3
		case story == "400-missing_field":
			w.spoil = func(body []byte) []byte { return bytes.Replace(body, []byte(`"api_key"`), []byte(`"apikey"`), 1) }
			want = ending{dropped: upTo(n), most: 1}
		case story == "400-invalid-api-key":
			w.options.Projects = map[string][]string{"app": {"another-key"}}
			want = ending{dropped: upTo(n), most: 1}
			if player.family == "legacy-js" {
				want = ending{kept: upTo(n), most: 1}
			}
		case story == "403", story == "404-plain":
			w.path = "/amplitude" // of no endpoint
			want = ending{dropped: upTo(n), most: 1}
		case story == "400-html-body", story == "400-without-indexes":
			w.spoil = func(body []byte) []byte { return body[:len(body)-1] } // something between has cut it
			want = ending{dropped: upTo(n), most: 1}
		case story == "413-single-event":
			w.options.MaxBody = 100
			want = ending{dropped: upTo(n), most: 1}
		case strings.HasPrefix(story, "413"):
			w.options.MaxEvents = 2 // as in the recordings
			want.most = 12
		case story == "500-until-max-retries":
			w.fails, w.always = []error{disk}, true
			want = ending{dropped: upTo(n), most: 13}
		case story == "500-manual-flush":
			w.fails, player.manual = []error{disk}, true
			want = ending{dropped: upTo(n), most: 1}
		case story == "500":
			w.fails = []error{disk}
			want = ending{kept: upTo(n), most: 1}
		case strings.Contains(story, "-then-200"):
			w.fails = slices.Repeat([]error{disk}, failed)
			w.store.stores = true // and what is sent again is known
			want.most = failed + 1
		case story == "connection-dropped":
			w.cut = 1 // after it was stored
			want = ending{stored: upTo(n), most: 2}
		case story == "connection-refused":
			// TestConnectionsWaitForTheServer has the rest.
		default:
			t.Errorf("%s: nothing is said of it", r.Case)
			continue
		}
		t.Run(r.Case, func(t *testing.T) { play(t, r, events, size, player, w, want) })
	}
}

func play(t *testing.T, r transcript, events []json.RawMessage, size int, player *sdk, w *house, want ending) {
	h := New(w.options, w.store)
	var first []byte
	player.send = func(some []json.RawMessage) (int, []byte, error) {
		status, answer, err := w.serve(t, h, r, some)
		if w.requests == 1 {
			first = answer
		}
		if r.family() != "legacy-js" && err == nil {
			if reason := spins(status, answer); reason != "" {
				t.Errorf("%d %s: %s", status, answer, reason)
			}
		}
		return status, answer, err
	}
	player.run(events, size)
	if spun := player.spun(); spun != "" {
		t.Errorf("it spins: %s", spun)
	}
	if len(player.sends) > want.most {
		t.Errorf("%d requests, want at most %d: %v", len(player.sends), want.most, player.sends)
	}
	chosen := func(indexes []int) (list []string) {
		for _, i := range indexes {
			list = append(list, string(events[i]))
		}
		return list
	}
	texts := func(list []json.RawMessage) (all []string) {
		for _, e := range list {
			all = append(all, string(e))
		}
		return all
	}
	if w.cut == 0 { // else it is the SDK that decides what it thinks of it
		if got := texts(player.dropped); !slices.Equal(got, chosen(want.dropped)) {
			t.Errorf("dropped %q, want %q", got, chosen(want.dropped))
		}
		if got := texts(player.delivered); !slices.Equal(got, chosen(want.stored)) {
			t.Errorf("delivered %q, want %q", got, chosen(want.stored))
		}
	}
	if got := texts(player.kept); !slices.Equal(got, chosen(want.kept)) {
		t.Errorf("kept %q, want %q", got, chosen(want.kept))
	}
	holds(t, r, w, events, want.stored)
	if want.most == 1 && len(want.stored) > 0 && r.family() != "legacy-js" && w.cut == 0 {
		exact := fmt.Sprintf(`{"code":200,"server_upload_time":%d,"payload_size_bytes":%d,"events_ingested":%d}`, noon.UnixMilli(), w.bytes, len(want.stored))
		if string(first) != exact {
			t.Errorf("answered %s, want %s", first, exact)
		}
	}
}

// holds checks that what is stored is what was sent: each event once, in order, byte for byte, under the names and times that it says.
func holds(t *testing.T, r transcript, w *house, events []json.RawMessage, want []int) {
	t.Helper()
	type facts struct {
		Type   string          `json:"event_type"`
		User   string          `json:"user_id"`
		Device string          `json:"device_id"`
		Insert string          `json:"insert_id"`
		UUID   string          `json:"uuid"`
		Time   int64           `json:"time"`
		Stamp  int64           `json:"timestamp"`
		Users  json.RawMessage `json:"user_properties"`
	}
	seen := map[string]bool{}
	var stored []mapping.Event
	for _, e := range w.store.events() {
		if !seen[e.InsertID] {
			stored = append(stored, e)
		}
		seen[e.InsertID] = true
	}
	if len(stored) != len(want) {
		t.Fatalf("%d events stored, want %d", len(stored), len(want))
	}
	for i, e := range stored {
		sent := events[want[i]]
		var f facts
		if err := json.Unmarshal(sent, &f); err != nil {
			t.Fatal(err)
		}
		if f.Insert == "" {
			f.Insert = f.UUID
		}
		if f.Time == 0 {
			f.Time = f.Stamp
		}
		if string(f.Users) == "{}" {
			f.Users = nil
		}
		if !bytes.Equal(e.Raw, sent) || e.Type != f.Type || e.UserID != f.User || e.DeviceID != f.Device || e.InsertID != f.Insert || e.Time != f.Time || !bytes.Equal(e.UserProperties, f.Users) {
			t.Errorf("event %d is stored as %+v\nsent %s", i, e, sent)
		}
	}
	var body struct {
		Upload string `json:"client_upload_time"`
	}
	if err := json.Unmarshal(r.Body, &body); err != nil {
		t.Fatal(err)
	}
	var uploaded int64
	if body.Upload != "" {
		at, err := time.Parse(time.RFC3339, body.Upload)
		if err != nil {
			t.Fatal(err)
		}
		uploaded = at.UnixMilli()
	}
	if r.family() == "legacy-js" {
		uploaded = 1795432938417
	}
	for _, a := range w.store.arrivals {
		if a.Project != "app" || a.Uploaded != uploaded || a.Received != noon.UnixMilli() || a.Source != mapping.SourceHTTP {
			t.Errorf("arrival %s at %d, uploaded %d, want %d", a.Project, a.Received, a.Uploaded, uploaded)
		}
	}
}

// The recorded events, through SDKs that were read and not run: Kotlin and Swift know fewer of the answers. One event is
// bad, the last; where the length of IDs is told by a field that they do not know, one that they know tells it, too.
func TestRecordingsThroughKotlinAndSwift(t *testing.T) {
	for _, family := range []string{"kotlin", "swift"} {
		for _, r := range transcripts(t) {
			if !strings.HasSuffix(r.Case, "-200") || r.family() == "legacy-js" || r.story() == "track-without-ids-200" {
				continue
			}
			t.Run(family+"/"+r.Case, func(t *testing.T) {
				bad := `{"event_type":"Bad","user_id":"ab","insert_id":"bad"}`
				if bytes.Contains(r.Body, []byte(`"min_id_length"`)) {
					bad = `{"event_type":"Bad","user_id":"n/a","insert_id":"bad"}`
				}
				events := append(r.events(t), json.RawMessage(bad))
				good := len(events) - 1
				w := &house{options: options(), store: &memory{}, fails: []error{queue.ErrBusy}}
				play(t, r, events, len(events), &sdk{family: family}, w, ending{stored: upTo(good), dropped: []int{good}, most: 3})
			})
		}
	}
}

// Nobody serves yet, and the socket is open already, as systemd holds it: what SDKs send waits, and Node and Go, who
// drop what is refused, get their 200.
func TestConnectionsWaitForTheServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	store := &memory{}
	o := options()
	s := NewServer(New(o, store), 100, o.Log, logbook.New(o.Log, o.Now))
	answers := make(chan string)
	sent := 0
	for _, r := range transcripts(t) {
		if r.story() != "connection-refused" {
			continue
		}
		sent++
		body := r.request(t, r.events(t))
		c, err := net.Dial("tcp", l.Addr().String()) // in the queue of the socket
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		q, err := http.NewRequest(http.MethodPost, "http://"+l.Addr().String()+r.Path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for _, pair := range r.Header {
			q.Header.Add(pair[0], pair[1])
		}
		if err := q.Write(c); err != nil {
			t.Fatal(err)
		}
		go func() {
			answer, err := http.ReadResponse(bufio.NewReader(c), q)
			if err != nil {
				answers <- err.Error()
				return
			}
			defer answer.Body.Close()
			answers <- answer.Status
		}()
	}
	if sent != 4 {
		t.Fatalf("%d recordings, want 4", sent)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	for range sent {
		if got := <-answers; got != "200 OK" {
			t.Errorf("answered %s", got)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	<-served
	if got := len(store.arrivals); got != sent {
		t.Errorf("%d requests stored, want %d", got, sent)
	}
}
