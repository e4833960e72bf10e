// Package sandbox is a Customer.io of one's own: it answers Track API v1 and v2 as
// documented, enforces the documented limits, remembers what it was told, and fails
// on request. It knows nothing of the rest of this project, so that it can prove
// the rest wrong.
//
// What it models: people with attributes, resolved by id, email, phone and cio_id;
// events with dedupe by ULID; anonymous events and their merging; suppression,
// merges and devices. Operations on objects and relationships are checked for shape
// and counted, no more. Where Customer.io drops something and still answers 200,
// so does the sandbox, and its report says so under notes.
//
// Where the documentation is silent it decides: an event for an unknown person
// creates one; an identify without a timestamp is always applied; an identify that
// would give a person with another id the path's id applies nothing; event ids are
// remembered for the whole workspace and without end; a batch is applied in array
// order; a batch whose operations are all invalid is answered 207.
package sandbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options of a sandbox. The zero value is usable: any credentials, US, healthy.
type Options struct {
	SiteID, APIKey string // Basic auth; with APIKey "" any credentials are accepted
	Region         string // us (also "") or eu: what the region endpoint answers
	EnvironmentID  int    // the workspace, 0 = 1; see SetEnvironmentID
	WrongRegion    string // "redirect": all but the region endpoint answer 301 "wrong datacenter"; "fail": 401; "" = right region
	Faults         Faults
	Seed           uint64           // of everything left to chance
	Now            func() time.Time // nil = time.Now

	// MaxKeptEvents bounds how many events are kept whole: 0 = 1,000,000, negative =
	// none. Later ones are still counted, checked for doubles and order, but not
	// listed. People are always kept.
	MaxKeptEvents int
	// MaxEventIDs bounds how many event ids are remembered for dedupe, at about 40
	// bytes each: always the newest half of it, at most all of it. 0 = every id.
	MaxEventIDs int

	OrderAttribute string // an event attribute that must rise for each person; "" = not checked
	OrderFirst     int64  // the first value a person should have; 0 = the lowest seen counts as the first
	CheckOverlap   bool   // count operations on a person whom another unanswered request is also about: their order is left to chance
	KeepEmpty      bool   // null and "" are stored, not taken as clearing the attribute
	EmailMayChange bool   // the workspace allows changing an email of a person addressed by id
}

// Sandbox is one workspace and the API in front of it. All methods are safe for
// concurrent use.
type Sandbox struct {
	o        Options
	auth     [sha256.Size]byte
	plan     atomic.Pointer[plan]
	requests atomic.Uint64 // numbers of API requests since the last reset
	id       atomic.Int64  // of the workspace
	bodies   sync.Pool     // *bytes.Buffer

	mu       sync.Mutex
	world    *world
	n        counters
	start    time.Time
	limit    bucket
	released chan struct{} // closed to let hanging requests go
	closed   bool
	busy     map[string]int // unanswered requests by whom they are about, when CheckOverlap
}

// New makes a sandbox. Close it, or serve it by Serve, if requests may hang.
func New(o Options) *Sandbox {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Region == "" {
		o.Region = "us"
	}
	if o.EnvironmentID == 0 {
		o.EnvironmentID = 1
	}
	if o.MaxKeptEvents == 0 {
		o.MaxKeptEvents = 1_000_000
	}
	o.MaxKeptEvents = max(0, o.MaxKeptEvents)
	s := &Sandbox{o: o, auth: sha256.Sum256([]byte(o.SiteID + ":" + o.APIKey)), released: make(chan struct{})}
	s.bodies.New = func() any { return new(bytes.Buffer) }
	s.world, s.start, s.busy = newWorld(), o.Now(), map[string]int{}
	s.plan.Store(newPlan(o.Faults, s.start, s.start, nil))
	s.id.Store(int64(o.EnvironmentID))
	return s
}

// SetEnvironmentID makes the region endpoint name another workspace from now on, as
// when the keys are exchanged for those of another one. What was received stays.
func (s *Sandbox) SetEnvironmentID(id int) { s.id.Store(int64(id)) }

