package delivery

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// probeEvery is the least time between two questions to the region endpoint while
// the sync is blocked: wrong keys do not get right by being shown more often.
const probeEvery = time.Minute

// Account is what Customer.io's region endpoint says of a Site ID and API key
// (GET /api/v1/accounts/region).
type Account struct {
	Region        string `json:"region"` // us | eu
	EnvironmentID int64  `json:"environment_id"`
	URL           string `json:"url"` // the base URL for this account
}

// AccountError is why deliveries may not start.
type AccountError struct {
	Reason  string // one word: http_401, wrong_region, wrong_endpoint, timeout, bad_answer …
	Detail  string // what was seen
	Advice  string // what to do, one sentence
	Blocked bool   // a person must mend it; else it is tried again and may pass by itself

	retryAfter time.Duration
	other      OtherWorkspace
}

func (e *AccountError) Error() string { return e.Detail + ": " + e.Advice }

// CheckAccount asks the region endpoint once whether the credentials are good and
// the region is the account's. An error is always an *AccountError. Nothing but
// the credentials is sent.
func CheckAccount(ctx context.Context, o Options) (Account, error) {
	o = o.withDefaults()
	c := newClient(o)
	defer c.close()
	account, err := (&Sync{o: o, client: c}).newDestination().ask(ctx)
	if err != nil {
		return Account{}, err
	}
	return account, nil
}

// judgeAccount reads the answer of the region endpoint; the error is nil only
// when Customer.io knows the credentials and the region agrees.
func judgeAccount(a answer, o *Options, base string) (Account, *AccountError) {
	if a.err != nil {
		reason := networkReason(a.err)
		return Account{}, o.unreachable(reason, fmt.Sprintf("no answer from %s (%s)", base, reason), 0)
	}
	code := "http_" + strconv.Itoa(a.status)
	switch {
	case a.status == http.StatusOK:
		var body struct {
			URL, Region string
			Environment json.RawMessage `json:"environment_id"`
		}
		if json.Unmarshal(a.body, &body) != nil || body.Region == "" {
			return Account{}, o.unreachable("bad_answer", base+" answers, but not as Customer.io does", 0)
		}
		if region := clip(body.Region); region != o.Region {
			return Account{}, wrongRegion(o, region, fmt.Sprintf("Customer.io says that this account is in region %q", region))
		}
		account := Account{Region: body.Region, URL: body.URL}
		// Not worth refusing to deliver for, should it ever be something else.
		account.EnvironmentID, _ = strconv.ParseInt(strings.Trim(string(body.Environment), `"`), 10, 64)
		return account, nil
	case a.status >= 300 && a.status < 500 && a.status != http.StatusRequestTimeout && a.status != http.StatusTooManyRequests:
		return Account{}, blockedBy(code, a.location, o, base)
	}
	return Account{}, o.unreachable(code, fmt.Sprintf("%s answers %d", base, a.status), parseRetryAfter(a.retryAfter, o.Now()))
}

// blockedBy says what an answer that only a person can mend means, wherever it came from.
func blockedBy(code, location string, o *Options, base string) *AccountError {
	switch code {
	case "http_401", "http_403":
		return &AccountError{
			Reason: code, Blocked: true,
			Detail: "Customer.io does not accept the Site ID and API key",
			Advice: fmt.Sprintf("check site_id and the Track API key (Settings, API Credentials in Customer.io), and that the account is in region %q", o.Region),
		}
	case "http_404", "http_405":
		return &AccountError{
			Reason: "wrong_endpoint", Blocked: true,
			Detail: fmt.Sprintf("%s has no Track API (%s)", base, code),
			Advice: "check endpoint; leave it empty for Customer.io's own address",
		}
	}
	if len(code) == len("http_300") && code[len("http_")] == '3' {
		detail := base + " redirects"
		detail += redirectedTo(location)
		other := "eu"
		if o.Region == "eu" {
			other = "us"
		}
		return wrongRegion(o, other, detail)
	}
	return &AccountError{
		Reason: code, Blocked: true,
		Detail: fmt.Sprintf("%s refuses the question for the account's region (%s)", base, code),
		Advice: "check site_id, api_key_file and endpoint",
	}
}

// redirectedTo names the host of a Location header: " to track-eu.customer.io".
func redirectedTo(location string) string {
	if to, err := url.Parse(location); err == nil && to.Host != "" {
		return " to " + clip(to.Host)
	}
	return ""
}

func wrongRegion(o *Options, right, detail string) *AccountError {
	return &AccountError{
		Reason: "wrong_region", Blocked: true, Detail: detail,
		Advice: fmt.Sprintf("the configuration says region = %q: set region = %q if that is where the account is", o.Region, right),
	}
}

