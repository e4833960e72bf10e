package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const controlHelp = `A sandbox Customer.io Track API (v1 and v2).
GET    /_sandbox/report           what happened, as JSON
GET    /_sandbox/people           everybody, as JSON
GET    /_sandbox/people/{id}      one person with events; cio_…, an email or an id (?kind=id|email|phone|cio_id to be sure)
GET    /_sandbox/events           accepted events as JSON lines, by arrival; ?after=N&limit=N
GET    /_sandbox/faults           faults in force
POST   /_sandbox/faults           change some: ?500=0.05&outage=5s, or the same keys as a JSON object
PUT    /_sandbox/faults           likewise, all others end
DELETE /_sandbox/faults           all faults end, hanging requests are let go
POST   /_sandbox/workspace?id=N   be the workspace N to the region endpoint; nothing is forgotten
POST   /_sandbox/reset            forget everything but the faults and the workspace
`

func (s *Sandbox) control(w http.ResponseWriter, r *http.Request, path string) {
	what := strings.TrimPrefix(strings.TrimPrefix(path, "/_sandbox"), "/")
	switch verb := r.Method + " " + what; {
	case r.Method == http.MethodGet && what == "":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, controlHelp+"\nFaults: "+FaultHelp+"\n")
	case verb == "GET report":
		writeJSON(w, s.Report())
	case verb == "GET people":
		s.writePeople(w)
	case r.Method == http.MethodGet && strings.HasPrefix(what, "people/"):
		s.writePerson(w, r, strings.TrimPrefix(what, "people/"))
	case verb == "GET events":
		s.writeEvents(w, r)
	case what == "faults":
		s.controlFaults(w, r)
	case verb == "POST workspace":
		id, err := strconv.Atoi(r.URL.Query().Get("id"))
		if err != nil || id < 0 {
			http.Error(w, "id is the workspace's number (0: none is told)", http.StatusBadRequest)
			return
		}
		s.SetEnvironmentID(id)
		_, _ = io.WriteString(w, "{}\n")
	case verb == "POST reset":
		s.Reset()
		_, _ = io.WriteString(w, "{}\n")
	default:
		http.Error(w, controlHelp, http.StatusNotFound)
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header()["Content-Type"] = jsonType
	_ = json.MarshalWrite(w, v, json.Deterministic(true), jsontext.WithIndent(" "))
	_, _ = io.WriteString(w, "\n")
}

func (s *Sandbox) controlFaults(w http.ResponseWriter, r *http.Request) {
	var changes [][2]string
	var err error
	switch r.Method {
	case http.MethodGet:
	case http.MethodDelete:
		s.SetFaults(Faults{})
		s.mu.Lock()
		s.release()
		s.mu.Unlock()
	case http.MethodPost, http.MethodPut:
		if changes, err = readChanges(r); err == nil {
			err = s.changeFaults(func(f *Faults) error {
				if r.Method == http.MethodPut {
					*f = Faults{}
				}
				var errs []error
				for _, c := range changes {
					errs = append(errs, f.Set(c[0], c[1]))
				}
				return errors.Join(errs...)
			})
		}
	default:
		http.Error(w, controlHelp, http.StatusMethodNotAllowed)
		return
	}
	if err != nil {
		http.Error(w, err.Error()+"\n\nFaults: "+FaultHelp, http.StatusBadRequest)
		return
	}
	writeJSON(w, map[string]any{"schema": 1, "faults": s.plan.Load().String()})
}

