package delivery

import (
	"cmp"
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
)

// Amplitude's limits (amplitude.com/docs/apis/analytics/http-v2 and …/batch-event-upload).
// Whether its "MB" means 1000 or 1024 squared is not published.
//
// Events go to /2/httpapi, as those of an SDK: they are in charts within seconds, and those of a
// device in the order in which they came. /batch takes 20 times as much and 1,000 events a second
// of a user instead of 30, but what it takes is to be seen minutes later, and events that
// took the two ways could overtake each other. So it gets only what the first cannot take:
// single events of more than 1 MB, which came by our own /batch.
const (
	maxRelayEvents = 2000
	maxRelayBytes  = 950_000    // of a body for /2/httpapi, which takes 1 MB
	maxRelayEvent  = 19_900_000 // of a body for /batch, which takes 20 MB
)

// throttledWait is how long events wait that Amplitude calls throttled: the limit is about
// the events of a user or device within a recent window, and its SDKs wait as long.
const throttledWait = 30 * time.Second

const reasonNotFromSDK = "not_from_sdk"

// amplitude is Amplitude's ingestion API. What it answers is read in amplitudeverdict.go.
type amplitude struct {
	s    *Sync
	keys map[uint64]int // by mapping.KeyID: index in Relay.Keys
	wrap int            // bytes of a request beside its events, at most
}

// relayed is what a request to Amplitude has to know of an operation.
type relayed struct {
	key          int   // index in Relay.Keys
	skew         int64 // seconds by which the sender's clock is behind; one request has one
	user, device string
}

// goesWith tells whether both may be in one request.
func (r *relayed) goesWith(o *relayed) bool { return r.key == o.key && r.skew == o.skew }

func newAmplitude(s *Sync) *amplitude {
	a := &amplitude{s: s, keys: map[uint64]int{}}
	for i, key := range s.o.Relay.Keys {
		a.keys[mapping.KeyID(key)] = i
		a.wrap = max(a.wrap, len(a.wrapper(&relayed{key: i, skew: 1}))+len(relayClose))
	}
	return a
}

func (a *amplitude) plan(_ *memory, q *queue.Record, repeat *again, _ earlier) (p part, held bool, err error) {
	p.seq, p.again = q.Seq, repeat
	r := mapping.Record{Seq: q.Seq, Project: q.Project, ID: q.ID, Received: q.Received}
	if err := r.DecodeBody(q.Body); err != nil {
		p.unreadable = &refusal{Reason: "unreadable_record", Message: clip(err.Error())}
		return p, true, nil
	}
	if !r.FromSDK() {
		p.decision = mapping.Decision{EventType: r.EventType(), EventReason: reasonNotFromSDK}
		return p, true, nil
	}
	mark := a.s.o.Relay.Mark
	if mark != "" && a.s.o.Marked != nil && !a.s.o.Marked(q.Seq) {
		mark = ""
	}
	event, err := r.Relay(mark)
	if err != nil {
		p.unreadable = &refusal{Reason: "not_mappable", Message: clip(err.Error())}
		return p, true, nil
	}
	op := &operation{
		action: "event", body: event.Body, origin: origin{r.Seq, r.Received, cmp.Or(r.UserID, r.DeviceID)},
		relayed: &relayed{key: a.keys[r.KeyID], skew: wholeSeconds(event.Skew), user: event.UserID, device: event.DeviceID},
	}
	p.decision = mapping.Decision{
		EventType:  event.Type,
		Operations: []mapping.Operation{{Action: op.action, Body: op.body}},
	}
	p.operations = []*operation{op}
	if len(op.body) > maxRelayEvent {
		op.verdict, op.body = refused, nil
		op.refused = []refusal{{Reason: reasonEventTooLarge, Message: strconv.Itoa(len(event.Body)) + " bytes; Amplitude takes 20 MB"}}
	}
	return p, true, nil
}

// wholeSeconds rounds ms away from 0, so that what was worth a correction still is.
func wholeSeconds(ms int64) int64 {
	if ms < 0 {
		return -((-ms + 999) / 1000)
	}
	return (ms + 999) / 1000
}

func (a *amplitude) fits(operations, bytes int) bool {
	return operations <= min(maxRelayEvents, a.s.o.BatchOperations) && bytes-1+a.wrap <= maxRelayBytes
}

// together: events go under the key that they came with, and those of a sender whose
// clock is wrong in a request that says so. From each lane it takes what may go together
// with the first, up to the first that may not.
func (a *amplitude) together(operations []*operation) (now, then []*operation) {
	first := operations[0].relayed
	mixed := false
	for _, o := range operations {
		mixed = mixed || !o.relayed.goesWith(first)
	}
	if !mixed {
		return operations, nil
	}
	var held *taken // lanes are contiguous
	for _, o := range operations {
		switch {
		case o.of == held && held != nil:
			then = append(then, o)
		case !o.relayed.goesWith(first):
			held = o.of
			then = append(then, o)
		default:
			now = append(now, o)
		}
	}
	return now, then
}

