package sandbox

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func mustFaults(t testing.TB, spec string) Faults {
	t.Helper()
	f, err := ParseFaults(spec)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

const buy = `{"type":"person","action":"event","identifiers":{"id":"1"},"name":"Buy","id":"` + someULID + `"}`

// What a client sees of each fault, whether the event was applied all the same,
// and what the report says.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name    string
		faults  string
		status  int // 0 = no answer
		says    string
		header  [2]string
		applied bool
		outcome string // in the report, when not the status
		counted string
	}{
		{"a server error is a page of HTML", "500=1", 500, "<html>", [2]string{"Content-Type", "text/html; charset=utf-8"}, false, "", "500"},
		{"refused credentials", "403=100%", 403, `"reason":"invalid"`, [2]string{"Retry-After", ""}, false, "", "403"},
		{"too many requests", "429=1", 429, "on request", [2]string{"Retry-After", "1"}, false, "", "429"},
		{"too many requests, for long", "429=1,retry_after=2500ms", 429, "", [2]string{"Retry-After", "3"}, false, "", "429"},
		{"too many requests, as documented", "429=1,retry_after=never", 429, "", [2]string{"Retry-After", ""}, false, "", "429"},
		{"unavailable for a time", "503=1,retry_after=7s", 503, "", [2]string{"Retry-After", "7"}, false, "", "503"},
		{"cut before", "cut_before=1", 0, "", [2]string{}, false, "cut", "cut_before"},
		{"cut after", "cut_after=1", 0, "", [2]string{}, true, "cut", "cut_after"},
		{"hang", "hang=1,hang_for=1ms", 504, "", [2]string{}, false, "", "hang"},
		{"somebody else answers", "garbage=1", 200, "hotel", [2]string{"Content-Type", "text/html; charset=utf-8"}, false, "", "garbage"},
		{"the answer is replaced on the way", "garbage_applied=1", 200, "hotel", [2]string{}, true, "", "garbage_applied"},
		{"the answer ends early", "truncate=1", 0, "", [2]string{}, true, "truncated", "truncate"},
		{"redirect, leading nowhere", "redirect=1", 301, "wrong datacenter", [2]string{"Location", ""}, false, "", "redirect"},
		{"redirect", "redirect=1,redirect_to=http://127.0.0.1:1/", 301, "", [2]string{"Location", "http://127.0.0.1:1/api/v2/batch"}, false, "", "redirect"},
		{"partial", "partial=1", 207, `{"errors":[{"batch_index":0,"reason":"invalid"`, [2]string{}, false, "", "partial"},
		{"slow", "latency=2ms,jitter=1ms", 200, "{}", [2]string{}, true, "", ""},
		{"outage", "outage=0s+1h", 503, "<html>", [2]string{}, false, "", "outage_503"},
		{"outage from now, cutting", "outage=1h,outage_how=cut", 0, "", [2]string{}, false, "cut", "outage_cut"},
		{"outage that hangs to its end", "outage=30ms:hang,outage=1h:503", 503, "", [2]string{}, false, "", "outage_hang"},
		{"no outage yet", "outage=1h+1h", 200, "{}", [2]string{}, true, "", ""},
		{"refused person", "refuse_id=2,refuse_id=1", 207, `"field":"identifiers.id","message":"refused on request"`, [2]string{}, false, "", ""},
		{"refused event", "refuse_event=Buy", 207, `"field":"name"`, [2]string{}, false, "", ""},
		{"a person that spoils the whole request", "refuse_id=1,refuse_how=400", 400, `{"errors":[{"reason":"invalid","field":"identifiers.id"`, [2]string{}, false, "", ""},
		{"a person that breaks the server", "refuse_id=1,refuse_how=500", 500, "<html>", [2]string{}, false, "", ""},
		{"others are not refused", "refuse_id=2,refuse_event=Sell,refuse_attribute=plan", 200, "{}", [2]string{}, true, "", ""},
		{"poison", "poison=\"Buy\"", 500, "<html>", [2]string{}, false, "", "poison"},
		{"poison, by its own status", "poison=Sell,poison=\"name\":\"Buy\",poison_how=503", 503, "<html>", [2]string{}, false, "", "poison"},
		{"poison that cuts", "poison=Buy,poison_how=cut", 0, "", [2]string{}, false, "cut", "poison"},
		{"poison that hangs", "poison=Buy,poison_how=hang,hang_for=1ms", 504, "", [2]string{}, false, "", "poison"},
		{"poison that meets a page", "poison=Buy,poison_how=garbage", 200, "hotel", [2]string{}, false, "", "poison"},
		{"poison in the path", "poison=/v2/batch,poison_how=404", 404, "", [2]string{}, false, "", "poison"},
		{"no poison in it", "poison=Sell", 200, "{}", [2]string{}, true, "", ""},
		{"only the region endpoint", "500=1,on=region", 200, "{}", [2]string{}, true, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, Options{Faults: mustFaults(t, c.faults), Now: newClock().now})
			got, err := r.send("POST", "/api/v2/batch", `{"batch":[`+buy+`]}`)
			if (err != nil) != (c.status == 0) {
				t.Fatalf("%v %v", got, err)
			}
			if err == nil && (got.status != c.status || !strings.Contains(got.body, c.says)) {
				t.Errorf("answered %d %s, want %d %s", got.status, got.body, c.status, c.says)
			}
			if c.header[0] != "" && got.header.Get(c.header[0]) != c.header[1] {
				t.Errorf("%s: %q, want %q", c.header[0], got.header.Get(c.header[0]), c.header[1])
			}
			report := r.Report()
			if n := report.Events.Accepted; (n == 1) != c.applied {
				t.Errorf("%d events applied, want applied=%v", n, c.applied)
			}
			outcome := c.outcome
			if outcome == "" {
				outcome = fmt.Sprint(c.status)
			}
			wantCounts(t, "answers", report.ByEndpoint["POST /api/v2/batch"], map[string]int64{outcome: 1})
			if c.counted != "" {
				wantCounts(t, "faults", report.FaultsInjected, map[string]int64{c.counted: 1})
				if len(report.FaultLog) != 1 || report.FaultLog[0] != (FaultDecision{1, c.counted, "POST /api/v2/batch"}) {
					t.Errorf("fault log %v", report.FaultLog)
				}
			} else if len(report.FaultsInjected) > 0 {
				t.Errorf("faults counted: %v", report.FaultsInjected)
			}
		})
	}
}