func (o *Options) unreachable(reason, detail string, retryAfter time.Duration) *AccountError {
	page, key := "status.customer.io", "endpoint"
	if o.Relay != nil {
		page, key = "status.amplitude.com", "relay_endpoint"
	}
	advice := "nothing needs to be done, it is tried again; see " + page + ", and the network of this machine if it lasts"
	switch reason {
	case "dns", "no_route", "refused":
		advice = "check this machine's network, and " + key + " if one is set; it is tried again"
	case "tls":
		advice = "check what stands between this machine and " + o.service() + ", its clock and its CA certificates; it is tried again"
	case "http_429":
		advice = "nothing needs to be done, it goes on more slowly; lower requests_per_second if it lasts"
		if o.Relay != nil {
			advice = "nothing needs to be done, it goes on more slowly"
		}
	case "bad_answer":
		advice = "check " + key + ", and whether a proxy or a login page answers instead; it is tried again"
	}
	return &AccountError{Reason: reason, Detail: detail, Advice: advice, retryAfter: retryAfter}
}

// desk asks the region endpoint, one question at a time.
type desk struct {
	turn    chan struct{} // one token
	began   time.Time     // of the newest question; read and written with the token in hand
	account Account
	err     *AccountError
}

// ask gives the region endpoint's answer to a question that was begun after the
// given time: one that another goroutine has just asked will do. An ended ctx
// gives an unblocking error.
func (s *Sync) ask(ctx context.Context, after time.Time) (Account, *AccountError) {
	select {
	case <-s.desk.turn:
	case <-ctx.Done():
		return Account{}, s.o.unreachable("stopped", "stopped", 0)
	}
	defer func() { s.desk.turn <- struct{}{} }()
	if !s.desk.began.After(after) { // one of the same moment may be from before
		s.desk.began = s.o.Now()
		s.desk.account, s.desk.err = s.to.ask(ctx)
	}
	return s.desk.account, s.desk.err
}

// lastAsked is when the newest question was begun.
func (s *Sync) lastAsked(ctx context.Context) time.Time {
	select {
	case <-s.desk.turn:
	case <-ctx.Done():
		return time.Time{}
	}
	defer func() { s.desk.turn <- struct{}{} }()
	return s.desk.began
}

// watch keeps the door: it opens it when the region endpoint agrees, and while it
// is shut asks again: by backoff when there is no answer, at most once a minute
// when the answer was no, and whenever somebody asks for it. It returns when ctx
// ends.
func (s *Sync) watch(ctx context.Context) {
	failures := 0
	next := s.door.resume()
	for {
		q, ok := s.nextQuestion(ctx, next)
		if !ok {
			return
		}
		asked := s.o.Now()
		if s.door.blocked() { // a stop in the middle does not make the next generation ask again
			s.door.probeAt(asked.Add(probeEvery))
		}
		account, err := s.ask(ctx, asked)
		if ctx.Err() != nil {
			q.reply(ctx.Err())
			return
		}
		var unwritten error
		if err == nil {
			err, unwritten = s.enterWorkspace(account, q.adopt)
		}
		switch {
		case err == nil:
			failures = 0
			s.door.agree(account)
			q.reply(unwritten)
			if !s.waitShut(ctx) {
				return
			}
			// A first block is asked about at once: it may be Customer.io's mistake.
			// One that follows upon a question waits its minute.
			next = s.lastAsked(ctx).Add(probeEvery)
			continue
		case err.Blocked:
			failures = 0
			s.door.block(err, asked)
			next = s.o.Now().Add(probeEvery)
		default:
			wait := s.o.delay(failures, err.retryAfter)
			failures++
			s.door.noAnswer(err)
			if s.door.blocked() {
				wait = max(wait, probeEvery)
			}
			next = s.o.Now().Add(wait)
		}
		q.reply(err)
	}
}

// A question is somebody's wish that the region endpoint be asked now.
type question struct {
	adopt  bool         // and its workspace be taken, whatever is pending
	answer chan<- error // has room for one; nil = nobody waits for it
}

func (q question) reply(err error) {
	if q.answer != nil {
		q.answer <- err
	}
}

// nextQuestion waits for the time of the next question, or until somebody has one;
// false when ctx ended first.
func (s *Sync) nextQuestion(ctx context.Context, next time.Time) (question, bool) {
	if next.IsZero() {
		next = s.o.Now()
	}
	s.door.probeAt(next)
	timer := time.NewTimer(next.Sub(s.o.Now()))
	defer timer.Stop()
	select {
	case <-timer.C:
		return question{}, ctx.Err() == nil
	case q := <-s.questions:
		return q, true
	case <-ctx.Done():
		return question{}, false
	}
}

// waitShut waits while the door is open. Questions need no asking then. False when
// ctx ended first.
func (s *Sync) waitShut(ctx context.Context) bool {
	shut := s.door.untilShut()
	for {
		select {
		case <-shut:
			return ctx.Err() == nil
		case q := <-s.questions:
			q.reply(nil)
		case <-ctx.Done():
			return false
		}
	}
}
