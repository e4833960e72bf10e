package delivery

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// This file is the one place that reads Customer.io's answers to a batch.
//
// The rule behind the table: an operation counts as delivered, or as refused for
// good, only when Customer.io itself said so, in its own shape. Everything else
// (a proxy's page, half an answer, silence) changes nothing: the operation waits
// and is sent again under the same id, which Customer.io ignores if it had it.

// verdict is what an answer means for a request, and in the end for each operation.
type verdict uint8

const (
	unsent    verdict = iota // not decided: stays in the queue as if never claimed
	delivered                // accepted; of a request: but for the refusals it lists
	refused                  // will never be accepted as it is
	retry                    // the destination failed, now
	split                    // something in the request is refused, and it is not said what
	forbidden                // wrong keys or endpoint, or refused data: only questions without data can tell
	blocked                  // keys, region or endpoint are wrong: a person must mend it
	sifted                   // nothing of the request was taken; some of it is named, the rest may be sent again at once
)

// refusal is why an operation will never be accepted.
type refusal struct {
	Status  int    // HTTP status, 0 when it was never sent
	Reason  string // one word for statistics: [a-z0-9_]{1,40}
	Field   string // what Customer.io complains about, "" when it does not say
	Message string // in its words
}

// reading is what read made of an answer.
type reading struct {
	verdict   verdict
	reason    string            // one word for statistics: http_503, timeout …; "" when delivered
	wait      time.Duration     // Retry-After, 0 when there was none
	refusals  map[int][]refusal // of delivered and sifted: by index of the operation
	throttled []int             // of sifted: indexes of operations that have to wait
	refusal   refusal           // of refused and forbidden: the request's one operation
}

// blameless tells that no data can have caused the failure.
func (r *reading) blameless() bool {
	switch r.reason {
	case "refused", "dns", "tls", "no_route":
		return true
	}
	return false
}

// asksToWait tells that Customer.io, or something before it, wants fewer requests.
func (r *reading) asksToWait() bool { return r.wait > 0 || r.reason == "http_429" }

// ambiguous tells that something in the request may have caused the failure, or not.
func (r *reading) ambiguous() bool {
	return r.verdict == retry && !r.blameless() && r.reason != "http_429" && r.reason != "http_408"
}

// read says what an answer to a request of n ≥ 1 operations means. now is the
// time against which a Retry-After date is reckoned.
func read(n int, a answer, now time.Time) reading {
	if a.err != nil {
		return reading{verdict: retry, reason: networkReason(a.err)}
	}
	wait := parseRetryAfter(a.retryAfter, now)
	code := "http_" + strconv.Itoa(a.status)
	switch {
	case len(a.body) > maxAnswerBytes:
		return reading{verdict: retry, reason: "bad_answer", wait: wait}
	case a.status >= 200 && a.status < 300:
		r := readAccepted(n, a)
		r.wait = wait
		return r
	case a.status >= 300 && a.status < 400:
		// The wrong region answers so. A captive portal too: nothing is lost then either.
		return reading{verdict: blocked, reason: code}
	}
	switch a.status {
	case http.StatusUnauthorized:
		return reading{verdict: blocked, reason: code}
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		// There is no such thing as a batch that is not found: it is the address
		// that is wrong, and a wrong address must not empty the queue.
		return reading{verdict: blocked, reason: code}
	case http.StatusForbidden:
		return reading{verdict: forbidden, reason: code, wait: wait, refusal: readRefusal(a)}
	case http.StatusRequestEntityTooLarge:
		if n > 1 {
			return reading{verdict: split, reason: code}
		}
		r := readRefusal(a)
		r.Reason = "operation_too_large"
		return reading{verdict: refused, reason: code, refusal: r}
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return reading{verdict: retry, reason: code, wait: wait}
	}
	if a.status >= 400 && a.status < 500 && isObject(a.body) {
		// 400 is documented, the others are treated alike by all clients. One
		// operation may have spoilt it for all, so it is found by halving.
		if n > 1 {
			return reading{verdict: split, reason: code}
		}
		return reading{verdict: refused, reason: code, refusal: readRefusal(a)}
	}
	// 5xx; and any 4xx that is not in Customer.io's shape: some proxy's opinion.
	return reading{verdict: retry, reason: code, wait: wait}
}

// readOfPerson corrects what read says of a request of v1, whose path names the person: then it may be this one that is not
// found, as where something on the way takes %2F for a slash. One person must not block all others; an address that
// is wrong must, and for that a question without anybody is asked, as after a 403.
func readOfPerson(r reading, a answer) reading {
	if a.err == nil && r.verdict == blocked && (a.status == http.StatusNotFound || a.status == http.StatusMethodNotAllowed) {
		r.verdict, r.refusal = forbidden, readRefusal(a)
	}
	return r
}

