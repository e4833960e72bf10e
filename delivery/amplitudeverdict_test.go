package delivery

import (
	"fmt"
	"net"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestReadAmplitude(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	const html = "<html><head><title>400 Bad Request</title></head></html>"
	const wait = 30 * time.Second
	why := func(status int, reason, field, message string) []refusal {
		return []refusal{{status, reason, field, message}}
	}
	tests := []struct {
		name       string
		n          int
		status     int
		body       string
		retryAfter string
		err        error
		want       reading
	}{
		{name: "taken", n: 3, status: 200, body: `{"code":200,"server_upload_time":1396381378123,"payload_size_bytes":50,"events_ingested":3}`, want: reading{verdict: delivered}},
		{name: "a 200 without code", n: 3, status: 200, body: `{"events_ingested":3}`, want: reading{verdict: retry, reason: "bad_answer"}},
		{name: "a code of another type", n: 3, status: 200, body: `{"code":"200"}`, want: reading{verdict: retry, reason: "bad_answer"}},
		{name: "plain text", n: 3, status: 200, body: `success`, want: reading{verdict: retry, reason: "bad_answer"}},
		{name: "no content", n: 3, status: 204, want: reading{verdict: retry, reason: "bad_answer"}},
		{name: "a 200 whose code is another", n: 3, status: 200, body: `{"code":500}`, want: reading{verdict: retry, reason: "http_500"}},
		{name: "endless", n: 3, status: 200, body: `{"code":200,"x":"` + strings.Repeat("x", maxAnswerBytes) + `"}`, want: reading{verdict: retry, reason: "bad_answer"}},

		{name: "invalid fields", n: 5, status: 400, body: `{"code":400,"error":"Invalid field values on some events","events_with_invalid_fields":{"time":[3,4],"price":[3]}}`,
			want: reading{verdict: sifted, reason: "http_400", wait: wait, refusals: map[int][]refusal{
				3: {{400, "invalid_field", "price", "Invalid field values on some events"}, {400, "invalid_field", "time", "Invalid field values on some events"}},
				4: why(400, "invalid_field", "time", "Invalid field values on some events")}}},
		{name: "missing fields", n: 5, status: 400, body: `{"code":400,"error":"Request missing required field","events_with_missing_fields":{"event_type":[0]}}`,
			want: reading{verdict: sifted, reason: "http_400", wait: wait, refusals: map[int][]refusal{0: why(400, "missing_field", "event_type", "Request missing required field")}}},
		{name: "id lengths", n: 2, status: 400, body: `{"code":400,"error":"Invalid id length for user_id or device_id","events_with_invalid_id_lengths":{"device_id":[1]}}`,
			want: reading{verdict: sifted, reason: "http_400", wait: wait, refusals: map[int][]refusal{1: why(400, "invalid_id_length", "device_id", "Invalid id length for user_id or device_id")}}},
		{name: "silenced, and throttled beside", n: 7, status: 400,
			body: `{"code":400,"error":"Events silenced for device_id","eps_threshold":100,"exceeded_daily_quota_devices":{},"silenced_devices":["device-2"],"silenced_events":[5,6],"throttled_devices":{"device-3":0},"throttled_events":[3,4,6]}`,
			want: reading{verdict: sifted, reason: "throttled", wait: wait, throttled: []int{3, 4}, refusals: map[int][]refusal{
				2: why(400, "silenced", "device_id", "Events silenced for device_id"),
				5: why(400, "silenced", "", "Events silenced for device_id"), 6: why(400, "silenced", "", "Events silenced for device_id")}}},
		{name: "throttled", n: 8, status: 429, retryAfter: "60",
			body: `{"code":429,"error":"Too many requests for some devices and users","eps_threshold":30,"throttled_devices":{"x":31},"throttled_users":{"y":32},"throttled_events":[3,4,7]}`,
			want: reading{verdict: sifted, reason: "throttled", wait: time.Minute, throttled: []int{3, 4, 7}, refusals: map[int][]refusal{}}},
		{name: "beyond the daily quota", n: 3, status: 429,
			body: `{"code":429,"error":"Too many","throttled_events":[0,1,2],"exceeded_daily_quota_users":{"user-0":500200},"exceeded_daily_quota_devices":{"device-2":500001}}`,
			want: reading{verdict: sifted, reason: "throttled", wait: wait, throttled: []int{1}, refusals: map[int][]refusal{
				0: why(429, "exceeded_daily_quota", "user_id", "Too many"), 2: why(429, "exceeded_daily_quota", "device_id", "Too many")}}},
		{name: "too many, of nobody", n: 3, status: 429, body: `{"code":429,"error":"Too many requests"}`, want: reading{verdict: retry, reason: "http_429", wait: wait}},
		{name: "too many, of somebody else", n: 3, status: 429, body: `{"code":429,"throttled_events":[3,-1]}`, want: reading{verdict: retry, reason: "http_429", wait: wait}},
		{name: "a 429 in HTML", n: 3, status: 429, body: html, retryAfter: "7", want: reading{verdict: retry, reason: "http_429", wait: 7 * time.Second}},

		{name: "the key", n: 3, status: 400, body: `{"code":400,"error":"Invalid API key: 0123456789abcdef0123456789abcdef"}`, want: reading{verdict: blocked, reason: "invalid_api_key"}},
		{name: "a request field", n: 3, status: 400, body: `{"code":400,"error":"Request missing required field","missing_field":"events"}`, want: reading{verdict: split, reason: "http_400"}},
		{name: "a request field, with one event", n: 1, status: 400, body: `{"code":400,"error":"Request missing required field","missing_field":"events"}`,
			want: reading{verdict: refused, reason: "http_400", refusal: refusal{Status: 400, Reason: "http_400", Message: "Request missing required field"}}},
		{name: "indexes of other types", n: 3, status: 400, body: `{"code":400,"events_with_invalid_fields":["time"],"silenced_events":{"a":1},"throttled_events":"all"}`, want: reading{verdict: split, reason: "http_400"}},
		{name: "indexes beyond the end", n: 3, status: 400, body: `{"code":400,"events_with_invalid_fields":{"time":[3,-1]}}`, want: reading{verdict: split, reason: "http_400"}},
		{name: "a 400 in HTML", n: 3, status: 400, body: html, want: reading{verdict: retry, reason: "http_400"}},
		{name: "too large", n: 3, status: 413, body: `{"code":413,"error":"Payload too large"}`, want: reading{verdict: split, reason: "http_413"}},
		{name: "too large, of a proxy", n: 3, status: 413, body: html, want: reading{verdict: split, reason: "http_413"}},
		{name: "one that is too large", n: 1, status: 413, body: `{"code":413,"error":"Payload too large"}`,
			want: reading{verdict: refused, reason: "http_413", refusal: refusal{Status: 413, Reason: "event_too_large", Message: "Payload too large"}}},
		{name: "forbidden", n: 3, status: 403, body: `{"code":403,"error":"Forbidden"}`,
			want: reading{verdict: forbidden, reason: "http_403", refusal: refusal{Status: 403, Reason: "http_403", Message: "Forbidden"}}},
		{name: "redirected", n: 3, status: 302, want: reading{verdict: blocked, reason: "http_302"}},
		{name: "unauthorized", n: 3, status: 401, body: `{"code":401}`, want: reading{verdict: blocked, reason: "http_401"}},
		{name: "not found", n: 3, status: 404, body: "404 page not found", want: reading{verdict: blocked, reason: "http_404"}},
		{name: "request timeout", n: 3, status: 408, body: `{"code":408}`, want: reading{verdict: retry, reason: "http_408"}},
		{name: "500", n: 3, status: 500, body: `{"code":500}`, want: reading{verdict: retry, reason: "http_500"}},
		{name: "503 with a time", n: 3, status: 503, retryAfter: "9", want: reading{verdict: retry, reason: "http_503", wait: 9 * time.Second}},
		{name: "out of this world", n: 3, status: 999, want: reading{verdict: retry, reason: "http_999"}},
		{name: "refused", n: 3, err: &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, want: reading{verdict: retry, reason: "refused"}},

		{name: "the question is understood", status: 400, body: `{"code":400,"error":"Request missing required field","events_with_missing_fields":{"event_type":[0],"user_id":[0]}}`,
			want: reading{verdict: sifted, reason: "http_400", wait: wait, refusals: map[int][]refusal{0: {
				{400, "missing_field", "event_type", "Request missing required field"}, {400, "missing_field", "user_id", "Request missing required field"}}}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := answer{status: test.status, body: []byte(test.body), retryAfter: test.retryAfter}
			if test.err != nil {
				a = answer{err: fmt.Errorf("send request: %w", test.err)}
			}
			var operations []*operation
			for i := range test.n {
				operations = append(operations, &operation{relayed: &relayed{user: fmt.Sprintf("user-%d", i), device: fmt.Sprintf("device-%d", i)}})
			}
			got := (&amplitude{}).read(operations, a, now)
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("%d events, %d %.80q, %v\n%s", test.n, test.status, test.body, test.err,
					cmp.Diff(test.want, got, cmp.AllowUnexported(reading{}, refusal{})))
			}
			for _, list := range got.refusals {
				for _, why := range list {
					if strings.Contains(why.Message, "0123456789abcdef") {
						t.Error("a key is in a message")
					}
				}
			}
		})
	}
}

