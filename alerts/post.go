package alerts

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/cenkalti/backoff/v4"

	"ampcio/logbook"
)

const (
	postWithin = 10 * time.Second // one post, from the connection to the end of the answer
	stopGrace  = 3 * time.Second  // that a post on its way has when ampcio stops
	firstWait  = 5 * time.Second  // before it is tried again
	longestTry = 15 * time.Minute // between two tries, but for what Retry-After asks
	longestAsk = 6 * time.Hour    // that a Retry-After is believed for
	mostBody   = 300              // bytes of an answer that are shown
	// triesOfBad is how often a message is posted that the other side says is a bad one,
	// before the next one has its turn.
	triesOfBad = 5
)

// postState is what the tries of the first message have come to. Guarded by mu.
type postState struct {
	Tries int
	Next  time.Time
	Why   string
	bad   int // answers that say that the message itself is at fault
}

// Answer is what came of one post, in words that hold neither the address nor a secret.
type Answer struct {
	To     string        `json:"to"` // the host
	Format string        `json:"format"`
	ID     string        `json:"id"`
	Status int           `json:"status"` // 0 = there was no answer
	Words  string        `json:"answer"` // the status line, or why there was none
	Body   string        `json:"body"`   // its beginning
	Took   time.Duration `json:"-"`
	Advice string        `json:"advice"` // what to do; "" when it was taken
	OK     bool          `json:"ok"`

	retryAfter time.Duration
}

// PostTest posts one test message now, past all that waits, and says what came of it.
func PostTest(ctx context.Context, o Options) Answer {
	o = o.withDefaults()
	now := o.Now().UTC()
	m := Message{ID: newID(now), At: now, Event: Test, Kind: "test", Level: Warning, Firing: []Ref{},
		Troubles: []Told{{Level: Warning, Since: now, What: "Somebody ran ampcio alerts test. Nothing is wrong, and there is nothing to do."}}}
	return post(ctx, &o, &m)
}

var noRedirects = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// post posts a message once.
func post(ctx context.Context, o *Options, m *Message) Answer {
	a := Answer{ID: m.ID, Format: formatOf(o.Format, o.URL)}
	ctx, cancel := context.WithTimeout(ctx, postWithin)
	defer cancel()
	began := o.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.URL, bytes.NewReader(m.body(o, began)))
	if err != nil {
		a.Words, a.Advice = "the address cannot be used", "see alerts.url"
		return a
	}
	a.To = req.URL.Host
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "ampcio/"+o.Version)
	req.Header.Set("Idempotency-Key", m.ID)
	transport := o.Transport
	if transport == nil {
		// A connection of its own each time: there is one now and then, and one that was left
		// open for hours is more often broken than not.
		t := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSHandshakeTimeout: postWithin}
		defer t.CloseIdleConnections()
		transport = t
	}
	client := &http.Client{Transport: transport, CheckRedirect: noRedirects}
	resp, err := client.Do(req)
	if err != nil {
		a.Took = o.Now().Sub(began)
		a.Words, a.Advice = noAnswer(err)
		return a
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what does not come is not shown
	a.Took = o.Now().Sub(began)
	a.Status, a.Words = resp.StatusCode, strings.TrimSpace(fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode)))
	a.OK = resp.StatusCode/100 == 2
	a.Body = shown(body, req.URL)
	a.retryAfter = retryAfter(resp.Header.Get("Retry-After"), o.Now())
	if !a.OK {
		a.Advice = advice(resp.StatusCode)
	}
	return a
}

// noAnswer puts an error of the network into words, without the address that is in it.
func noAnswer(err error) (words, advice string) {
	if e, is := errors.AsType[*url.Error](err); is {
		err = e.Err
	}
	var timeout net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Sprintf("no answer within %d s", postWithin/time.Second), "is the other side up, and does a firewall let this machine out?"
	case errors.Is(err, context.Canceled):
		return "ended before it was answered", "do it again"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the connection was refused", "is the other side up, and is the port in alerts.url right?"
	}
	if e, is := errors.AsType[*net.DNSError](err); is {
		return "the name is not known: " + e.Err, "is the host in alerts.url right, and does name resolution work on this machine?"
	}
	if e, is := errors.AsType[*net.OpError](err); is {
		return "no connection: " + e.Err.Error(), "is the host in alerts.url right, and does a firewall let this machine out?"
	}
	var record tls.RecordHeaderError
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return "no TLS is spoken there", "does alerts.url begin with https:// where it should be http://?"
	case errors.As(err, &unknown):
		return "the certificate of the other side is of an authority that this machine does not know", "is its certificate right? (Debian: ca-certificates)"
	case errors.As(err, &host):
		return "the certificate of the other side is another host's", "is the host in alerts.url right?"
	case errors.As(err, &invalid):
		return "the certificate of the other side is not valid", "has it expired, or is the clock of this machine wrong?"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return "the connection was cut before there was an answer", "is the other side up, and does alerts.url begin with the right one of http:// and https://?"
	}
	return "there was no answer that is HTTP", "is it a web server that listens there?" // the error's own words may hold what it has sent
}

func advice(status int) string {
	switch {
	case status/100 == 3:
		return "it redirects to another address, which is not followed: write that one into alerts.url"
	case status == 401, status == 403:
		return "it does not let us in: is alerts.url whole, and is the webhook still allowed to post?"
	case status == 404, status == 410:
		return "there is nobody at that address: is alerts.url whole, and does the webhook still exist?"
	case status == 405:
		return "it takes no POST: is alerts.url the address of a webhook?"
	case status == 429:
		return "nothing: it asks for patience, and is asked again later"
	case status/100 == 4:
		return "it does not understand the message: does alerts.format fit the receiver?"
	}
	return "the other side has a trouble of its own; it is asked again"
}

