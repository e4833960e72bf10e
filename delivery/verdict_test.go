package delivery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRead(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	const html = "<html><body>Please log in</body></html>"
	tests := []struct {
		name       string
		n          int
		status     int
		body       string
		retryAfter string
		err        error
		want       reading
	}{
		{name: "accepted", n: 3, status: 200, body: "{}\n", want: reading{verdict: delivered}},
		{name: "accepted, unknown members", n: 3, status: 200, body: `{"ok":true,"took":[1]}`, want: reading{verdict: delivered}},
		{name: "another 2xx in Customer.io's shape", n: 1, status: 202, body: "{}", want: reading{verdict: delivered}},
		{name: "captive portal", n: 3, status: 200, body: html, want: reading{verdict: retry, reason: "bad_answer"}},
		{name: "empty 200", n: 3, status: 200, body: "", want: reading{verdict: retry, reason: "bad_answer"}},
		{name: "half an object", n: 3, status: 200, body: `{"errors":[`, want: reading{verdict: retry, reason: "bad_answer"}},
		{name: "two objects", n: 3, status: 200, body: `{}{}`, want: reading{verdict: retry, reason: "bad_answer"}},
		{name: "array", n: 3, status: 200, body: `[]`, want: reading{verdict: retry, reason: "bad_answer"}},
		{name: "string", n: 3, status: 200, body: `"ok"`, want: reading{verdict: retry, reason: "bad_answer"}},
		{name: "no content", n: 3, status: 204, body: "", want: reading{verdict: retry, reason: "bad_answer"}},
		{name: "endless answer", n: 3, status: 200, body: `{"x":"` + strings.Repeat("x", maxAnswerBytes) + `"}`, want: reading{verdict: retry, reason: "bad_answer"}},

		{name: "one of three refused", n: 3, status: 207, body: `{"errors":[{"batch_index":1,"reason":"invalid","field":"attributes.plan","message":"too long"}]}`,
			want: reading{verdict: delivered, refusals: map[int][]refusal{1: {{207, "invalid", "attributes.plan", "too long"}}}}},
		{name: "one operation with two complaints", n: 3, status: 207, body: `{"errors":[{"batch_index":2,"reason":"invalid","field":"a"},{"batch_index":2,"reason":"invalid","field":"b"}]}`,
			want: reading{verdict: delivered, refusals: map[int][]refusal{2: {{207, "invalid", "a", ""}, {207, "invalid", "b", ""}}}}},
		{name: "members missing or of other types", n: 2, status: 207, body: `{"errors":[{"batch_index":0},{"batch_index":1,"reason":7,"field":null,"message":{"a":1}}]}`,
			want: reading{verdict: delivered, refusals: map[int][]refusal{0: {{207, "refused", "", ""}}, 1: {{207, "7", "", `{"a":1}`}}}}},
		{name: "a sentence as the reason", n: 1, status: 207, body: `{"errors":[{"batch_index":0,"reason":"That is, frankly, not possible!"}]}`,
			want: reading{verdict: delivered, refusals: map[int][]refusal{0: {{207, "refused", "", ""}}}}},
		{name: "refusals in a 200", n: 2, status: 200, body: `{"errors":[{"batch_index":0,"reason":"invalid"}]}`,
			want: reading{verdict: delivered, refusals: map[int][]refusal{0: {{200, "invalid", "", ""}}}}},
		{name: "207 that lists nothing", n: 2, status: 207, body: `{"errors":[]}`, want: reading{verdict: delivered}},
		{name: "207 without a list", n: 2, status: 207, body: `{}`, want: reading{verdict: retry, reason: "bad_answer"}},
		{name: "207 with null for a list", n: 2, status: 207, body: `{"errors":null}`, want: reading{verdict: retry, reason: "bad_answer"}},
		{name: "207 with a text for a list", n: 2, status: 207, body: `{"errors":"many"}`, want: reading{verdict: retry, reason: "bad_answer"}},
		{name: "index missing", n: 2, status: 207, body: `{"errors":[{"reason":"invalid"}]}`, want: reading{verdict: split, reason: "unnamed_refusal"}},
		{name: "index beyond the end", n: 2, status: 207, body: `{"errors":[{"batch_index":0},{"batch_index":2}]}`, want: reading{verdict: split, reason: "unnamed_refusal"}},
		{name: "index below zero", n: 2, status: 207, body: `{"errors":[{"batch_index":-1}]}`, want: reading{verdict: split, reason: "unnamed_refusal"}},
		{name: "index a text", n: 2, status: 207, body: `{"errors":[{"batch_index":"1"}]}`, want: reading{verdict: split, reason: "unnamed_refusal"}},
		{name: "index a fraction", n: 2, status: 207, body: `{"errors":[{"batch_index":1.5}]}`, want: reading{verdict: split, reason: "unnamed_refusal"}},
		{name: "entry no object", n: 2, status: 207, body: `{"errors":[null]}`, want: reading{verdict: split, reason: "unnamed_refusal"}},
		{name: "index missing, only one it can mean", n: 1, status: 207, body: `{"errors":[{"reason":"invalid","batch_index":9}]}`,
			want: reading{verdict: delivered, refusals: map[int][]refusal{0: {{207, "invalid", "", ""}}}}},

		{name: "400 for several", n: 2, status: 400, body: `{"errors":[{"reason":"invalid"}]}`, want: reading{verdict: split, reason: "http_400"}},
		{name: "400 for one", n: 1, status: 400, body: `{"errors":[{"reason":"required","field":"name","message":"name is required"}]}`,
			want: reading{verdict: refused, reason: "http_400", refusal: refusal{400, "http_400", "name", "name is required"}}},
		{name: "400 for one, older shape", n: 1, status: 400, body: `{"meta":{"error":"id is not a string"}}`,
			want: reading{verdict: refused, reason: "http_400", refusal: refusal{400, "http_400", "", "id is not a string"}}},
		{name: "400 for one, older list", n: 1, status: 400, body: `{"meta":{"errors":["a","b"]}}`,
			want: reading{verdict: refused, reason: "http_400", refusal: refusal{400, "http_400", "", "a"}}},
		{name: "400 for one, unknown shape", n: 1, status: 400, body: `{"meta":7,"errors":{"a":1}}`,
			want: reading{verdict: refused, reason: "http_400", refusal: refusal{400, "http_400", "", ""}}},
		{name: "400 of a proxy", n: 1, status: 400, body: html, want: reading{verdict: retry, reason: "http_400"}},
		{name: "400 of a proxy for several", n: 2, status: 400, body: "", want: reading{verdict: retry, reason: "http_400"}},
		{name: "422", n: 1, status: 422, body: `{}`, want: reading{verdict: refused, reason: "http_422", refusal: refusal{422, "http_422", "", ""}}},
		{name: "413 for several", n: 2, status: 413, body: html, want: reading{verdict: split, reason: "http_413"}},
		{name: "413 for one", n: 1, status: 413, body: html, want: reading{verdict: refused, reason: "http_413", refusal: refusal{413, "operation_too_large", "", ""}}},

		{name: "wrong keys", n: 2, status: 401, body: `{}`, want: reading{verdict: blocked, reason: "http_401"}},
		{name: "forbidden", n: 2, status: 403, body: html, want: reading{verdict: forbidden, reason: "http_403", refusal: refusal{403, "http_403", "", ""}}},
		{name: "wrong region", n: 2, status: 301, body: `{"errors":[{"detail":"wrong datacenter","status":"301"}]}`, want: reading{verdict: blocked, reason: "http_301"}},
		{name: "redirect", n: 2, status: 307, want: reading{verdict: blocked, reason: "http_307"}},
		{name: "wrong endpoint", n: 1, status: 404, body: `{}`, want: reading{verdict: blocked, reason: "http_404"}},
		{name: "wrong endpoint, method", n: 1, status: 405, body: html, want: reading{verdict: blocked, reason: "http_405"}},

		{name: "408", n: 1, status: 408, body: `{}`, want: reading{verdict: retry, reason: "http_408"}},
		{name: "429 with seconds", n: 1, status: 429, body: `{}`, retryAfter: "7", want: reading{verdict: retry, reason: "http_429", wait: 7 * time.Second}},
		{name: "503 with a date", n: 1, status: 503, retryAfter: now.Add(90 * time.Second).Format("Mon, 02 Jan 2006 15:04:05 GMT"),
			want: reading{verdict: retry, reason: "http_503", wait: 90 * time.Second}},
		{name: "503 with a date gone by", n: 1, status: 503, retryAfter: now.Add(-time.Hour).Format("Mon, 02 Jan 2006 15:04:05 GMT"), want: reading{verdict: retry, reason: "http_503"}},
		{name: "503 in a year", n: 1, status: 503, retryAfter: "31536000", want: reading{verdict: retry, reason: "http_503", wait: time.Hour}},
		{name: "503 in an eternity", n: 1, status: 503, retryAfter: "1e300", want: reading{verdict: retry, reason: "http_503", wait: time.Hour}},
		{name: "503 with nonsense", n: 1, status: 503, retryAfter: "soon", want: reading{verdict: retry, reason: "http_503"}},
		{name: "503 with NaN", n: 1, status: 503, retryAfter: "NaN", want: reading{verdict: retry, reason: "http_503"}},
		{name: "500", n: 1, status: 500, body: `{"errors":[{}]}`, want: reading{verdict: retry, reason: "http_500"}},
		{name: "502", n: 1, status: 502, body: html, want: reading{verdict: retry, reason: "http_502"}},
		{name: "522", n: 1, status: 522, want: reading{verdict: retry, reason: "http_522"}},
		{name: "524", n: 1, status: 524, want: reading{verdict: retry, reason: "http_524"}},
		{name: "599", n: 1, status: 599, want: reading{verdict: retry, reason: "http_599"}},
		{name: "status out of this world", n: 1, status: 999, body: "{}", want: reading{verdict: retry, reason: "http_999"}},

		{name: "timeout", n: 1, err: context.DeadlineExceeded, want: reading{verdict: retry, reason: "timeout"}},
		{name: "refused", n: 1, err: &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, want: reading{verdict: retry, reason: "refused"}},
		{name: "no such host", n: 1, err: &net.DNSError{Err: "no such host", IsNotFound: true}, want: reading{verdict: retry, reason: "dns"}},
		{name: "reset", n: 1, err: &net.OpError{Op: "read", Err: syscall.ECONNRESET}, want: reading{verdict: retry, reason: "connection_cut"}},
		{name: "cut in the answer", n: 1, err: io.ErrUnexpectedEOF, want: reading{verdict: retry, reason: "connection_cut"}},
		{name: "unknown certificate", n: 1, err: &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, want: reading{verdict: retry, reason: "tls"}},
		{name: "no TLS", n: 1, err: tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, want: reading{verdict: retry, reason: "tls"}},
		{name: "no network", n: 1, err: &net.OpError{Op: "dial", Err: syscall.ENETUNREACH}, want: reading{verdict: retry, reason: "no_route"}},
		{name: "anything else", n: 1, err: errors.New("malformed HTTP response"), want: reading{verdict: retry, reason: "network"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := answer{status: test.status, body: []byte(test.body), retryAfter: test.retryAfter}
			if test.err != nil {
				a = answer{err: fmt.Errorf("send request: %w", test.err)}
			}
			got := read(test.n, a, now)
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("read(%d operations, %d %.80q, %v)\n%s", test.n, test.status, test.body, test.err,
					cmp.Diff(test.want, got, cmp.AllowUnexported(reading{}, refusal{})))
			}
		})
	}
}

