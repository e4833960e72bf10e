package ingest

import (
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"ampcio/logbook"
)

// What the log says of refused requests. Of each reason there is a line at once and, while
// it goes on, few more with the sum: anybody can send a flood of requests.
var (
	eventsRefused = logbook.Line{Level: slog.LevelError, Message: "events refused, senders will try again",
		Over: "events are no longer refused", Quiet: time.Minute}
	requestsRefused = logbook.Line{Level: slog.LevelWarn, Message: "requests refused, and most senders drop what was in them",
		Over: "such requests no longer come", Quiet: 10 * time.Minute}
	webhookRefused = logbook.Line{Level: slog.LevelWarn, Message: "a request of Amplitude's webhook was refused; Amplitude repeats it for about four hours, and then drops it",
		Over: "Amplitude's webhook is no longer refused", Quiet: 10 * time.Minute}
	manyConnections = logbook.Line{Level: slog.LevelWarn, Message: "there are as many connections as may be; for each more, the one that has been idle for longest is closed, or it waits",
		Over: "there are fewer connections again", Quiet: time.Minute}
	httpProblem = logbook.Line{Level: slog.LevelWarn, Message: "the HTTP server met a problem", Over: "the HTTP server meets no such problem any more", Quiet: time.Minute}
)

// remedies say what to do about a reason. What has none here, and is no 5xx, is what
// strangers, scanners and lost connections cause, or what SDKs mend themselves: it is
// counted at the door, and not logged.
var remedies = map[string]string{
	reasonFull:      "see what fills the disk: ampcio queue-stats",
	reasonBusy:      "nothing if it is seldom; else see whether the disk is slow: ampcio queue-stats",
	reasonClosed:    "nothing: ampcio is stopping",
	reasonStore:     "nothing: ampcio ends and looks at what the disk holds when systemd starts it again; see the error, and dmesg",
	reasonSlowStore: "see whether the disk is slow; Amplitude sends it again",
	reasonPlain:     "let the server URL of the SDK begin with https://",

	reasonNoKey:    "the SDK sends no API key: see its initialisation; from where it comes: ampcio queue-stats",
	reasonKey:      "compare the SDK's API key with amplitude_api_keys; from where it comes: ampcio queue-stats",
	reasonChecksum: "what an old SDK sent came changed: is something between it and ampcio? From where it comes: ampcio queue-stats",
	reasonJSON:     "what is sent is no JSON: is something between that SDK and ampcio? From where it comes: ampcio queue-stats",
	reasonField:    "what is sent is not a request of Amplitude's API; from where it comes: ampcio queue-stats",
	reasonEvents:   "events lack what Amplitude requires, too (event_type, user_id or device_id); the answer names them to the sender",
	reasonEncoding: "what is sent says that it is compressed, and is not as it says; from where it comes: ampcio queue-stats",
}

// log notes a refused request. Those of Amplitude's webhook have been noted, but for 5xx.
func (h *Handler) log(refused *refusal, webhook bool) {
	do := remedies[refused.reason]
	if do == "" || webhook && refused.status < http.StatusInternalServerError {
		return
	}
	if refused.status < http.StatusInternalServerError {
		h.repeats.Note(requestsRefused, refused.reason, 1, "status", refused.status, "reason", refused.reason, "do", do)
		return
	}
	attrs := []any{"status", refused.status, "reason", refused.reason}
	if refused.cause != nil {
		attrs = append(attrs, "cause", fmt.Sprint(refused.cause))
	}
	h.repeats.Note(eventsRefused, refused.reason, 1, append(attrs, "do", do)...)
}