// shown is the beginning of an answer's body, in one line, without what is in the
// address: some servers repeat it.
func shown(body []byte, address *url.URL) string {
	text := strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(body), ""))
	text = strings.Join(strings.Fields(text), " ")
	secrets := []string{address.Path, address.EscapedPath(), address.RawQuery, address.Fragment}
	if address.User != nil {
		password, _ := address.User.Password()
		secrets = append(secrets, address.User.Username(), password)
	}
	for _, list := range address.Query() {
		secrets = append(secrets, list...)
	}
	for part := range strings.SplitSeq(address.Path, "/") {
		if len(part) >= 8 { // shorter ones are words, such as services and hooks
			secrets = append(secrets, part)
		}
	}
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) }) // a part of one must not hide it
	for _, s := range secrets {
		if len(s) > 1 {
			text = strings.ReplaceAll(text, s, "[redacted]")
		}
	}
	if len(text) > mostBody {
		text = strings.ToValidUTF8(text[:mostBody], "") + "…"
	}
	return text
}

// retryAfter reads both forms of the header; 0 = it asks for nothing.
func retryAfter(header string, now time.Time) time.Duration {
	if s, err := strconv.ParseUint(header, 10, 31); err == nil {
		return min(time.Duration(s)*time.Second, longestAsk)
	}
	if t, err := http.ParseTime(header); err == nil {
		return max(min(t.Sub(now), longestAsk), 0)
	}
	return 0
}

var notPosted = logbook.Line{Level: slog.LevelWarn, Message: "an alert could not be posted; it is tried again", Over: "alerts are posted again"}

// keepPosting posts what waits, in order, until ctx ends.
func (d *Desk) keepPosting(ctx context.Context) {
	for {
		wait := d.untilNext()
		var due <-chan time.Time
		var timer *time.Timer
		if wait > 0 {
			timer = time.NewTimer(wait)
			due = timer.C
		}
		if wait != 0 {
			select {
			case <-due:
			case <-d.kick:
			case <-ctx.Done():
			}
			if timer != nil {
				timer.Stop()
			}
			if ctx.Err() != nil {
				return
			}
			continue
		}
		d.kept(ctx)
		if ctx.Err() != nil {
			return
		}
		d.postFirst(ctx)
	}
}

// untilNext is how long to wait before the first message is posted; below 0 = until
// there is one.
func (d *Desk) untilNext() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.state.Waiting) == 0 || d.o.URL == "" {
		return -1
	}
	return max(d.post.Next.Sub(d.o.Now()), 0)
}

// postFirst posts the message that waits longest, and enters what came of it.
func (d *Desk) postFirst(ctx context.Context) {
	d.mu.Lock()
	if len(d.state.Waiting) == 0 {
		d.mu.Unlock()
		return
	}
	m, o := d.state.Waiting[0], d.o
	d.mu.Unlock()

	posting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	grace := context.AfterFunc(ctx, func() { time.AfterFunc(stopGrace, cancel) })
	a := post(posting, &o, &m)
	grace()
	cancel()

	d.mu.Lock()
	defer d.mu.Unlock()
	if o.URL != d.o.URL && (!a.OK || d.o.URL == "") {
		return // the new address has its own chance; without one nothing waits
	}
	now := d.o.Now()
	switch {
	case a.OK:
		d.leave()
		posted := now.UTC()
		d.state.Posted = &posted
		d.o.Book.Over(notPosted, "")
		d.o.Log.Info("an alert is posted", "event", m.Event, "kind", m.Kind, "of", m.names(), "id", m.ID)
		return
	case a.Status == 400 || a.Status == 413 || a.Status == 422:
		d.post.bad++
	}
	if d.post.bad >= triesOfBad {
		d.o.Log.Warn("an alert was refused again and again and is given up", "kind", m.Kind, "of", m.names(), "id", m.ID, "answer", a.Words, "do", a.Advice)
		if len(d.state.Waiting) > 1 {
			collapse(&d.state.Waiting[0], &d.state.Waiting[1])
		} else {
			d.state.Dropped = d.state.Waiting[0].dropped(nil)
		}
		d.leave()
		return
	}
	d.post.Tries, d.post.Next = d.post.Tries+1, now.Add(delay(d.post.Tries, a.retryAfter))
	d.post.Why = a.Words
	d.o.Book.Note(notPosted, "", 1, "answer", a.Words, "to", a.To, "do", a.Advice, "waiting", len(d.state.Waiting), "next_try", d.post.Next.UTC().Truncate(time.Second))
}

// leave takes the first message off, with mu held.
func (d *Desk) leave() {
	d.state.Waiting = slices.Delete(d.state.Waiting, 0, 1)
	d.post = postState{}
	d.changed()
}

// delay is how long to wait after so many tries before this one.
func delay(tries int, retryAfter time.Duration) time.Duration {
	step := firstWait
	for i := 0; i < tries && step < longestTry*2/3; i++ {
		step *= 2
	}
	b := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(min(step, longestTry*2/3)), // jitter adds up to half
		backoff.WithRandomizationFactor(0.5),
		backoff.WithMaxElapsedTime(0), // its default gives up after 15 minutes
	)
	return max(b.NextBackOff(), retryAfter)
}