// readChanges takes keys and values from the query, then from a JSON object body.
func readChanges(r *http.Request) ([][2]string, error) {
	var changes [][2]string
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	for _, k := range slices.Sorted(maps.Keys(query)) {
		for _, v := range query[k] {
			if k == "outage" { // a bare + in a query is a space
				v = strings.ReplaceAll(v, " ", "+")
			}
			changes = append(changes, [2]string{k, v})
		}
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if body = trimJSON(body); len(body) == 0 {
		return changes, nil
	}
	if err := checkJSON(body); err != nil {
		return nil, err
	}
	if !isObject(body) {
		return nil, errors.New("want a JSON object")
	}
	for m := walk(body); ; {
		name, value, ok := m.member()
		if !ok {
			return changes, nil
		}
		if value[0] != '[' {
			changes = append(changes, [2]string{string(name), scalarText(value)})
			continue
		}
		for l := walk(value); ; {
			one, ok := l.element()
			if !ok {
				break
			}
			changes = append(changes, [2]string{string(name), scalarText(one)})
		}
	}
}

func scalarText(raw []byte) string {
	if isString(raw) {
		return string(text(raw))
	}
	return string(raw)
}

func (s *Sandbox) writePeople(w http.ResponseWriter) {
	w.Header()["Content-Type"] = jsonType
	out := []byte(`{"schema":1,"people":[`)
	for i, p := range s.People() {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(p.append(append(out, '\n')), '}')
		if len(out) > 64<<10 {
			if _, err := w.Write(out); err != nil {
				return
			}
			out = out[:0]
		}
	}
	_, _ = w.Write(append(out, "\n]}\n"...))
}

func (s *Sandbox) writePerson(w http.ResponseWriter, r *http.Request, segment string) {
	value, err := url.PathUnescape(segment)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id, _ := pathIdentifier(value)
	kind := kindNames[id.kind]
	if k := r.URL.Query().Get("kind"); k != "" {
		kind, id.value = k, []byte(value)
	}
	p, ok := s.Person(kind, string(id.value))
	if !ok {
		http.Error(w, `{"error":"no such person"}`, http.StatusNotFound)
		return
	}
	out := p.append([]byte{})
	out = append(out, `,"events":[`...)
	for i := range p.Events {
		if i > 0 {
			out = append(out, ',')
		}
		out = p.Events[i].append(append(out, '\n'))
	}
	w.Header()["Content-Type"] = jsonType
	_, _ = w.Write(append(out, "\n]}\n"...))
}

// writeEvents writes JSON lines, a thousand at a time, so that the API is not kept
// waiting by a reader of many.
func (s *Sandbox) writeEvents(w http.ResponseWriter, r *http.Request) {
	number := func(key string) (n int64, err error) {
		if v := r.URL.Query().Get(key); v != "" {
			n, err = strconv.ParseInt(v, 10, 64)
		}
		return n, err
	}
	after, err1 := number("after")
	limit, err2 := number("limit")
	if err := errors.Join(err1, err2); err != nil || after < 0 || limit < 0 {
		http.Error(w, "after and limit are whole numbers", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	var out []byte
	for left := limit; limit == 0 || left > 0; {
		step := 1000
		if limit > 0 {
			step = int(min(left, 1000))
		}
		events := s.Events(after, step)
		out = out[:0]
		for i := range events {
			out = append(events[i].append(out), '\n')
			after = events[i].Number
		}
		if _, err := w.Write(out); err != nil || len(events) < step {
			return
		}
		left -= int64(len(events))
	}
}

// append writes the person as JSON but for the closing brace.
func (p *Person) append(out []byte) []byte {
	out = append(appendQuoted(append(out, `{"cio_id":`...), p.CioID), ',')
	for _, m := range [][2]string{{"id", p.ID}, {"email", p.Email}, {"phone", p.Phone}} {
		if m[1] != "" {
			out = append(appendQuoted(append(appendQuoted(out, m[0]), ':'), m[1]), ',')
		}
	}
	out = fmt.Appendf(out, `"last_identify":%d,"event_count":%d,"devices":[`, p.LastIdentify, p.EventCount)
	for i, d := range p.Devices {
		if i > 0 {
			out = append(out, ',')
		}
		out = appendQuoted(out, d)
	}
	out = append(out, `],"attributes":{`...)
	for i, name := range slices.Sorted(maps.Keys(p.Attributes)) {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(appendQuoted(out, name), ':'), p.Attributes[name]...)
	}
	return append(out, '}')
}

func (e *Event) append(out []byte) []byte {
	out = fmt.Appendf(out, `{"n":%d,"received":%q,"person":`, e.Number, e.Received.Format("2006-01-02T15:04:05.000Z"))
	if e.CioID == "" {
		out = append(out, "null"...)
	} else {
		out = appendQuoted(append(out, `{"cio_id":`...), e.CioID)
		for _, m := range [][2]string{{"id", e.PersonID}, {"email", e.Email}} {
			if m[1] != "" {
				out = appendQuoted(append(appendQuoted(append(out, ','), m[0]), ':'), m[1])
			}
		}
		out = append(out, '}')
	}
	if e.AnonymousID != "" {
		out = appendQuoted(append(out, `,"anonymous_id":`...), e.AnonymousID)
	}
	out = appendQuoted(append(out, `,"action":`...), e.Action)
	out = appendQuoted(append(out, `,"name":`...), e.Name)
	out = appendQuoted(append(out, `,"id":`...), e.ID)
	out = fmt.Appendf(out, `,"timestamp":%d,"attributes":`, e.Timestamp)
	if e.Attributes == nil {
		return append(out, "{}}"...)
	}
	return append(append(out, e.Attributes...), '}')
}

// Serve serves s on l until ctx ends, then closes l and s: hanging requests are
// cut, the others get five seconds to finish. It returns nil after a clean end,
// and only when nothing of it runs any more.
func Serve(ctx context.Context, l net.Listener, s *Sandbox) error {
	// Requests do not inherit the end of ctx: those being answered are to finish.
	server := &http.Server{Handler: s, ReadHeaderTimeout: 30 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		s.Close()
		_ = server.Close()
		return fmt.Errorf("serve sandbox on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.Close()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := server.Shutdown(grace)
	if err != nil {
		_ = server.Close()
		err = fmt.Errorf("stop sandbox: %w", err)
	}
	<-served
	return err
}
