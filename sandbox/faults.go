package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Faults says what goes wrong. Shares are of requests, 0 to 1, and exclude each
// other: one request meets at most one of them. The zero value is a healthy
// Customer.io.
type Faults struct {
	Status         map[int]float64 // answered with this status, nothing applied
	CutBefore      float64         // connection closed, nothing applied
	CutAfter       float64         // applied, then the connection is closed without an answer
	Hang           float64         // no answer for HangFor, then 504; nothing applied
	Garbage        float64         // 200 with a page of HTML from somebody in between; nothing applied
	GarbageApplied float64         // applied, but answered with that page
	Truncate       float64         // applied, but the answer's body ends too early
	Redirect       float64         // 301 "wrong datacenter", nothing applied
	Partial        float64         // batches only: one operation is refused by 207 and not applied

	HangFor    time.Duration // 0 = 30 s
	RetryAfter time.Duration // sent with 429, and with 503 when set; 0 = 1 s, negative = never sent; whole seconds, at least 1
	RedirectTo string        // base URL for the Location of redirects; "" = none is sent, so that nobody follows it to the real Customer.io
	Latency    time.Duration // before each answer
	Jitter     time.Duration // random time added to Latency
	RateLimit  float64       // requests a second above which 429 is answered; 0 = none
	On         string        // which requests meet faults: "" or "all", "data" (not region and auth), "region"

	Outages   []Outage
	OutageHow string // of those that do not say: 503 (also ""), cut or hang

	RefuseID        []string // identifier values,
	RefuseEvent     []string // event names,
	RefuseAttribute []string // and identify attributes that are always refused
	RefuseHow       int      // 0 or 207: that operation alone (400 outside a batch); any other status: the whole request

	Poison    []string // texts: a request whose path or body has one in it fails whole, and nothing of it is applied
	PoisonHow string   // a status (500 also ""), cut, hang (for HangFor), garbage
}

// Outage is a stretch of time in which every request fails.
type Outage struct {
	From    time.Duration // since the sandbox started or was reset; since SetFaults when FromNow
	FromNow bool
	Length  time.Duration
	How     string // 503, cut, hang; "" = Faults.OutageHow
}

// FaultHelp lists the keys that ParseFaults and the control endpoint understand.
const FaultHelp = `500=0.05 (any status=share), cut_before=, cut_after=, hang=, garbage=, garbage_applied=, truncate=, redirect=, partial= (shares of requests),
hang_for=30s, retry_after=1s|never, redirect_to=URL, latency=20ms, jitter=10ms, rate_limit=100, on=all|data|region,
outage=10s+5s (from+length since start) or outage=5s (from now), each with :503, :cut or :hang; outage=none; outage_how=503|cut|hang,
refuse_id=, refuse_event=, refuse_attribute= (repeatable), refuse_how=207|400|…,
poison=TEXT (repeatable: a request that contains it fails whole), poison_how=500|503|…|cut|hang|garbage`

// ParseFaults reads "500=0.05,429=0.05,cut_after=0.02,outage=10s+5s"; see
// FaultHelp. A share may be written as 5%. An empty spec is no faults.
func ParseFaults(spec string) (Faults, error) {
	var f Faults
	var errs []error
	for part := range strings.SplitSeq(spec, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		key, value, ok := strings.Cut(part, "=")
		if !ok {
			errs = append(errs, fmt.Errorf("fault %q: want key=value", part))
			continue
		}
		errs = append(errs, f.Set(key, value))
	}
	if err := errors.Join(errs...); err != nil {
		return Faults{}, err
	}
	return f, f.Validate()
}

// ParseOutages reads "10s+5s,40s+5s:cut": from+length since start, how.
func ParseOutages(spec string) ([]Outage, error) {
	var f Faults
	for part := range strings.SplitSeq(spec, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		if err := f.Set("outage", part); err != nil {
			return nil, err
		}
	}
	return f.Outages, nil
}

// Set changes one fault by its key; lists and outages grow.
func (f *Faults) Set(key, value string) error {
	err := f.set(strings.TrimSpace(key), strings.TrimSpace(value))
	if err != nil {
		return fmt.Errorf("fault %s=%s: %w", key, value, err)
	}
	return nil
}