// SetFaults replaces all faults from the next request on. Outages FromNow begin
// now, unless the same one is running already.
func (s *Sandbox) SetFaults(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan.Store(newPlan(f, s.start, s.o.Now(), s.plan.Load()))
}

// changeFaults edits the faults; nobody else's change is lost.
func (s *Sandbox) changeFaults(edit func(*Faults) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.plan.Load()
	f := old.Faults
	if err := edit(&f); err != nil {
		return err
	}
	if err := f.Validate(); err != nil {
		return err
	}
	s.plan.Store(newPlan(f, s.start, s.o.Now(), old))
	return nil
}

// Reset forgets people, events, ids and counts, lets hanging requests go and
// starts the clock of outages and the sequence of chances anew. Faults stay.
func (s *Sandbox) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.world, s.start, s.limit = newWorld(), s.o.Now(), bucket{}
	s.n = counters{inFlight: s.n.inFlight}
	s.requests.Store(0)
	s.plan.Store(newPlan(s.plan.Load().Faults, s.start, s.start, nil))
	s.release()
}

// Close lets hanging requests go (their connections are cut) and makes later ones
// fail instead of hang. What was received can still be read.
func (s *Sandbox) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release()
	if !s.closed {
		s.closed = true
		close(s.released)
	}
}

func (s *Sandbox) release() {
	if !s.closed {
		close(s.released)
		s.released = make(chan struct{})
	}
}

// wait tells whether the time passed undisturbed: false when the client went or
// the sandbox let its requests go.
func (s *Sandbox) wait(ctx context.Context, d time.Duration) bool {
	s.mu.Lock()
	released := s.released
	s.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-released:
	}
	return false
}

// An answer is what a request is told.
type answer struct {
	status int
	body   []byte
	people []string // whom the request was about, when Options.CheckOverlap
}

var acceptedBody = []byte("{}\n")

