package model

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing/synctest"
	"time"

	"ampcio/delivery"
	"ampcio/queue"
)

// room is the product's own delivery of one sync, and the Customer.io that it meets.
type room struct {
	l       *ledger
	sync    *delivery.Sync
	stop    context.CancelFunc
	stopped chan error

	mu      sync.Mutex
	rng     *rand.Rand
	fails   int           // that many of the first requests may fail
	met     int           // requests with data
	last    int           // the request in which all stands still, counted from 1; 0 = none
	taken   bool          // that one is processed before
	still   chan struct{} // closed when it has come
	revoked int           // questions for the region that are answered 401
	dead    bool          // the process has crashed: nothing gets out of it any more
	gone    chan struct{} // closed then
	ended   sync.Once
	broke   error // the violation that a request was: it is told by who waits
}

// failing are what may become of a request while Customer.io fails.
var failing = []string{"accepted", "accepted", "207", "207", "207 that names nobody", "400", "413", "500", "429", "HTML", "HTML, processed", "half an answer, processed",
	"cut", "cut, processed", "silence", "silence, processed", "401", "redirect"}

// openRoom lets the product deliver what is pending of a ledger.
func (h *history) openRoom(l *ledger, s step) *room {
	h.returnAll(l)
	h.must(h.consumer(l).Flush(), "flush")
	l.written()
	o := &room{l: l, rng: rand.New(rand.NewPCG(uint64(s.c), uint64(s.d))), fails: s.c % 9, still: make(chan struct{}), gone: make(chan struct{}), stopped: make(chan error, 1)}
	if s.c%10 == 0 {
		o.revoked = 1 + s.b%2
	}
	o.sync = delivery.New(h.consumer(l), ruleSets[l.rules].compiled, delivery.Options{
		Name: l.name, SiteID: "site", APIKey: "key", Region: "us", Endpoint: "http://customerio.test", Transport: o, Now: h.now,
		Concurrency: []int{1, 1, 3}[s.b%3], RequestsPerSecond: 1000, BatchOperations: []int{1, 3, 10, 500}[s.d%4],
		Timeout: time.Second, RetryInitial: 20 * time.Millisecond, RetryMax: 200 * time.Millisecond,
		Current: func(project, user, device string) (properties, builtins []byte, err error) {
			if user == "" {
				return nil, nil, nil
			}
			k, err := h.store.User(project, user)
			return k.Properties, k.Builtins, err
		},
	})
	return o
}

func (o *room) begin() {
	o.l.room = o
	var ctx context.Context
	ctx, o.stop = context.WithCancel(context.Background())
	go func() { o.stopped <- o.sync.Run(ctx) }()
}

// end ends it, once. Nothing gets out of it any more, and what comes of what is in flight nobody sees.
func (o *room) end() (err error) {
	o.ended.Do(func() {
		o.mu.Lock()
		o.dead = true
		o.mu.Unlock()
		close(o.gone)
		o.stop()
		err = <-o.stopped
	})
	return err
}

// violation is what a request was, if it broke a promise.
func (o *room) violation() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.broke
}