func (f *Faults) set(key, value string) (err error) {
	if code, err := strconv.Atoi(key); err == nil {
		if code < 200 || code > 599 {
			return errors.New("no such status")
		}
		share, err := parseShare(value)
		if err != nil {
			return err
		}
		status := map[int]float64{code: share}
		for c, v := range f.Status {
			if c != code {
				status[c] = v
			}
		}
		f.Status = status // never changed in place: copies of f share it
		return nil
	}
	for i, p := range f.shares() {
		if shareNames[i] == key {
			*p, err = parseShare(value)
			return err
		}
	}
	switch key {
	case "hang_for":
		f.HangFor, err = parseTime(value)
	case "retry_after":
		if value == "never" {
			f.RetryAfter = -1
			return nil
		}
		f.RetryAfter, err = parseTime(value)
	case "redirect_to":
		f.RedirectTo = strings.TrimSuffix(value, "/")
	case "latency":
		f.Latency, err = parseTime(value)
	case "jitter":
		f.Jitter, err = parseTime(value)
	case "rate_limit":
		if f.RateLimit, err = strconv.ParseFloat(value, 64); err == nil && !(f.RateLimit >= 0 && f.RateLimit < 1e9) {
			err = errors.New("want requests a second, 0 = no limit")
		}
	case "on":
		if value != "all" && value != "data" && value != "region" {
			return errors.New("want all, data or region")
		}
		f.On = value
	case "outage":
		if value == "none" {
			f.Outages = nil
			return nil
		}
		o, err := parseOutage(value)
		if err != nil {
			return err
		}
		f.Outages = append(slices.Clone(f.Outages), o)
	case "outage_how":
		f.OutageHow, err = value, checkHow(value)
	case "refuse_id":
		f.RefuseID = append(slices.Clone(f.RefuseID), value)
	case "refuse_event":
		f.RefuseEvent = append(slices.Clone(f.RefuseEvent), value)
	case "refuse_attribute":
		f.RefuseAttribute = append(slices.Clone(f.RefuseAttribute), value)
	case "refuse_how":
		f.RefuseHow, err = strconv.Atoi(value)
		if err != nil || f.RefuseHow != 207 && (f.RefuseHow < 400 || f.RefuseHow > 599) {
			err = errors.New("want 207, or a status from 400 to 599")
		}
	case "poison":
		if value == "" {
			return errors.New("want a text: every request contains the empty one")
		}
		f.Poison = append(slices.Clone(f.Poison), value)
	case "poison_how":
		if code, err := strconv.Atoi(value); value != "cut" && value != "hang" && value != "garbage" && (err != nil || code < 400 || code > 599) {
			return errors.New("want cut, hang, garbage, or a status from 400 to 599")
		}
		f.PoisonHow = value
	default:
		return errors.New("no such fault")
	}
	return err
}

// Validate tells whether the shares leave room for each other.
func (f Faults) Validate() error {
	sum := 0.0
	for _, v := range f.Status {
		sum += v
	}
	for _, p := range f.shares() {
		sum += *p
	}
	if sum > 1+1e-9 {
		return fmt.Errorf("faults: shares add up to %g, more than every request", sum)
	}
	return nil
}

// The names of the shares, in the order of Faults.shares.
var shareNames = [...]string{"cut_before", "cut_after", "hang", "garbage", "garbage_applied", "truncate", "redirect", "partial"}

func (f *Faults) shares() [len(shareNames)]*float64 {
	return [...]*float64{&f.CutBefore, &f.CutAfter, &f.Hang, &f.Garbage, &f.GarbageApplied, &f.Truncate, &f.Redirect, &f.Partial}
}

func parseShare(v string) (float64, error) {
	number, percent := strings.CutSuffix(v, "%")
	s, err := strconv.ParseFloat(number, 64)
	if percent {
		s /= 100
	}
	if err != nil || !(s >= 0 && s <= 1) {
		return 0, errors.New("want a share between 0 and 1")
	}
	return s, nil
}

func parseTime(v string) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if err == nil && d < 0 {
		err = errors.New("negative time")
	}
	return d, err
}