const relayClose = `]}`

// wrapper begins a request. Amplitude's least length of ids counts for nothing: ids were
// judged when the event was taken, by what its sender said of them. Without
// client_upload_time no time is corrected: those in the record are right.
func (a *amplitude) wrapper(r *relayed) []byte {
	b := make([]byte, 0, 256)
	b = append(b, `{"api_key":`...)
	b = strconv.AppendQuote(b, a.s.o.Relay.Keys[r.key]) // printable ASCII
	b = append(b, `,"options":{"min_id_length":1}`...)
	if r.skew != 0 {
		shows := a.s.o.Now().Add(-time.Duration(r.skew) * time.Second)
		b = append(b, `,"client_upload_time":"`...)
		b = shows.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
		b = append(b, '"')
	}
	return append(b, `,"events":[`...)
}

func (a *amplitude) post(ctx context.Context, operations []*operation) answer {
	return a.postAs(ctx, &relayed{}, operations)
}

func (a *amplitude) postAs(ctx context.Context, as *relayed, operations []*operation) answer {
	if len(operations) > 0 {
		as = operations[0].relayed
	}
	body := a.wrapper(as)
	for i, o := range operations {
		if i == 0 {
			size := 0
			for _, o := range operations {
				size += len(o.body) + 1
			}
			body = append(make([]byte, 0, len(body)+size+len(relayClose)), body...)
		} else {
			body = append(body, ',')
		}
		body = append(body, o.body...)
	}
	if len(operations) == 0 {
		body = append(body, `{}`...)
	}
	body = append(body, relayClose...)
	path := "/2/httpapi"
	if len(body) > maxRelayBytes {
		path = "/batch"
	}
	return a.s.client.do(withOrigins(ctx, operations), http.MethodPost, path, content{body})
}

// ask sends an event that is none under each of the keys. Amplitude takes a request whole
// or not at all, so nothing comes of it but the answer, which is another one when the key
// is not known.
func (a *amplitude) ask(ctx context.Context) (Account, *AccountError) {
	for i := range a.s.o.Relay.Keys {
		answer := a.postAs(ctx, &relayed{key: i}, nil)
		if err := a.judge(answer); err != nil {
			return Account{}, err
		}
	}
	return Account{Region: a.s.o.Region, URL: a.s.client.base}, nil
}

func (a *amplitude) judge(answer answer) *AccountError {
	o, base := &a.s.o, a.s.client.shown
	if answer.err != nil {
		reason := networkReason(answer.err)
		return o.unreachable(reason, "no answer from "+base+" ("+reason+")", 0)
	}
	r := a.read(nil, answer, o.Now())
	switch r.verdict {
	case delivered, refused, sifted:
		return nil
	case blocked, forbidden:
		return a.blockedBy(r, answer)
	}
	if r.reason == "bad_answer" || answer.status == http.StatusBadRequest {
		return o.unreachable("bad_answer", base+" answers, but not as Amplitude does", 0)
	}
	return o.unreachable(r.reason, base+" answers "+strconv.Itoa(answer.status), parseRetryAfter(answer.retryAfter, o.Now()))
}

func (a *amplitude) blockedBy(r reading, answer answer) *AccountError {
	o, base := &a.s.o, a.s.client.shown
	e := &AccountError{Reason: r.reason, Blocked: true}
	switch {
	case r.reason == reasonInvalidKey:
		e.Detail = "Amplitude does not know the API key of project " + o.Relay.Project
		if len(o.Relay.Keys) > 1 {
			e.Detail = "Amplitude does not know one of the API keys of project " + o.Relay.Project
		}
		e.Advice = "check project." + o.Relay.Project + ".amplitude_api_keys (Amplitude: Settings > Projects), and that the project is in region " + strconv.Quote(o.Region) + ", as relay says"
	case r.reason == "http_404", r.reason == "http_405":
		e.Reason = "wrong_endpoint"
		e.Detail = base + " does not take events (" + r.reason + ")"
		e.Advice = "check project." + o.Relay.Project + ".relay_endpoint; leave it empty for Amplitude's own address"
	case strings.HasPrefix(r.reason, "http_3"):
		e.Reason = "wrong_endpoint"
		e.Detail = base + " redirects" + redirectedTo(answer.location)
		e.Advice = "check project." + o.Relay.Project + ".relay_endpoint, and whether a proxy or a login page answers instead"
	default:
		e.Detail = base + " forbids requests from this machine (" + r.reason + ")"
		e.Advice = "check whether a firewall or proxy answers instead; if it is Amplitude, ask them about the address of this machine"
	}
	return e
}