// deliverForReal opens a room until all is delivered, or is stopped in the midst of a request.
func (h *history) deliverForReal(s step) {
	l := h.ledger(s.a)
	if l.discards { // what is given up meanwhile cannot be told from what is delivered
		return
	}
	o := h.openRoom(l, s)
	stops := s.b%4 == 0
	if stops {
		o.last, o.taken = 1+s.d%5, s.d%2 == 0
	}
	h.enterWorkspace(l, o, s)
	h.say("sync %s delivers, of %d requests some fail, %d operations each, stops at request %d", l.name, o.fails, []int{1, 3, 10, 500}[s.d%4], o.last)
	o.begin()
	if s.a%3 == 0 {
		func() {
			o.mu.Lock() // what is delivered before the model knows of it would be nobody's
			defer o.mu.Unlock()
			h.ingest(step{a: s.b, b: s.c, c: s.d, d: s.a})
		}()
	}
	for waited := time.Duration(0); ; waited += 100 * time.Millisecond {
		select {
		case <-o.still:
		case <-time.After(100 * time.Millisecond): // virtual
		}
		synctest.Wait()
		h.must(o.violation(), "a request")
		left, _ := h.consumer(l).Stats()
		if o.sync.Status().OtherWorkspace != (delivery.OtherWorkspace{}) {
			h.must(o.sync.Adopt(context.Background()), "adopt the workspace")
			h.say("the workspace is adopted")
		}
		heard := h.consumer(l).Workspace() == int64(1+l.workspace)
		if heard && left.Books.Pending == 0 || l.paused && waited > 2*time.Second || closed(o.still) {
			break
		}
		if waited > time.Minute {
			h.fail("sync %s: %d records are not delivered, though nothing fails any more: %+v", l.name, left.Books.Pending, o.sync.Status())
		}
		o.sync.RetryNow() // as a person who has mended it
	}
	h.must(o.end(), "deliver")
	l.room = nil
	synctest.Wait()
	h.must(o.violation(), "a request")
	h.learn(l)
	h.consumer(l).Flowing(true)
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// enterWorkspace gives the account another workspace now and then: nobody there has been told anything.
func (h *history) enterWorkspace(l *ledger, o *room, s step) {
	if s.a%7 != 0 || h.consumer(l).Workspace() == 0 { // the first workspace that it hears of is where it has always been
		return
	}
	l.workspace++
	l.to.people, l.to.loose, l.to.unsure = map[string]map[string]int{}, map[string]bool{}, map[string]bool{}
	h.say("sync %s has workspace %d", l.name, l.workspace)
}

// crashDelivering crashes while some syncs deliver, in the midst of requests.
func (h *house) crashDelivering(s step) {
	for i, y := range h.histories {
		own := step{a: s.b + i, b: s.c + 3*i, c: s.d + 7*i, d: s.b + 11*i}
		l := y.ledger(own.a)
		if own.b%3 == 0 || l.discards {
			continue
		}
		o := y.openRoom(l, own)
		o.last, o.taken = 1+own.d%4, own.d%3 == 0
		h.say("sync %s of history %d delivers until request %d", l.name, y.number, o.last)
		o.begin()
	}
	time.Sleep(150 * time.Millisecond) // virtual: some of their requests are answered, others are not yet
	h.crash()
}

// learn finds out what the product has made of what was pending. Each record that has ended must have ended rightly:
// Customer.io has said so. A user update that was accepted goes into the ledger with its record: where that one is still
// pending, the ledger does not know of it.
func (h *history) learn(l *ledger) {
	fates, books := h.fates(l)
	h.adopt(l, fates)
	for i, r := range h.of(l.project) {
		if !l.pending(r) {
			continue
		}
		is := l.state(r)
		switch fates[i].State {
		case queue.FateWaiting, queue.FatePending:
			if l.to.updated[r.user] {
				l.to.loose[r.user] = true
			}
		case queue.FateDead:
			if !l.to.refused[r.seq] && !l.to.refusedUsers[r.user] {
				h.fail("sync %s: record %d is a dead letter, and nothing of it was refused", l.name, r.seq)
			}
			is.ending = queue.Dead
		case queue.FateEnded:
			switch {
			case r.user == "":
				is.ending = queue.Filtered
			case is.again || !l.sends(r): // there may have been nothing to send, or the user alone
				is.ending = queue.Delivered
				l.vague++
			case !l.to.accepted[r.seq]:
				h.fail("sync %s: record %d has ended, and Customer.io has not said that it has it", l.name, r.seq)
			default:
				is.ending = queue.Delivered
			}
		}
	}
	clear(l.to.updated)
	now := l.now()
	if problem := h.differs(l, &now, h.of(l.project), fates, books); problem != "" {
		h.fail("sync %s after its delivery: %s", l.name, problem)
	}
	l.written()
}

// RoundTrip is Customer.io. What is wrong with a request ends neither it nor the goroutine: who waits tells it.
func (o *room) RoundTrip(r *http.Request) (a *http.Response, err error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		r.Body.Close()
	}
	a, waits, err := o.meet(r, body)
	if !waits {
		return a, err
	}
	select {
	case <-r.Context().Done():
		return nil, r.Context().Err()
	case <-o.gone:
		return nil, io.EOF
	}
}