func TestFaultsSpareTheRegionEndpoint(t *testing.T) {
	r := start(t, Options{Faults: mustFaults(t, "403=1,on=data,refuse_attribute=plan")})
	r.must(200, "GET", "/api/v1/accounts/region", "")
	r.must(403, "POST", "/api/v2/entity", buy)
	r.must(403, "PUT", "/api/v1/customers/1", `{}`)
	r.SetFaults(mustFaults(t, "403=1,on=region"))
	r.must(403, "GET", "/api/v1/accounts/region", "")
	r.must(200, "POST", "/api/v2/entity", buy)
}

// A refused attribute is refused until it is left out or cleared; outside a batch
// the answer is 400.
func TestRefusedAttribute(t *testing.T) {
	r := start(t, Options{Faults: mustFaults(t, "refuse_attribute=plan")})
	identify := func(attributes string) string {
		return `{"type":"person","action":"identify","identifiers":{"id":"1"},"attributes":` + attributes + `}`
	}
	if got := r.must(400, "POST", "/api/v2/entity", identify(`{"plan":1}`)); !strings.Contains(got.body, `"field":"attributes.plan"`) {
		t.Errorf("says %s", got.body)
	}
	r.must(207, "POST", "/api/v2/batch", `{"batch":[`+identify(`{"plan":1}`)+`,`+buy+`]}`)
	r.must(400, "PUT", "/api/v1/customers/1", `{"plan":1}`)
	r.entity(identify(`{"plan":""}`))
	r.entity(identify(`{"a":1}`))
	if got := r.attributes("id", "1"); got != `{"a":1}` {
		t.Errorf("attributes %s", got)
	}
	wantCounts(t, "invalid", r.Report().Invalid, map[string]int64{"fault_refuse": 3})
}

// Whoever sends the same requests in the same order meets the same faults.
func TestFaultsDependOnTheSeed(t *testing.T) {
	run := func(seed uint64) (string, map[string]int64) {
		r := start(t, Options{Seed: seed, Faults: mustFaults(t, "500=0.1,429=0.1,cut_after=0.1,garbage=0.1,partial=0.2,jitter=1us")})
		var seen strings.Builder
		for range 200 {
			got, err := r.send("POST", "/api/v2/batch", `{"batch":[`+buy+`,`+buy+`,`+buy+`]}`)
			fmt.Fprint(&seen, got.status, err != nil, strings.TrimSpace(got.body), ";")
		}
		return seen.String(), r.Report().FaultsInjected
	}
	a, counts := run(7)
	if b, _ := run(7); a != b {
		t.Error("the same seed gave other faults")
	}
	if b, _ := run(8); a == b {
		t.Error("another seed gave the same faults")
	}
	for _, kind := range []string{"500", "429", "cut_after", "garbage"} {
		if n := counts[kind]; n < 8 || n > 36 {
			t.Errorf("%s met %d of 200 requests, want about 20", kind, n)
		}
	}
	if n := counts["partial"]; n < 20 || n > 64 {
		t.Errorf("partial met %d of 200 requests, want about 40", n)
	}
}