// Events that cannot share a request go in as few as there are, and in order in each lane.
func TestTogether(t *testing.T) {
	lanes := map[byte]*taken{'a': {}, 'b': {}, 'c': {}}
	tests := []struct{ operations, want string }{ // a lane and a group each
		{"a1 a1 b1", "a1 a1 b1"},
		{"a1 a2 b1 b1", "a1 b1 b1 | a2"},
		{"a1 a2 a1 b2 b1 c1", "a1 c1 | a2 b2 | a1 b1"},
		{"a1 b2 c3", "a1 | b2 | c3"},
	}
	for _, test := range tests {
		var operations []*operation
		for _, name := range strings.Fields(test.operations) {
			operations = append(operations, &operation{of: lanes[name[0]], action: name, relayed: &relayed{key: int(name[1] - '0')}})
		}
		var got []string
		for len(operations) > 0 {
			var now []*operation
			now, operations = (&amplitude{}).together(operations)
			var names []string
			for _, o := range now {
				names = append(names, o.action)
			}
			got = append(got, strings.Join(names, " "))
		}
		if text := strings.Join(got, " | "); text != test.want {
			t.Errorf("%s: %s, want %s", test.operations, text, test.want)
		}
	}
}

// FuzzReadAmplitudeAnswer: whatever comes back, one event is never to be halved, and without Amplitude's own answer
// nothing is delivered.
func FuzzReadAmplitudeAnswer(f *testing.F) {
	f.Add(2, 200, []byte(`{"code":200,"events_ingested":2,"payload_size_bytes":50,"server_upload_time":1396381378123}`), "")
	f.Add(3, 400, []byte(`{"code":400,"error":"x","events_with_invalid_fields":{"time":[0,-1,99999999999]},"events_with_missing_fields":{"user_id":[1]}}`), "")
	f.Add(2, 429, []byte(`{"code":429,"throttled_events":[0],"exceeded_daily_quota_users":{"u":1}}`), "30")
	f.Add(1, 413, []byte(`<html>`), "Fri, 31 Dec 1999 23:59:59 GMT")
	a := &amplitude{}
	f.Fuzz(func(t *testing.T, n, status int, body []byte, retryAfter string) {
		operations := make([]*operation, 1+(n&0xff)%100)
		for i := range operations {
			operations[i] = &operation{action: "event", relayed: &relayed{user: fmt.Sprintf("user-%d", i), device: fmt.Sprintf("device-%d", i)}}
		}
		r := a.read(operations, answer{status: status, body: body, retryAfter: retryAfter}, time.Unix(1700000000, 0))
		if len(operations) == 1 && r.verdict == split {
			t.Errorf("one event is to be halved: %d %q", status, body)
		}
		if r.wait < 0 {
			t.Errorf("wait %v", r.wait)
		}
		if _, is := readAmplitudeAnswer(body); !is && r.verdict == delivered {
			t.Errorf("delivered by %d %q", status, body)
		}
	})
}