func parseOutage(v string) (o Outage, err error) {
	if v, o.How, _ = strings.Cut(v, ":"); o.How != "" {
		if err := checkHow(o.How); err != nil {
			return o, err
		}
	}
	from, length, since := strings.Cut(v, "+")
	if !since {
		o.FromNow = true
		o.Length, err = parseTime(from)
		return o, err
	}
	var e1, e2 error
	o.From, e1 = parseTime(from)
	o.Length, e2 = parseTime(length)
	return o, errors.Join(e1, e2)
}

func checkHow(v string) error {
	if v != "503" && v != "cut" && v != "hang" {
		return errors.New("an outage is 503, cut or hang")
	}
	return nil
}

// A plan is Faults made ready for the hot path. It never changes.
type plan struct {
	Faults
	codes   []int // of Status, sorted: the order must not depend on the map
	windows []window
	random  bool // some fault is left to chance
	refuses bool
}

type window struct {
	from, to time.Time
	how      string
}

func newPlan(f Faults, start, now time.Time, old *plan) *plan {
	p := &plan{Faults: f}
	for c, v := range f.Status {
		if v > 0 {
			p.codes = append(p.codes, c)
		}
	}
	slices.Sort(p.codes)
	p.random = len(p.codes) > 0 || f.Jitter > 0
	for _, v := range p.shares() {
		p.random = p.random || *v > 0
	}
	p.refuses = len(f.RefuseID)+len(f.RefuseEvent)+len(f.RefuseAttribute) > 0
	for i, o := range f.Outages {
		from, how := start.Add(o.From), o.How
		if o.FromNow {
			from = now.Add(o.From)
			// Other faults may be changed during an outage: it does not begin anew.
			if old != nil && i < len(old.Outages) && old.Outages[i] == o {
				from = old.windows[i].from
			}
		}
		if how == "" {
			how = f.OutageHow
		}
		p.windows = append(p.windows, window{from, from.Add(o.Length), how})
	}
	return p
}

// A decision is what happens to one request.
type decision struct {
	kind    string // "" = nothing
	status  int    // of kind "status"
	latency time.Duration
	hang    time.Duration
	pick    float64 // which operation of a batch, as a share of its length
	poison  bool    // for what is in the request
}

// decide is a function of the seed and the request's number alone, but for
// outages and the rate limit, which go by the clock.
func (p *plan) decide(seed, request uint64, r route, now time.Time, limit *bucket) decision {
	var d decision
	d.latency = p.Latency
	if region := r == routeRegion || r == routeAuth; p.On == "data" && region || p.On == "region" && !region {
		return d
	}
	for _, w := range p.windows {
		if now.Before(w.from) || !now.Before(w.to) {
			continue
		}
		switch w.how {
		case "cut":
			d.kind = "outage_cut"
		case "hang":
			d.kind, d.hang = "outage_hang", w.to.Sub(now)
		default:
			d.kind = "outage_503"
		}
		return d
	}
	if p.RateLimit > 0 && !limit.take(p.RateLimit, now) {
		d.kind = "rate_limit"
		return d
	}
	if !p.random {
		return d
	}
	rng := rand.New(rand.NewPCG(seed, request))
	draw := rng.Float64()
	d.pick = rng.Float64()
	if p.Jitter > 0 {
		d.latency += time.Duration(rng.Float64() * float64(p.Jitter))
	}
	hit := func(share float64) bool { draw -= share; return draw < 0 && share > 0 }
	for _, c := range p.codes {
		if hit(p.Status[c]) {
			d.kind, d.status = "status", c
			return d
		}
	}
	for i, share := range p.shares() {
		if !hit(*share) {
			continue
		}
		if d.kind = shareNames[i]; d.kind == "partial" && r != routeBatch {
			d.kind = ""
		}
		if d.kind == "hang" {
			d.hang = p.hangFor()
		}
		return d
	}
	return d
}

func (p *plan) hangFor() time.Duration {
	if p.HangFor == 0 {
		return 30 * time.Second
	}
	return p.HangFor
}