func TestRateLimit(t *testing.T) {
	clock := newClock()
	r := start(t, Options{Now: clock.now, Faults: mustFaults(t, "rate_limit=2")})
	for i, want := range []int{200, 200, 429, 429} {
		if got := r.must(want, "POST", "/api/v2/entity", buy); want == 429 && got.header.Get("Retry-After") == "" {
			t.Errorf("request %d: no Retry-After", i)
		}
	}
	clock.pass(500 * time.Millisecond)
	r.must(200, "POST", "/api/v2/entity", buy)
	r.must(429, "POST", "/api/v2/entity", buy)
	clock.pass(time.Hour)
	for _, want := range []int{200, 200, 429} {
		r.must(want, "POST", "/api/v2/entity", buy)
	}
	wantCounts(t, "faults", r.Report().FaultsInjected, map[string]int64{"rate_limit": 4})
}

func TestOutageWindows(t *testing.T) {
	clock := newClock()
	r := start(t, Options{Now: clock.now, Faults: mustFaults(t, "outage=10s+5s,outage=20s+5s:cut")})
	at := func(d time.Duration, want string) {
		t.Helper()
		clock.pass(d)
		got, err := r.send("POST", "/api/v2/entity", buy)
		if s := fmt.Sprint(got.status); s != want {
			t.Errorf("answered %s %v, want %s", s, err, want)
		}
	}
	at(9999*time.Millisecond, "200")
	at(time.Millisecond, "503")
	at(4999*time.Millisecond, "503")
	at(time.Millisecond, "200")
	at(5*time.Second, "0")
	at(5*time.Second, "200")
	r.must(200, "POST", "/_sandbox/faults?outage=5s", "")
	at(4*time.Second, "503")
	r.must(200, "POST", "/_sandbox/faults?latency=1ms", "") // does not begin the outage anew
	at(999*time.Millisecond, "503")
	at(time.Millisecond, "200")
	r.Reset()
	at(10*time.Second, "503")
}

// A hanging request ends when its client goes, when faults are taken back, and
// when the sandbox is reset or closed.
func TestHangsEnd(t *testing.T) {
	for _, c := range []struct {
		name    string
		end     func(r *rig, cancel func())
		outcome string
	}{
		{"the client goes", func(_ *rig, cancel func()) { cancel() }, "gone"},
		{"faults are taken back", func(r *rig, _ func()) { r.must(200, "DELETE", "/_sandbox/faults", "") }, "cut"},
		{"closed", func(r *rig, _ func()) { r.Close() }, "cut"},
		{"reset", func(r *rig, _ func()) { r.Reset() }, "cut"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, Options{Faults: mustFaults(t, "hang=1,hang_for=1h")})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			req, _ := http.NewRequestWithContext(ctx, "POST", r.server.URL+"/api/v2/entity", strings.NewReader(buy))
			ended := make(chan error)
			go func() {
				_, err := r.do(req)
				ended <- err
			}()
			until(t, func() bool { return r.Report().FaultsInjected["hang"] == 1 })
			c.end(r, cancel)
			if err := <-ended; err == nil {
				t.Error("the request was answered")
			}
			until(t, func() bool { return r.Report().InFlight == 0 })
			wantCounts(t, "answers", r.Report().ByEndpoint["POST /api/v2/entity"], map[string]int64{c.outcome: 1})
		})
	}
}

// until waits for something that another goroutine is about to do.
func until(t *testing.T, done func() bool) {
	t.Helper()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	tooLate := time.After(10 * time.Second)
	for !done() {
		select {
		case <-look.C:
		case <-tooLate:
			t.Fatal("it did not happen within 10 s")
		}
	}
}

func TestServeEndsCleanly(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Faults: mustFaults(t, "hang=1,hang_for=1h")})
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- Serve(ctx, l, s) }()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	hung := make(chan error)
	go func() {
		resp, err := client.Post("http://"+l.Addr().String()+"/api/v2/entity", "application/json", strings.NewReader(buy))
		if err == nil {
			resp.Body.Close()
		}
		hung <- err
	}()
	until(t, func() bool { return s.Report().FaultsInjected["hang"] == 1 })
	stop()
	if err := <-hung; err == nil {
		t.Error("the hanging request was answered")
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("still listening")
	}
	if err := Serve(context.Background(), l, s); err == nil {
		t.Error("serving on a closed listener ended without an error")
	}
}

func TestOverlap(t *testing.T) {
	r := start(t, Options{CheckOverlap: true, Faults: mustFaults(t, "latency=1h")})
	var ended sync.WaitGroup
	for _, id := range []string{"1", "2", "1"} {
		ended.Go(func() {
			_, _ = r.send("PUT", "/api/v1/customers/"+id, `{}`)
		})
	}
	until(t, func() bool { return r.Report().Operations["identify"] == 3 })
	r.Close()
	ended.Wait()
	if got := r.Report(); got.Order.Overlaps != 1 || got.Order.FirstOverlap != "id:1" || got.MaxInFlight != 3 {
		t.Errorf("%+v, %d in flight", got.Order, got.MaxInFlight)
	}
	r.must(200, "PUT", "/api/v1/customers/1", `{}`)
	if n := r.Report().Order.Overlaps; n != 1 {
		t.Errorf("%d overlaps after all were answered", n)
	}
}