func TestResults(t *testing.T) {
	got := string(results(
		&operation{action: "identify", verdict: refused, refused: []refusal{
			{207, "invalid", "attributes.plan", "<too long>"}, {207, "invalid", "attributes.note", ""}}},
		&operation{action: "event", verdict: delivered},
		&operation{action: "event", verdict: refused, refused: []refusal{{Reason: "operation_too_large", Message: "32001 bytes"}}},
	))
	want := `[{"action":"identify","status":207,"reason":"invalid","field":"attributes.plan","message":"\u003ctoo long\u003e"},` +
		`{"action":"identify","status":207,"reason":"invalid","field":"attributes.note"},` +
		`{"action":"event","status":200},` +
		`{"action":"event","reason":"operation_too_large","message":"32001 bytes"}]`
	if got != want {
		t.Errorf("results\n got %s\nwant %s", got, want)
	}
}

func TestForeignText(t *testing.T) {
	long := strings.Repeat("é", 400)
	tests := []struct{ name, got, want string }{
		{"short", clip("plan"), "plan"},
		{"cut between runes", clip("x" + long), "x" + strings.Repeat("é", 249) + "…"},
		{"not UTF-8", clip("a\xffb"), "a\uFFFDb"},
		{"word", word("Too Long", "other"), "too_long"},
		{"sentence", word("it's wrong", "other"), "other"},
		{"nothing", word("", "other"), "other"},
		{"event name", clipExample(long), strings.Repeat("é", 50)},
		{"options", fmt.Sprintf("%v %+v", Options{Name: "production", APIKey: "key"}, Options{APIKey: "key"}), "delivery of production delivery of "},
	}
	for _, test := range tests {
		if test.got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, test.got, test.want)
		}
	}
}

