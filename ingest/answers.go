package ingest

import (
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Texts of Amplitude's "error" member that SDKs or people know.
const (
	textMissingField = "Request missing required field"
	textFieldValues  = "Invalid field values on some events"
	textIDLength     = "Invalid id length for user_id or device_id"
	textEventJSON    = "Invalid event JSON"
	textBodyJSON     = "Invalid JSON request body"
	textNoBody       = "Missing request body"
	textTooLarge     = "Payload too large"
)

// refusal is an answer other than success, and the reason as the door counts it.
//
// The Go SDK takes every 4xx but 408, 413 and 429 for a 400, and a 400 that names neither a
// missing field, nor the API key, nor an event makes it send the same events again at once,
// without end. So each 400 here names one of them.
type refusal struct {
	reason  string
	status  int
	message string // Amplitude's "error"

	missingField string        // of the request: makes the JavaScript, Go and Python SDKs drop it
	invalid      eventIndexes  // events_with_invalid_fields
	missing      eventIndexes  // events_with_missing_fields
	lengths      eventIndexes  // events_with_invalid_id_lengths; Kotlin and Swift do not know it, so each is in invalid too
	retryAfter   time.Duration // of a 503
	cause        error         // for the log, never for the sender
	text         bool          // answered as /identify does: plain words, no JSON
}

// eventIndexes: field → where in the request the events are that have it wrong, rising.
type eventIndexes map[string][]int

func (e *eventIndexes) add(field string, index int) {
	if *e == nil {
		*e = eventIndexes{}
	}
	at := (*e)[field]
	if len(at) == 0 || at[len(at)-1] != index {
		(*e)[field] = append(at, index)
	}
}

var (
	refuseNoKey = &refusal{reason: reasonNoKey, status: 400, message: textMissingField, missingField: "api_key"}
	refusePath  = &refusal{reason: reasonPath, status: 400, message: "Invalid request path", missingField: "path"}
	refuseJSON  = &refusal{reason: reasonJSON, status: 400, message: textBodyJSON, missingField: "events"}
	refuseEmpty = &refusal{reason: reasonJSON, status: 400, message: textNoBody, missingField: "events"}
	refuseLarge = &refusal{reason: reasonTooLarge, status: 413, message: textTooLarge}
	refuseMany  = &refusal{reason: reasonTooMany, status: 413, message: textTooLarge}
	// Of the forms only, whose senders look at the status.
	refuseChecksum = &refusal{reason: reasonChecksum, status: 400, message: "bad_checksum", missingField: "checksum"}
	refuseURL      = &refusal{reason: reasonTooLarge, status: 414, message: "URI Too Long"}
	// 408 is told apart from 400 by every SDK: they try again.
	refuseSlow    = &refusal{reason: reasonSlow, status: 408, message: "Request Timeout"}
	refuseAborted = &refusal{reason: reasonAborted, status: 408, message: "Request body ended early"}
	refuseBusy    = &refusal{reason: reasonBusy, status: 503, message: "Service Unavailable: too many bytes in flight", retryAfter: time.Second}
	refuseBody    = &refusal{reason: reasonJSON, status: 400, message: "Invalid request body", missingField: "events"}
	refuseGzip    = &refusal{reason: reasonEncoding, status: 400, message: "Invalid gzip request body", missingField: "events"}
	refuseCoding  = &refusal{reason: reasonEncoding, status: 400, message: "Unknown Content-Encoding: send gzip or none", missingField: "events"}
)

// refuseField is the answer when a member of the request is absent or of a wrong type.
func refuseField(field string) *refusal {
	return &refusal{reason: reasonField, status: 400, message: textMissingField, missingField: field}
}

// refuseKey says which key is unknown. Swift compares the whole text with its own key. A very
// long one is no key and is cut.
func refuseKey(key []byte) *refusal {
	return &refusal{reason: reasonKey, status: 400, message: "Invalid API key: " + string(key[:min(len(key), 256)])}
}

// refuseMethod is a 400 and not a 405: a proxy that redirects turns the Go SDK's POST into a
// GET, and a 405 would make that SDK loop; a 2xx would make it forget its events.
func refuseMethod(method string) *refusal {
	return &refusal{reason: reasonMethod, status: 400, message: "Invalid request method " + method + ": events are sent by POST", missingField: "events"}
}

// refuseHealth is the same at /healthz.
func refuseHealth(method string) *refusal {
	return &refusal{reason: reasonMethod, status: 400, message: "Invalid request method " + method + ": /healthz is asked by GET or HEAD", missingField: "events"}
}

// inWords is the refusal as the old endpoints give it, where text says so.
func (f *refusal) inWords(text bool) *refusal {
	if !text {
		return f
	}
	plain := *f
	plain.text = true
	return &plain
}

func (f *refusal) write(w http.ResponseWriter) {
	if f.status == http.StatusServiceUnavailable {
		seconds := max(1, int(math.Ceil(f.retryAfter.Seconds())))
		w.Header().Set("Retry-After", strconv.Itoa(seconds))
	}
	if f.text && f.status < 500 {
		writeText(w, f.status, f.plain())
		return
	}
	b := make([]byte, 0, 256)
	b = append(b, `{"code":`...)
	b = strconv.AppendInt(b, int64(f.status), 10)
	b = append(b, `,"error":`...)
	b = appendQuoted(b, f.message)
	b = f.invalid.appendMember(b, "events_with_invalid_fields")
	b = f.lengths.appendMember(b, "events_with_invalid_id_lengths")
	b = f.missing.appendMember(b, "events_with_missing_fields")
	if f.missingField != "" {
		b = append(b, `,"missing_field":`...)
		b = appendQuoted(b, f.missingField)
	}
	writeJSON(w, f.status, append(b, '}'))
}

// plain is the refusal in the words of Amplitude's form endpoints.
func (f *refusal) plain() string {
	switch f.reason {
	case reasonNoKey, reasonKey:
		return "invalid_api_key"
	case reasonChecksum:
		return "bad_checksum"
	case reasonTooLarge, reasonTooMany:
		return "request_too_large"
	case reasonSlow, reasonAborted:
		return "request_timeout"
	case reasonEvents:
		fields := slices.Sorted(maps.Keys(f.invalid))
		fields = append(fields, slices.Sorted(maps.Keys(f.missing))...)
		return fmt.Sprintf("invalid_event_field: %q", fields)
	}
	return "missing_event"
}

func (e eventIndexes) appendMember(b []byte, name string) []byte {
	if len(e) == 0 {
		return b
	}
	b = append(b, `,"`...)
	b = append(b, name...)
	b = append(b, `":`...)
	separator := byte('{')
	for _, field := range slices.Sorted(maps.Keys(e)) {
		b = appendQuoted(append(b, separator), field)
		separator = ','
		open := byte('[')
		b = append(b, ':')
		for _, index := range e[field] {
			b = strconv.AppendInt(append(b, open), int64(index), 10)
			open = ','
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

// appendQuoted quotes text for JSON; bytes that are no UTF-8 become U+FFFD.
func appendQuoted(b []byte, text string) []byte {
	b, _ = jsontext.AppendQuote(b, text) // bad UTF-8 is the only error, and b is complete all the same
	return b
}

// writeStored answers 200 in the key order of Amplitude's own servers. Without "code" the
// JavaScript SDKs would try again and Python's would lose the events.
func writeStored(w http.ResponseWriter, uploadTime, payloadBytes int64, events int) {
	b := make([]byte, 0, 128)
	b = append(b, `{"code":200,"server_upload_time":`...)
	b = strconv.AppendInt(b, uploadTime, 10)
	b = append(b, `,"payload_size_bytes":`...)
	b = strconv.AppendInt(b, payloadBytes, 10)
	b = append(b, `,"events_ingested":`...)
	b = strconv.AppendInt(b, int64(events), 10)
	writeJSON(w, http.StatusOK, append(b, '}'))
}

func writeJSON(w http.ResponseWriter, status int, body []byte) {
	write(w, status, "application/json", body)
}

func writeText(w http.ResponseWriter, status int, text string) {
	write(w, status, "text/plain; charset=utf-8", []byte(text))
}

func write(w http.ResponseWriter, status int, contentType string, body []byte) {
	header := w.Header()
	header["Content-Type"] = []string{contentType}
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	header["X-Content-Type-Options"] = noSniff
	w.WriteHeader(status)
	_, _ = w.Write(body) // a sender that is gone sends again
}

var noSniff = []string{"nosniff"}