// readAccepted reads a 2xx. 200 has "{}"; 207 lists the operations that were
// refused and accepted all others.
func readAccepted(n int, a answer) reading {
	garbage := reading{verdict: retry, reason: "bad_answer"}
	if !isObject(a.body) {
		return garbage // a 200 with a login page, an empty body, half an object
	}
	var body struct{ Errors json.RawMessage }
	if json.Unmarshal(a.body, &body) != nil {
		return garbage
	}
	if body.Errors == nil || string(body.Errors) == "null" {
		if a.status == http.StatusMultiStatus {
			return garbage // says that some were refused, but not which
		}
		return reading{verdict: delivered}
	}
	var entries []json.RawMessage
	if json.Unmarshal(body.Errors, &entries) != nil {
		return garbage
	}
	r := reading{verdict: delivered}
	for _, entry := range entries {
		index, why := readEntry(entry, a.status)
		if n == 1 {
			index = 0 // there is only one it can mean
		}
		if index < 0 || index >= n {
			// Something was refused, and what is not said. Calling all others
			// delivered would lose the one; calling all refused would bury the
			// others. Sent again in halves, each ends up named, and those that were
			// accepted already are recognised by their ids.
			return reading{verdict: split, reason: "unnamed_refusal"}
		}
		if r.refusals == nil {
			r.refusals = map[int][]refusal{}
		}
		r.refusals[index] = append(r.refusals[index], why)
	}
	return r
}

// readEntry reads one element of an errors list; index is -1 when it names none.
// Members may be missing or of another type than documented.
func readEntry(entry []byte, status int) (index int, why refusal) {
	var members map[string]json.RawMessage
	_ = json.Unmarshal(entry, &members) // not an object: then all is absent
	index = -1
	if i, err := strconv.Atoi(string(members["batch_index"])); err == nil {
		index = i
	}
	return index, refusal{
		Status:  status,
		Reason:  word(textOf(members["reason"]), "refused"),
		Field:   clip(textOf(members["field"])),
		Message: clip(textOf(members["message"])),
	}
}

// readRefusal reads what a 4xx says of itself, in any of the shapes that are known:
// {"errors":[{"reason","field","message"}]}, {"meta":{"error":"…"}},
// {"meta":{"errors":["…"]}}. The reason is the status, whatever it says.
func readRefusal(a answer) refusal {
	r := refusal{Status: a.status, Reason: "http_" + strconv.Itoa(a.status)}
	var body struct {
		Errors []json.RawMessage
		Meta   struct {
			Error  json.RawMessage
			Errors []json.RawMessage
		}
	}
	_ = json.Unmarshal(a.body, &body) // what does not fit stays empty
	switch {
	case len(body.Errors) > 0:
		_, why := readEntry(body.Errors[0], a.status)
		r.Field, r.Message = why.Field, why.Message
		if r.Message == "" && why.Reason != "refused" {
			r.Message = why.Reason
		}
	case body.Meta.Error != nil:
		r.Message = clip(textOf(body.Meta.Error))
	case len(body.Meta.Errors) > 0:
		r.Message = clip(textOf(body.Meta.Errors[0]))
	}
	return r
}

// parseRetryAfter reads both forms of the header, seconds and a date, between 0
// and maxRetryAfter; anything else is 0.
func parseRetryAfter(header string, now time.Time) time.Duration {
	header = strings.TrimSpace(header)
	if header == "" {
		return 0
	}
	if seconds, err := strconv.ParseFloat(header, 64); err == nil {
		if !(seconds > 0) {
			return 0
		}
		return time.Duration(min(seconds, maxRetryAfter.Seconds()) * float64(time.Second))
	}
	if date, err := http.ParseTime(header); err == nil {
		return min(max(date.Sub(now), 0), maxRetryAfter)
	}
	return 0
}

func isObject(body []byte) bool {
	body = bytes.TrimSpace(body)
	return len(body) > 0 && body[0] == '{' && json.Valid(body)
}

// textOf is a JSON string's text, or the JSON itself for any other type.
func textOf(value []byte) string {
	var text string
	if len(value) > 0 && json.Unmarshal(value, &text) != nil {
		return string(value)
	}
	return text
}

// word makes a reason of foreign text: what is not one plain word becomes other,
// so that statistics cannot be flooded with sentences.
func word(text, other string) string {
	text = strings.ToLower(strings.ReplaceAll(text, " ", "_"))
	if len(text) == 0 || len(text) > 40 {
		return other
	}
	for _, c := range []byte(text) {
		if c != '_' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return other
		}
	}
	return text
}

// clip bounds foreign text that is kept with a dead letter.
func clip(text string) string {
	const most = 500 // bytes
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= most {
		return text
	}
	text = text[:most]
	for !utf8.ValidString(text) {
		text = text[:len(text)-1]
	}
	return text + "…"
}