func TestParseFaults(t *testing.T) {
	for _, c := range []struct {
		name, spec, want, err string
	}{
		{"nothing", " ", "", ""},
		{"shares", "500=0.05, 429=5%,cut_after=0.02", "429=0.05,500=0.05,cut_after=0.02", ""},
		{"times", "latency=20ms,jitter=1s,hang=1,hang_for=2m", "hang=1,hang_for=2m0s,latency=20ms,jitter=1s", ""},
		{"outages", "outage=10s+5s,outage=3s:hang,outage_how=cut", "outage_how=cut,outage=10s+5s,outage=3s:hang", ""},
		{"refusals", "refuse_id=a b,refuse_id=c,refuse_event=Buy,refuse_attribute=plan,refuse_how=403", "refuse_id=a b,refuse_id=c,refuse_event=Buy,refuse_attribute=plan,refuse_how=403", ""},
		{"the rest", "rate_limit=10,on=data,redirect=.1,redirect_to=http://x/,retry_after=never", "redirect=0.1,retry_after=never,rate_limit=10,redirect_to=http://x,on=data", ""},
		{"poison", "poison=bad one,poison=x=y,poison_how=hang", "poison_how=hang,poison=bad one,poison=x=y", ""},
		{"no value", "500", "", `fault "500": want key=value`},
		{"unknown", "err500=1", "", "no such fault"},
		{"share above 1", "500=1.5", "", "between 0 and 1"},
		{"share is no number", "cut_after=NaN", "", "between 0 and 1"},
		{"shares above 1 together", "500=0.6,cut_after=0.5", "", "add up to 1.1"},
		{"no such status", "999=0.1", "", "no such status"},
		{"negative time", "latency=-1s", "", "negative"},
		{"bad outage", "outage=5", "", "missing unit"},
		{"bad outage kind", "outage=5s:bang", "", "503, cut or hang"},
		{"poison of no text", "poison=", "", "every request"},
		{"bad poison", "poison=x,poison_how=200", "", "want cut"},
		{"bad refusal", "refuse_how=200", "", "want 207"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := ParseFaults(c.spec)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("%q: error %v, want %s", c.spec, err, c.err)
				}
				return
			}
			if err != nil || f.String() != c.want {
				t.Fatalf("%q: %q %v, want %q", c.spec, f.String(), err, c.want)
			}
			if again, err := ParseFaults(f.String()); err != nil || !reflect.DeepEqual(again, f) {
				t.Errorf("%q reads back as %+v %v, was %+v", f.String(), again, err, f)
			}
		})
	}
}

func TestFlags(t *testing.T) {
	values := map[string]string{"site-id": "s", "api-key": "k", "region": "eu", "environment-id": "5", "wrong-region": "redirect", "fault": "500=0.5",
		"outage": "10s+5s,20s+5s:cut", "seed": "9", "order-attribute": "seq", "order-first": "1", "check-overlap": "", "max-kept-events": "-1",
		"max-event-ids": "100", "keep-empty": "", "email-may-change": "true"}
	var o Options
	for _, f := range slices.Backward(Flags()) { // in whatever order they come
		v, ok := values[f.Name]
		if !ok {
			t.Fatalf("no value for --%s", f.Name)
		}
		if err := f.Set(&o, v); err != nil {
			t.Errorf("--%s %s: %v", f.Name, v, err)
		}
		delete(values, f.Name)
	}
	if len(values) > 0 {
		t.Errorf("no such flags: %v", slices.Collect(maps.Keys(values)))
	}
	o.Now = nil
	want := Options{SiteID: "s", APIKey: "k", Region: "eu", EnvironmentID: 5, WrongRegion: "redirect", Seed: 9, OrderAttribute: "seq", OrderFirst: 1,
		CheckOverlap: true, MaxKeptEvents: -1, MaxEventIDs: 100, KeepEmpty: true, EmailMayChange: true,
		Faults: Faults{Status: map[int]float64{500: .5}, Outages: []Outage{{From: 10 * time.Second, Length: 5 * time.Second}, {From: 20 * time.Second, Length: 5 * time.Second, How: "cut"}}}}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("%+v, want %+v", o, want)
	}
	for _, f := range Flags() {
		if err := f.Set(&o, "no such value"); (err == nil) != (f.Name == "site-id" || f.Name == "api-key" || f.Name == "order-attribute") {
			t.Errorf("--%s: error %v", f.Name, err)
		}
	}
}
