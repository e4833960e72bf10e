package delivery

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file is the one place that reads Amplitude's answers to events.
//
// The rule is that of verdict.go: an event counts as delivered, or as refused for good,
// only when Amplitude itself said so. What it names is read as its own SDKs do; but events
// that it refuses are kept as dead letters where these drop them, and what names nothing is
// searched by halving where these send the same again, for ever or for a while.

const (
	reasonInvalidKey    = "invalid_api_key"
	reasonThrottled     = "throttled"
	reasonEventTooLarge = "event_too_large"
)

// amplitudeAnswer is the body of an answer, whatever its status. Maps go from a field to
// the indexes of events; the arrays hold indexes too.
type amplitudeAnswer struct {
	Code  int    `json:"code"`
	Error string `json:"error"`

	InvalidFields  map[string][]int `json:"events_with_invalid_fields"`
	MissingFields  map[string][]int `json:"events_with_missing_fields"`
	InvalidLengths map[string][]int `json:"events_with_invalid_id_lengths"`

	SilencedEvents  []int    `json:"silenced_events"`
	SilencedDevices []string `json:"silenced_devices"`

	ThrottledEvents []int                      `json:"throttled_events"`
	QuotaUsers      map[string]json.RawMessage `json:"exceeded_daily_quota_users"`
	QuotaDevices    map[string]json.RawMessage `json:"exceeded_daily_quota_devices"`
}

// readAmplitudeAnswer reads member by member: one of another type than documented is as if
// it were absent. ok is false for what is no JSON object.
func readAmplitudeAnswer(body []byte) (a amplitudeAnswer, ok bool) {
	if !isObject(body) {
		return a, false
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(body, &members) != nil {
		return a, false
	}
	for name, to := range map[string]any{
		"code": &a.Code, "error": &a.Error,
		"events_with_invalid_fields": &a.InvalidFields, "events_with_missing_fields": &a.MissingFields,
		"events_with_invalid_id_lengths": &a.InvalidLengths,
		"silenced_events":                &a.SilencedEvents, "silenced_devices": &a.SilencedDevices,
		"throttled_events": &a.ThrottledEvents, "exceeded_daily_quota_users": &a.QuotaUsers, "exceeded_daily_quota_devices": &a.QuotaDevices,
	} {
		if value, there := members[name]; there {
			_ = json.Unmarshal(value, to)
		}
	}
	return a, true
}

// read says what an answer to a request of these events means; none = to the question,
// which has one event that is none.
func (a *amplitude) read(operations []*operation, answer answer, now time.Time) reading {
	if answer.err != nil {
		return reading{verdict: retry, reason: networkReason(answer.err)}
	}
	wait := parseRetryAfter(answer.retryAfter, now)
	if len(answer.body) > maxAnswerBytes {
		return reading{verdict: retry, reason: "bad_answer", wait: wait}
	}
	body, isAmplitudes := readAmplitudeAnswer(answer.body)
	status := answer.status
	if status >= 200 && status < 300 {
		// A proxy's page, or somebody else's JSON, says nothing of what became of the events.
		if !isAmplitudes || body.Code < 200 || body.Code > 599 {
			return reading{verdict: retry, reason: "bad_answer", wait: wait}
		}
		if status = body.Code; status < 300 {
			return reading{verdict: delivered, wait: wait}
		}
	}
	several := len(operations) > 1
	code := "http_" + strconv.Itoa(status)
	switch {
	case status < 400, status == http.StatusUnauthorized, status == http.StatusNotFound, status == http.StatusMethodNotAllowed:
		return reading{verdict: blocked, reason: code}
	case status == http.StatusForbidden:
		return reading{verdict: forbidden, reason: code, wait: wait, refusal: refusal{Status: status, Reason: code, Message: clip(body.Error)}}
	case status == http.StatusRequestEntityTooLarge && several:
		return reading{verdict: split, reason: code}
	case status == http.StatusRequestEntityTooLarge:
		return reading{verdict: refused, reason: code, refusal: refusal{Status: status, Reason: reasonEventTooLarge, Message: clip(body.Error)}}
	case status >= 500, status == http.StatusRequestTimeout, !isAmplitudes:
		return reading{verdict: retry, reason: code, wait: wait}
	case strings.Contains(strings.ToLower(body.Error), "invalid api key"):
		return reading{verdict: blocked, reason: reasonInvalidKey} // the message has the key in it
	}
	r := body.named(operations, status)
	r.wait = max(wait, throttledWait)
	switch {
	case r.verdict == sifted:
		return r
	case status == http.StatusTooManyRequests: // the project as a whole, or this machine
		return reading{verdict: retry, reason: code, wait: r.wait}
	case several:
		return reading{verdict: split, reason: code}
	}
	return reading{verdict: refused, reason: code, refusal: refusal{Status: status, Reason: code, Message: clip(body.Error)}}
}

// named finds the events that an answer names. None of the request was taken: those that
// are not named are to be sent again, at once.
func (b *amplitudeAnswer) named(operations []*operation, status int) reading {
	r := reading{verdict: sifted, reason: "http_" + strconv.Itoa(status), refusals: map[int][]refusal{}}
	count := max(len(operations), 1) // the question has one event
	refuse := func(index int, reason, field string) {
		if index >= 0 && index < count {
			r.refusals[index] = append(r.refusals[index], refusal{Status: status, Reason: reason, Field: clip(field), Message: clip(b.Error)})
		}
	}
	for _, list := range []struct {
		reason string
		fields map[string][]int
	}{{"missing_field", b.MissingFields}, {"invalid_field", b.InvalidFields}, {"invalid_id_length", b.InvalidLengths}} {
		fields := make([]string, 0, len(list.fields))
		for field := range list.fields {
			fields = append(fields, field)
		}
		slices.Sort(fields)
		for _, field := range fields {
			for _, index := range list.fields[field] {
				refuse(index, list.reason, field)
			}
		}
	}
	for _, index := range b.SilencedEvents {
		refuse(index, "silenced", "")
	}
	for i, o := range operations {
		if r.refusals[i] != nil {
			continue
		}
		_, user := b.QuotaUsers[o.relayed.user]
		_, device := b.QuotaDevices[o.relayed.device]
		switch {
		case slices.Contains(b.SilencedDevices, o.relayed.device) && o.relayed.device != "":
			refuse(i, "silenced", "device_id")
		case user && o.relayed.user != "":
			refuse(i, "exceeded_daily_quota", "user_id")
		case device && o.relayed.device != "":
			refuse(i, "exceeded_daily_quota", "device_id")
		}
	}
	for _, index := range b.ThrottledEvents {
		if index >= 0 && index < count && r.refusals[index] == nil {
			r.throttled = append(r.throttled, index)
		}
	}
	switch {
	case len(r.throttled) > 0:
		r.reason = reasonThrottled // it is about users: the others need not go more slowly
	case len(r.refusals) == 0:
		return reading{}
	}
	return r
}