// Whatever comes back, an operation is either named or undecided, and an answer
// to one operation never asks for halves.
func FuzzRead(f *testing.F) {
	f.Add(2, 207, []byte(`{"errors":[{"batch_index":1,"reason":"invalid"}]}`), "3")
	f.Add(1, 400, []byte(`{"meta":{"errors":[{}]}}`), "")
	f.Fuzz(func(t *testing.T, n, status int, body []byte, retryAfter string) {
		n = 1 + (n&0xff)%500
		r := read(n, answer{status: status, body: body, retryAfter: retryAfter}, time.Unix(1700000000, 0))
		if n == 1 && r.verdict == split {
			t.Errorf("one operation is to be halved: %d %q", status, body)
		}
		if r.verdict == refused && n > 1 {
			t.Errorf("%d operations refused at once: %d %q", n, status, body)
		}
		if r.verdict == unsent || r.wait < 0 || r.wait > maxRetryAfter {
			t.Errorf("verdict %v, wait %v", r.verdict, r.wait)
		}
		for i, why := range r.refusals {
			if i < 0 || i >= n || len(why) == 0 || why[0].Reason == "" {
				t.Errorf("refusal %d of %d: %+v", i, n, why)
			}
		}
	})
}

func TestDelay(t *testing.T) {
	o := Options{RetryInitial: 500 * time.Millisecond, RetryMax: 5 * time.Minute}
	tests := []struct {
		attempt     int
		retryAfter  time.Duration
		least, most time.Duration
	}{
		{0, 0, 250 * time.Millisecond, 750 * time.Millisecond},
		{1, 0, 500 * time.Millisecond, 1500 * time.Millisecond},
		{4, 0, 4 * time.Second, 12 * time.Second},
		{20, 0, 100 * time.Second, 300 * time.Second},
		{1 << 40, 0, 100 * time.Second, 300 * time.Second}, // no give-up, no overflow
		{0, 30 * time.Second, 30 * time.Second, 30 * time.Second},
		{20, 30 * time.Second, 100 * time.Second, 300 * time.Second},
	}
	for _, test := range tests {
		seen := map[time.Duration]bool{}
		for range 200 {
			got := o.delay(test.attempt, test.retryAfter)
			if got < test.least || got > test.most {
				t.Errorf("delay(%d, %v) = %v, want %v to %v", test.attempt, test.retryAfter, got, test.least, test.most)
			}
			seen[got] = true
		}
		if test.least != test.most && len(seen) < 100 {
			t.Errorf("delay(%d, %v): %d different values of 200: no jitter", test.attempt, test.retryAfter, len(seen))
		}
	}
}