// spoil makes a request fail that contains poison, unless it fails already.
func (p *plan) spoil(d *decision, path string, body []byte) {
	poisoned := func(text string) bool { return strings.Contains(path, text) || bytes.Contains(body, []byte(text)) }
	if d.kind != "" || !slices.ContainsFunc(p.Poison, poisoned) {
		return
	}
	d.poison = true
	switch p.PoisonHow {
	case "cut":
		d.kind = "cut_before"
	case "hang":
		d.kind, d.hang = "hang", p.hangFor()
	case "garbage":
		d.kind = "garbage"
	default:
		d.kind, d.status = "status", http.StatusInternalServerError
		if code, err := strconv.Atoi(p.PoisonHow); err == nil {
			d.status = code
		}
	}
}

// name is the decision's key in the report.
func (d decision) name() string {
	if d.poison {
		return "poison"
	}
	if d.kind == "status" {
		return strconv.Itoa(d.status)
	}
	return d.kind
}

// retryAfter is the header's value for an answer with this status, "" for none.
func (p *plan) retryAfter(status int) string {
	if p.RetryAfter < 0 || status != http.StatusTooManyRequests && !(status == http.StatusServiceUnavailable && p.RetryAfter > 0) {
		return ""
	}
	return strconv.Itoa(max(1, int((p.RetryAfter+time.Second-1)/time.Second)))
}

// refused tells whether the operation is one that is to be refused.
func (p *plan) refused(o *operation) *problem {
	is := func(list []string, v []byte) bool {
		return len(v) > 0 && slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, string(v)) })
	}
	switch {
	case is(p.RefuseID, o.who.value):
		return invalid("fault_refuse", "identifiers."+kindNames[o.who.kind], "refused on request")
	case o.action.isEvent() && slices.Contains(p.RefuseEvent, string(o.name)):
		return invalid("fault_refuse", "name", "refused on request")
	case o.action == actIdentify && o.values != nil:
		for _, a := range p.RefuseAttribute {
			if v := member(o.values, a); v != nil && !isNull(v) && !bytes.Equal(v, []byte(`""`)) {
				return invalid("fault_refuse", "attributes."+a, "refused on request")
			}
		}
	}
	return nil
}

// A bucket limits requests a second. It belongs to Sandbox.mu.
type bucket struct {
	have float64
	at   time.Time
}

func (b *bucket) take(perSecond float64, now time.Time) bool {
	if b.at.IsZero() {
		b.have = max(1, perSecond)
	} else {
		b.have = min(max(1, perSecond), b.have+now.Sub(b.at).Seconds()*perSecond)
	}
	if b.at = now; b.have < 1 {
		return false
	}
	b.have--
	return true
}

// String writes the faults as ParseFaults reads them.
func (f Faults) String() string {
	var parts []string
	add := func(key, value string) { parts = append(parts, key+"="+value) }
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	var codes []int
	for c := range f.Status {
		codes = append(codes, c)
	}
	slices.Sort(codes)
	for _, c := range codes {
		add(strconv.Itoa(c), number(f.Status[c]))
	}
	for i, p := range f.shares() {
		if *p > 0 {
			add(shareNames[i], number(*p))
		}
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{{"hang_for", f.HangFor}, {"latency", f.Latency}, {"jitter", f.Jitter}, {"retry_after", f.RetryAfter}} {
		if d.value > 0 {
			add(d.key, d.value.String())
		}
	}
	if f.RetryAfter < 0 {
		add("retry_after", "never")
	}
	if f.RateLimit > 0 {
		add("rate_limit", number(f.RateLimit))
	}
	for _, t := range [][2]string{{"redirect_to", f.RedirectTo}, {"on", f.On}, {"outage_how", f.OutageHow}, {"poison_how", f.PoisonHow}} {
		if t[1] != "" {
			add(t[0], t[1])
		}
	}
	for _, o := range f.Outages {
		v := o.Length.String()
		if !o.FromNow {
			v = o.From.String() + "+" + v
		}
		if o.How != "" {
			v += ":" + o.How
		}
		add("outage", v)
	}
	for _, l := range []struct {
		key  string
		list []string
	}{{"refuse_id", f.RefuseID}, {"refuse_event", f.RefuseEvent}, {"refuse_attribute", f.RefuseAttribute}, {"poison", f.Poison}} {
		for _, v := range l.list {
			add(l.key, v)
		}
	}
	if f.RefuseHow != 0 {
		add("refuse_how", strconv.Itoa(f.RefuseHow))
	}
	return strings.Join(parts, ",")
}
