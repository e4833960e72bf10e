package delivery_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// amplitudeModel answers as the reference says that Amplitude does
// (amplitude.com/docs/apis/analytics/http-v2 and …/batch-event-upload), also what a second
// ampcio never answers. It takes a request whole or not at all.
type amplitudeModel struct {
	mu sync.Mutex

	keys       []string
	maxBody    int             // of /2/httpapi; 0 = 1 MB
	first      bool            // names only the first event that is wrong with a field, as the page says
	silenced   map[string]bool // devices
	quota      map[string]bool // users beyond their daily quota
	perUser    int             // events of a user within window; 0 = no limit
	window     time.Duration
	instead    func(r *http.Request) (status int, header map[string]string, body string) // of the real answer, unless status is 0
	taken      []takenEvent
	seen       map[string]bool // key, device, else user, and insert_id
	recent     map[string][]time.Time
	requests   []modelRequest
	statuses   map[int]int
	duplicates int
}

type takenEvent struct {
	key, user, device, insertID, kind string
	at                                time.Time // as it is in charts
	raw                               string
}

type modelRequest struct {
	at            time.Time
	path          string
	events, bytes int
	status        int
}

func newAmplitudeModel() *amplitudeModel {
	return &amplitudeModel{keys: []string{"key-1"}, window: 30 * time.Second, seen: map[string]bool{}, recent: map[string][]time.Time{}, statuses: map[int]int{}}
}