// FuzzReadResults reads what was answered to a dead letter: something of it is always tried.
func FuzzReadResults(f *testing.F) {
	f.Add([]byte(`[{"action":"identify","status":200},{"action":"event","status":400,"reason":"invalid"}]`))
	f.Add([]byte(`[null,{}]`))
	f.Fuzz(func(t *testing.T, stored []byte) {
		if a := readResults(stored); !a.identify && !a.event {
			t.Errorf("%q: nothing is tried", stored)
		}
	})
}

// FuzzJudgeAccount reads what Customer.io's region endpoint might answer.
func FuzzJudgeAccount(f *testing.F) {
	f.Add(200, []byte(`{"url":"https://track-eu.customer.io","data_center":"eu","region":"eu","environment_id":5}`), "")
	f.Add(301, []byte(``), "https://track-eu.customer.io/api/v1/accounts/region")
	f.Add(200, []byte(`{"region":"us","environment_id":"99999999999999999999"}`), "")
	o := &Options{Region: "eu", Now: func() time.Time { return time.Unix(1700000000, 0) }}
	f.Fuzz(func(t *testing.T, status int, body []byte, location string) {
		account, wrong := judgeAccount(answer{status: status, body: body, location: location}, o, "https://track-eu.customer.io")
		if wrong == nil && (account.Region != "eu" || status != 200) {
			t.Errorf("%d %q is the account %+v", status, body, account)
		}
	})
}
