package delivery

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// maxRequestBytes is Customer.io's limit for POST /api/v2/batch
// (docs.customer.io/integrations/api/track), of the whole body, the wrapper included.
// Whether its "kB" means 1000 or 1024 is not published; 1000 is right in both cases.
const maxRequestBytes = 500_000

// The wrapper around the operations of a batch.
const (
	batchOpen  = `{"batch":[`
	batchClose = `]}`
)

// maxAnswerBytes bounds what is read of an answer. The longest useful one names
// each of some thousand operations with a sentence.
const maxAnswerBytes = 4 << 20

// client speaks HTTP with Customer.io's Track API and judges nothing: what came
// back is an answer, and read (verdict.go) says what it means. Safe for concurrent use.
type client struct {
	base    string // https://track.customer.io, without a slash at the end
	shown   string // base as it may be shown: without a password
	site    string
	key     string
	relay   []string // the API keys of a relay, which has no site and no key
	agent   string
	timeout time.Duration // of one exchange, from dialing to the last byte of the answer
	now     func() time.Time
	http    *http.Client
}

// answer is one exchange as the client saw it: either err, or the rest.
type answer struct {
	status     int
	body       []byte
	retryAfter string // the header as it came
	location   string // the header as it came, of a redirect
	err        error  // nothing usable came back; the request may or may not have been processed
	began      time.Time
	took       time.Duration
}

// BaseURL is Customer.io's own address of the Track API in a region.
func BaseURL(region string) string {
	if region == "eu" {
		return "https://track-eu.customer.io"
	}
	return "https://track.customer.io"
}

func newClient(o Options) *client {
	base := strings.TrimRight(o.Endpoint, "/")
	if base == "" {
		switch {
		case o.Relay != nil && o.Region == "eu":
			base = "https://api.eu.amplitude.com"
		case o.Relay != nil:
			base = "https://api2.amplitude.com"
		default:
			base = BaseURL(o.Region)
		}
	}
	shown := base
	if u, err := url.Parse(base); err == nil {
		shown = u.Redacted()
	}
	transport := o.Transport
	if transport == nil {
		transport = newTransport(o.Concurrency)
	}
	var relay []string
	if o.Relay != nil {
		relay = o.Relay.Keys
	}
	return &client{
		relay: relay, base: base, shown: shown, site: o.SiteID, key: o.APIKey, agent: o.UserAgent, timeout: o.Timeout, now: o.Now,
		http: &http.Client{
			Transport: transport,
			// A redirect means the wrong region. Following one would send a person's
			// data through the other region, and turn a POST into a GET without a body.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

func newTransport(concurrency int) *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          concurrency + 1,
		MaxIdleConnsPerHost:   concurrency + 1,
		IdleConnTimeout:       90 * time.Second,
		ExpectContinueTimeout: time.Second,
		// A connection that a firewall forgot answers nothing. Without pings all
		// requests that share it would run into their timeout, one after the other.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}
}

// sameAccount tells whether both ask the same address with the same credentials.
func (c *client) sameAccount(other *client) bool {
	return c.base == other.base && c.site == other.site && c.key == other.key && slices.Equal(c.relay, other.relay)
}

// close lets go of the idle connections.
func (c *client) close() { c.http.CloseIdleConnections() }

// send sends operations in their order, as one request. The body is put together from
// their bytes as they are; nothing is parsed or encoded again.
func (c *client) send(ctx context.Context, operations []*operation) answer {
	path, body := request(operations)
	return c.do(withOrigins(ctx, operations), http.MethodPost, path, body)
}

// request is that of one operation that goes alone, or of a batch.
func request(operations []*operation) (path string, body content) {
	if len(operations) == 1 && operations[0].path != "" {
		return operations[0].path, content{operations[0].body}
	}
	return batchPath, content{[]byte(batchOpen), elements(operations), []byte(batchClose)}
}

const batchPath = "/api/v2/batch"

// elements are those of a batch: where they stand already, in the room of their batch, or else a copy: when it is divided,
// when something between them is not sent, or is from elsewhere, or when the room has grown since.
func elements(operations []*operation) []byte {
	size := len(operations) - 1
	for _, o := range operations {
		size += len(o.body)
	}
	if size < 0 {
		return nil
	}
	if room := operations[0].room(); room != nil {
		first := room.Place(operations[0].body)
		next := first
		for _, o := range operations {
			if next < 0 || room.Place(o.body) != next {
				next = -1
				break
			}
			next += len(o.body) + 1
		}
		if next >= 0 {
			return room.Run(first, size)
		}
	}
	body := make([]byte, 0, size)
	for i, o := range operations {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, o.body...)
	}
	return body
}

// region asks for the account's region with the account's credentials.
func (c *client) region(ctx context.Context) answer {
	return c.do(ctx, http.MethodGet, "/api/v1/accounts/region", content{})
}

func (c *client) do(ctx context.Context, method, path string, sent content) (a answer) {
	a.began = c.now()
	defer func() { a.took = c.now().Sub(a.began) }()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, nil)
	if err != nil {
		a.err = fmt.Errorf("make request: %w", err)
		return a
	}
	if size := sent.len(); size > 0 {
		var bodies []*body
		request.ContentLength = int64(size)
		request.GetBody = func() (io.ReadCloser, error) {
			b := &body{parts: sent}
			bodies = append(bodies, b)
			return b, nil
		}
		request.Body, _ = request.GetBody()
		defer func() {
			for _, b := range bodies { // the transport may still be sending, when it was answered before the end
				b.Close()
			}
		}()
	}
	if c.relay == nil {
		request.SetBasicAuth(c.site, c.key)
	}
	if request.Body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	request.Header.Set("User-Agent", c.agent)
	response, err := c.http.Do(request)
	if err != nil {
		a.err = fmt.Errorf("send request: %w", err)
		return a
	}
	defer response.Body.Close()
	a.body, err = io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes+1))
	if err != nil {
		a.err = fmt.Errorf("read answer: %w", err)
		return a
	}
	a.status = response.StatusCode
	a.retryAfter = response.Header.Get("Retry-After")
	a.location = response.Header.Get("Location")
	return a
}

// networkReason names why nothing usable came back, in one word for statistics.
func networkReason(err error) string {
	var (
		dns         *net.DNSError
		certificate *tls.CertificateVerificationError
		plain       tls.RecordHeaderError // no TLS at all
		network     net.Error
	)
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.As(err, &dns):
		return "dns"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.As(err, &certificate), errors.As(err, &plain):
		return "tls"
	case errors.As(err, &network) && network.Timeout():
		return "timeout"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "no_route"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return "connection_cut"
	}
	return "network"
}