// ServeHTTP answers the Track API, and the control endpoints under /_sandbox/. To
// cut a connection it panics with http.ErrAbortHandler, as net/http wants it.
func (s *Sandbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, dots := removeDots(r.URL.EscapedPath())
	if path == "/" || path == "/_sandbox" || strings.HasPrefix(path, "/_sandbox/") {
		s.control(w, r, path)
		return
	}
	rt, id, device, status := match(r.Method, path)
	number := s.begin(rt, dots)
	outcome := "cut" // or a status, "truncated", or "gone" when the client broke off
	var a answer
	defer func() { s.end(rt, outcome, a.people) }()

	body := s.bodies.Get().(*bytes.Buffer)
	defer s.bodies.Put(body)
	body.Reset()
	if _, err := body.ReadFrom(io.LimitReader(r.Body, maxRequestBytes+1)); err != nil {
		outcome = "gone"
		panic(http.ErrAbortHandler)
	}
	tooLarge := body.Len() > maxRequestBytes
	if tooLarge { // read on for a while: a client still writing would not see the answer
		_, _ = io.CopyN(io.Discard, r.Body, 16<<20)
	}
	p := s.plan.Load()
	d := s.decide(p, number, rt, path, body.Bytes())
	switch d.kind {
	case "cut_before", "outage_cut":
		panic(http.ErrAbortHandler)
	case "hang", "outage_hang":
		if !s.wait(r.Context(), d.hang) {
			if r.Context().Err() != nil {
				outcome = "gone"
			}
			panic(http.ErrAbortHandler)
		}
		if a = refusal(rt, http.StatusGatewayTimeout); d.kind == "outage_hang" {
			a = refusal(rt, http.StatusServiceUnavailable)
		}
	case "outage_503":
		a = refusal(rt, http.StatusServiceUnavailable)
	case "rate_limit":
		a = refusal(rt, http.StatusTooManyRequests)
	case "status":
		a = refusal(rt, d.status)
	case "garbage":
		a.status, a.body = http.StatusOK, []byte(garbage)
	case "redirect":
		a = wrongRegion
	default:
		switch {
		case !s.authorized(r):
			a = s.problem(rt, http.StatusUnauthorized, invalid("unauthorized", "", "Unauthorized request"))
		case rt == routeRegion:
			a = s.region()
		case rt == routeAuth:
			a = answer{status: http.StatusOK, body: []byte(`{"meta":"nice credentials."}` + "\n")}
		case s.o.WrongRegion == "redirect":
			a = wrongRegion
		case s.o.WrongRegion != "":
			a = s.problem(rt, http.StatusUnauthorized, invalid("wrong_region", "", "Unauthorized request"))
		case rt == routeUnknown:
			a = s.problem(rt, status, invalid("unknown_path", "", "no such path or method"))
		case tooLarge:
			a = s.problem(rt, http.StatusRequestEntityTooLarge, invalid("request_too_large", "", "request cannot be larger than 500000 bytes"))
		default:
			a = s.answer(p, d, rt, r, id, device, trimJSON(body.Bytes()))
		}
	}
	if d.latency > 0 && !s.wait(r.Context(), d.latency) && r.Context().Err() != nil {
		outcome = "gone"
		panic(http.ErrAbortHandler)
	}
	switch d.kind {
	case "cut_after":
		panic(http.ErrAbortHandler)
	case "garbage_applied":
		a.status, a.body = http.StatusOK, []byte(garbage)
	}
	h := w.Header()
	h["Content-Type"] = jsonType
	if a.body[0] == '<' {
		h["Content-Type"] = htmlType
	}
	if v := p.retryAfter(a.status); v != "" {
		h.Set("Retry-After", v)
	}
	if a.status == http.StatusMovedPermanently && p.RedirectTo != "" {
		h.Set("Location", p.RedirectTo+r.URL.EscapedPath())
	}
	outcome = strconv.Itoa(a.status)
	if d.kind == "truncate" {
		outcome = "truncated"
		h.Set("Content-Length", strconv.Itoa(len(a.body)+20))
		w.WriteHeader(a.status)
		_, _ = w.Write(a.body[:len(a.body)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body)
}

var (
	jsonType = []string{"application/json; charset=utf-8"}
	htmlType = []string{"text/html; charset=utf-8"}
)

const garbage = "<!doctype html><html><body><h1>Welcome to the hotel network</h1></body></html>\n"

var wrongRegion = answer{status: http.StatusMovedPermanently, body: []byte(`{"errors":[{"detail":"wrong datacenter","status":"301"}]}` + "\n")}

// refusal is the answer of a fault: HTML for 5xx, as a load balancer gives it.
func refusal(rt route, status int) answer {
	if status >= 500 {
		return answer{status: status, body: fmt.Appendf(nil, "<html><head><title>%d %s</title></head></html>\n", status, http.StatusText(status))}
	}
	return answer{status: status, body: problemBody(rt, []*problem{invalid("fault", "", http.StatusText(status)+" on request")})}
}

func (s *Sandbox) authorized(r *http.Request) bool {
	user, password, ok := r.BasicAuth()
	if s.o.APIKey == "" {
		return ok
	}
	sum := sha256.Sum256([]byte(user + ":" + password))
	return subtle.ConstantTimeCompare(sum[:], s.auth[:]) == 1
}

func (s *Sandbox) region() answer {
	base := "https://track.customer.io"
	if s.o.Region == "eu" {
		base = "https://track-eu.customer.io"
	}
	return answer{status: http.StatusOK, body: fmt.Appendf(nil, `{"url":%q,"region":%q,"environment_id":%d}`+"\n", base, s.o.Region, s.id.Load())}
}

// answer handles a request that no fault kept from the workspace.
func (s *Sandbox) answer(p *plan, d decision, rt route, r *http.Request, id, device string, body []byte) answer {
	if r.Header.Get("Content-Encoding") != "" {
		return s.problem(rt, http.StatusBadRequest, invalid("content_encoding", "", "compressed bodies are not documented"))
	}
	mustHaveBody := rt != routeDelete && rt != routeDeleteDevice && rt != routeSuppress && rt != routeUnsuppress
	if len(body) > 0 || mustHaveBody {
		if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
			s.lockedNote("body_without_json_content_type")
		}
		if err := checkJSON(body); err != nil {
			return s.problem(rt, http.StatusBadRequest, invalid("json", "", "invalid JSON: "+err.Error()))
		}
	}
	if rt == routeBatch {
		return s.batch(p, d, body)
	}
	var o operation
	var problems []*problem
	one := func(bad *problem) {
		if bad != nil {
			problems = append(problems, bad)
		}
	}
	var who identifier
	if id != "" {
		var bad *problem
		if who, bad = pathIdentifier(id); bad != nil {
			return s.problem(rt, http.StatusBadRequest, bad)
		}
	}
	var bad *problem
	switch rt {
	case routeEntity:
		o, bad = parseV2(body)
	case routeIdentify:
		o, problems = parseV1Identify(who, body)
	case routeEvent, routeAnonymous:
		o, bad = parseV1Event(who, body)
	case routeMerge:
		o, bad = parseV1Merge(body)
	case routeAddDevice:
		o, bad = parseV1Device(who, body)
	case routeDeleteDevice:
		o = operation{action: actDeleteDevice, who: who, token: []byte(device)}
	case routeDelete:
		o = operation{action: actDelete, who: who}
	case routeSuppress:
		o = operation{action: actSuppress, who: who}
	case routeUnsuppress:
		o = operation{action: actUnsuppress, who: who}
	}
	if one(bad); len(problems) > 0 {
		return s.problem(rt, http.StatusBadRequest, problems...)
	}
	if p.refuses {
		if bad := p.refused(&o); bad != nil {
			status := p.RefuseHow
			if status == 0 || status == http.StatusMultiStatus {
				status = http.StatusBadRequest
			}
			return s.problem(rt, status, bad)
		}
	}
	now := s.o.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n.maxOps = max(s.n.maxOps, 1)
	s.apply(&o, now)
	return answer{status: http.StatusOK, body: acceptedBody, people: s.enter(nil, &o)}
}

// batch checks all operations, then applies the valid ones in array order under
// one lock.
func (s *Sandbox) batch(p *plan, d decision, body []byte) answer {
	raws, bad := batchOperations(body)
	if bad != nil {
		return s.problem(routeBatch, http.StatusBadRequest, bad)
	}
	partial := -1
	if d.kind == "partial" {
		partial = int(d.pick * float64(len(raws)))
	}
	operations := make([]operation, len(raws))
	var failed []failure
	for i, raw := range raws {
		o, bad := parseV2(raw)
		if bad == nil && i == partial {
			bad = invalid("fault_partial", "attributes", "refused on request")
		}
		if bad == nil && p.refuses {
			if bad = p.refused(&o); bad != nil && p.RefuseHow != 0 && p.RefuseHow != http.StatusMultiStatus {
				return s.problem(routeBatch, p.RefuseHow, bad)
			}
		}
		if bad != nil {
			failed = append(failed, failure{i, bad})
		}
		operations[i] = o
	}
	now := s.o.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n.maxOps = max(s.n.maxOps, len(raws))
	a := answer{status: http.StatusOK, body: acceptedBody}
	next := failed
	for i := range operations {
		if len(next) > 0 && next[0].index == i {
			s.countProblem(next[0].problem)
			next = next[1:]
			continue
		}
		s.apply(&operations[i], now)
		a.people = s.enter(a.people, &operations[i])
	}
	if len(failed) == 0 {
		return a
	}
	out := []byte(`{"errors":[`)
	for i, f := range failed {
		if i > 0 {
			out = append(out, ',')
		}
		out = f.problem.append(out, f.index)
	}
	a.status, a.body = http.StatusMultiStatus, append(out, "]}\n"...)
	return a
}

// enter notes that the unanswered request, about people so far, is also about o's
// person. The caller holds s.mu.
func (s *Sandbox) enter(people []string, o *operation) []string {
	if !s.o.CheckOverlap || o.who.kind == noIdentifier {
		return people
	}
	key := identifierKey(o.who)
	if slices.Contains(people, key) {
		return people
	}
	if s.busy[key] > 0 {
		s.n.overlaps++
		if s.n.firstOverlap == "" {
			s.n.firstOverlap = key
		}
	}
	s.busy[key]++
	return append(people, key)
}

type failure struct {
	index   int
	problem *problem
}