// meet answers a request, or says that nothing comes of it while its client waits.
func (o *room) meet(r *http.Request, body []byte) (a *http.Response, waits bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	// A violation is thrown from wherever it is seen; it must end the history and not the process, which has others.
	defer func() {
		if p := recover(); p != nil {
			v, ok := p.(violation)
			if !ok {
				v = violation{fmt.Errorf("panic: %v\n%s", p, stack())}
			}
			o.broke, a, err = errors.Join(o.broke, v.error), nil, io.EOF
		}
	}()
	l, d := o.l, o.l.to
	switch {
	case o.dead || o.broke != nil:
		return nil, false, io.EOF
	case r.Method == http.MethodGet && o.revoked > 0:
		o.revoked--
		return answer(r, 401, `{"meta":{"error":"unauthorized"}}`), false, nil
	case r.Method == http.MethodGet:
		return answer(r, 200, fmt.Sprintf(`{"url":"https://track.customer.io","region":"us","environment_id":%d}`, 1+l.workspace)), false, nil
	case l.paused:
		l.h.fail("sync %s is paused, and delivers", l.name)
	}
	var request struct{ Batch []json.RawMessage }
	if err := json.Unmarshal(body, &request); err != nil || len(request.Batch) == 0 {
		l.h.fail("a request cannot be read: %v: %s", err, body)
	}
	o.met++
	way := "accepted"
	if o.met <= o.fails {
		way = failing[o.rng.IntN(len(failing))]
	}
	if o.met == o.last {
		way = "silence"
		if o.taken {
			way = "silence, processed"
		}
		close(o.still)
	}
	refused := -1
	switch n := len(request.Batch); {
	case way == "207" || way == "207 that names nobody":
		refused = o.rng.IntN(n)
	case n == 1 && (way == "400" || way == "413"):
		refused = 0
	}
	said := way == "accepted" || way == "207" || refused >= 0 && len(request.Batch) == 1 // what the answer says is final
	switch way {
	case "accepted", "207", "207 that names nobody", "HTML, processed", "half an answer, processed", "cut, processed", "silence, processed":
		for i, operation := range request.Batch {
			d.meet(operation, i == refused, said)
		}
	default:
		if refused == 0 {
			d.meet(request.Batch[0], true, said)
		}
	}
	switch way {
	case "accepted":
		return answer(r, 200, `{}`), false, nil
	case "207":
		return answer(r, 207, fmt.Sprintf(`{"errors":[{"batch_index":%d,"reason":"invalid","field":"name","message":"no"}]}`, refused)), false, nil
	case "207 that names nobody":
		return answer(r, 207, `{"errors":[{"reason":"invalid"}]}`), false, nil
	case "400", "413":
		return answer(r, map[string]int{"400": 400, "413": 413}[way], `{"errors":[{"reason":"invalid","message":"no"}]}`), false, nil
	case "500":
		return answer(r, 500, `oh`), false, nil
	case "429":
		return answer(r, 429, `{}`), false, nil
	case "401":
		return answer(r, 401, `{"meta":{"error":"unauthorized"}}`), false, nil
	case "redirect":
		return answer(r, 301, ``), false, nil
	case "HTML", "HTML, processed":
		return answer(r, 200, `<html>`), false, nil
	case "half an answer, processed":
		return answer(r, 207, `{"errors":[{"batch_in`), false, nil
	case "silence", "silence, processed":
		return nil, true, nil
	}
	return nil, false, io.EOF // a cut
}

func answer(r *http.Request, status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader([]byte(body))), ContentLength: int64(len(body))}
}

// meet is an operation that has come to Customer.io; said tells whether the sender gets to know what became of it.
func (d *destination) meet(body []byte, refuse, said bool) {
	var o operation
	if err := json.Unmarshal(body, &o); err != nil {
		d.h.fail("an operation cannot be read: %v: %s", err, body)
	}
	if !said {
		d.loose[o.Identifiers.ID] = true
	}
	if o.Action == "identify" {
		d.identify(&o, refuse)
		d.updated[o.Identifiers.ID] = true
		if said && refuse {
			d.refusedUsers[o.Identifiers.ID] = true
		}
		return
	}
	n, _ := o.Attributes["n"].(float64)
	r := d.h.byNumber[int(n)]
	if r == nil {
		d.h.fail("sync %s: nobody has sent the event of %s", d.l.name, body)
	}
	d.take(r, body, refuse)
	switch {
	case said && refuse:
		d.refused[r.seq] = true
	case said:
		d.accepted[r.seq] = true
	}
}