func (m *amplitudeModel) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	answer := func(events, status int, text string) {
		m.statuses[status]++
		m.requests = append(m.requests, modelRequest{time.Now(), r.URL.Path, events, len(body), status})
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprint(w, text)
	}
	if m.instead != nil {
		status, header, text := m.instead(r)
		if status < 0 {
			panic(http.ErrAbortHandler)
		}
		for name, value := range header {
			w.Header().Set(name, value)
		}
		if status != 0 {
			answer(0, status, text)
			return
		}
	}
	most := m.maxBody
	if most == 0 {
		most = 1_000_000
	}
	if r.URL.Path == "/batch" {
		most = 20_000_000
	} else if r.URL.Path != "/2/httpapi" {
		answer(0, 400, `{"code":400,"error":"Invalid request path"}`)
		return
	}
	if len(body) > most {
		answer(0, 413, `{"code":413,"error":"Payload too large"}`)
		return
	}
	var request struct {
		Key     *string           `json:"api_key"`
		Events  []json.RawMessage `json:"events"`
		Options struct {
			MinIDLength *int `json:"min_id_length"`
		} `json:"options"`
		Uploaded string `json:"client_upload_time"`
	}
	if json.Unmarshal(body, &request) != nil {
		answer(0, 400, `{"code":400,"error":"Invalid JSON request body"}`)
		return
	}
	n := len(request.Events)
	switch {
	case request.Key == nil:
		answer(n, 400, `{"code":400,"error":"Request missing required field","missing_field":"api_key"}`)
		return
	case !slices.Contains(m.keys, *request.Key):
		answer(n, 400, fmt.Sprintf(`{"code":400,"error":"Invalid API key: %s"}`, *request.Key))
		return
	case n == 0:
		answer(n, 400, `{"code":400,"error":"Request missing required field","missing_field":"events"}`)
		return
	case n > 2000:
		answer(n, 413, `{"code":413,"error":"Payload too large"}`)
		return
	}
	least := 5
	if request.Options.MinIDLength != nil {
		least = *request.Options.MinIDLength
	}
	now := time.Now()
	moved := time.Duration(0)
	if request.Uploaded != "" {
		uploaded, err := time.Parse("2006-01-02T15:04:05.000Z", request.Uploaded)
		if err != nil {
			answer(n, 400, `{"code":400,"error":"Invalid field values on some events"}`)
			return
		}
		if d := now.Sub(uploaded); d.Abs() >= time.Minute {
			moved = d
		}
	}
	missing, invalid, lengths := map[string][]int{}, map[string][]int{}, map[string][]int{}
	name := func(in map[string][]int, field string, i int) {
		if !m.first || len(in[field]) == 0 {
			in[field] = append(in[field], i)
		}
	}
	events := make([]takenEvent, n)
	var silenced, throttled []int
	coming := map[string]int{}
	for i, raw := range request.Events {
		var e struct {
			Type     *string         `json:"event_type"`
			User     *string         `json:"user_id"`
			Device   *string         `json:"device_id"`
			InsertID *string         `json:"insert_id"`
			Time     json.RawMessage `json:"time"`
			Currency string          `json:"currency"`
		}
		if json.Unmarshal(raw, &e) != nil {
			name(invalid, "user_id", i)
			continue
		}
		text := func(s *string) string {
			if s == nil {
				return ""
			}
			return *s
		}
		one := takenEvent{key: *request.Key, user: text(e.User), device: text(e.Device), insertID: text(e.InsertID), kind: text(e.Type), raw: string(raw)}
		if strings.TrimSpace(one.kind) == "" {
			name(missing, "event_type", i)
		}
		if one.user == "" && one.device == "" && one.kind != "$groupidentify" {
			name(missing, "user_id", i)
			name(missing, "device_id", i)
		}
		for field, id := range map[string]string{"user_id": one.user, "device_id": one.device} {
			switch strings.ToLower(id) {
			case "unknown", "anonymous", "null", "0":
				name(invalid, field, i)
			}
			if id != "" && utf8.RuneCountInString(id) < least {
				name(lengths, field, i)
			}
		}
		if e.Currency != "" && len(e.Currency) != 3 {
			name(invalid, "currency", i)
		}
		var ms int64
		if e.Time != nil && json.Unmarshal(e.Time, &ms) != nil {
			name(invalid, "time", i)
		}
		one.at = time.UnixMilli(ms).Add(moved)
		if ms == 0 {
			one.at = now
		}
		if m.silenced[one.device] {
			silenced = append(silenced, i)
		}
		who := one.user + "|" + one.device
		if coming[who]++; m.perUser > 0 {
			m.recent[who] = slices.DeleteFunc(m.recent[who], func(at time.Time) bool { return now.Sub(at) > m.window })
			if len(m.recent[who])+coming[who] > m.perUser {
				throttled = append(throttled, i)
			}
		}
		events[i] = one
	}
	list := func(code int, text string, more map[string]any) {
		out := map[string]any{"code": code, "error": text}
		for k, v := range more {
			out[k] = v
		}
		b, _ := json.Marshal(out)
		answer(n, code, string(b))
	}
	over := map[string]int{}
	var overIndexes []int
	for i, e := range events {
		if m.quota[e.user] {
			over[e.user] = 500_200
			overIndexes = append(overIndexes, i)
		}
	}
	switch {
	case len(missing) > 0:
		list(400, "Request missing required field", map[string]any{"events_with_missing_fields": missing})
		return
	case len(lengths) > 0:
		list(400, "Invalid id length for user_id or device_id", map[string]any{"events_with_invalid_id_lengths": lengths})
		return
	case len(invalid) > 0:
		list(400, "Invalid field values on some events", map[string]any{"events_with_invalid_fields": invalid})
		return
	case len(silenced) > 0:
		var devices []string
		for device := range m.silenced {
			devices = append(devices, device)
		}
		list(400, "Events silenced for device_id", map[string]any{"eps_threshold": 100, "exceeded_daily_quota_devices": map[string]int{},
			"silenced_devices": devices, "silenced_events": silenced, "throttled_devices": map[string]int{}, "throttled_events": throttled})
		return
	case len(over) > 0:
		list(429, "Too many requests for some devices and users", map[string]any{"eps_threshold": 1000, "throttled_devices": map[string]int{}, "throttled_users": map[string]int{},
			"throttled_events": overIndexes, "exceeded_daily_quota_users": over, "exceeded_daily_quota_devices": map[string]int{}})
		return
	case len(throttled) > 0:
		list(429, "Too many requests for some devices and users", map[string]any{"eps_threshold": 30, "throttled_devices": map[string]int{}, "throttled_users": map[string]int{"x": 31}, "throttled_events": throttled})
		return
	}
	for _, e := range events {
		who := e.device
		if who == "" {
			who = "user " + e.user
		}
		m.recent[e.user+"|"+e.device] = append(m.recent[e.user+"|"+e.device], now)
		id := e.key + "|" + who + "|" + e.insertID
		if e.insertID != "" && m.seen[id] {
			m.duplicates++
			continue
		}
		m.seen[id] = true
		m.taken = append(m.taken, e)
	}
	answer(n, 200, fmt.Sprintf(`{"code":200,"server_upload_time":%d,"payload_size_bytes":%d,"events_ingested":%d}`, now.UnixMilli(), len(body), n))
}

func (m *amplitudeModel) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// of lists what it has taken that f says.
func (m *amplitudeModel) of(f func(takenEvent) bool) (list []takenEvent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.taken {
		if f(e) {
			list = append(list, e)
		}
	}
	return list
}

func (m *amplitudeModel) all() []takenEvent { return m.of(func(takenEvent) bool { return true }) }

// log lists the requests that it has had.
func (m *amplitudeModel) log() []modelRequest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.requests)
}

// twice is how many events it has been sent again.
func (m *amplitudeModel) twice() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.duplicates
}
