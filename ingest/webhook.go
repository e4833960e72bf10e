package ingest

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net/http"
	"strings"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
)

// Amplitude's webhook destination: one event, or one user, in a request. Whatever it is answered but a success, it sends
// the same again, ten times in about four hours, and waits 4 s at most for an answer. So an answer is given in time
// whatever the disk does; and what was stored all the same is recognised by its insert_id when it comes again.

// WebhookPath is where Amplitude's webhook destination is to post to.
const WebhookPath = "/webhook/amplitude"

// webhookWithin leaves half a second of the 4 s to the network.
const webhookWithin = 3500 * time.Millisecond

// webhookSecret admits to a project.
type webhookSecret struct {
	digest [sha256.Size]byte
	projectKey
}

// SetWebhookSecrets says by which secret the webhook of each project is known; none = it is not taken. Safe for
// concurrent use.
func (h *Handler) SetWebhookSecrets(secrets map[string]string) {
	all := make([]webhookSecret, 0, len(secrets))
	for project, secret := range secrets {
		all = append(all, webhookSecret{sha256.Sum256([]byte(secret)), projectKey{project: project, lastSeen: h.door.project(project)}})
	}
	h.webhooks.Store(&all)
}

// webhookProject finds the project whose secret a request carries, as Authorization: Bearer SECRET or X-Ampcio-Secret: SECRET.
// All are compared, each in constant time.
func (h *Handler) webhookProject(r *http.Request) (projectKey, *refusal) {
	secret := r.Header.Get("X-Ampcio-Secret")
	if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && secret == "" && strings.EqualFold(scheme, "Bearer") {
		secret = token
	}
	secret = strings.TrimSpace(secret)
	secrets := h.webhooks.Load()
	if secrets == nil || len(*secrets) == 0 {
		return projectKey{}, refuseWebhook("no project takes a webhook: set webhook_secret_file under [project.…], and reload ampcio")
	}
	if secret == "" {
		return projectKey{}, refuseWebhook("no secret: add to the destination the header Authorization with the value Bearer SECRET, or X-Ampcio-Secret with the value SECRET; SECRET is what stands in webhook_secret_file")
	}
	digest, found := sha256.Sum256([]byte(secret)), -1
	for i := range *secrets {
		if subtle.ConstantTimeCompare(digest[:], (*secrets)[i].digest[:]) == 1 {
			found = i
		}
	}
	if found < 0 {
		return projectKey{}, refuseWebhook("the secret is not that of any project: compare the destination's header with the project's webhook_secret_file")
	}
	return (*secrets)[found].projectKey, nil
}

func refuseWebhook(message string) *refusal {
	// The field is for an SDK whose URL is wrong: without one the Go SDK would send without end.
	return &refusal{reason: reasonSecret, status: http.StatusUnauthorized, message: "Unauthorized: " + message, missingField: "X-Ampcio-Secret"}
}

var errSlowStore = fmt.Errorf("not on stable storage within %v: Amplitude sends it again", webhookWithin)

// serveWebhook answers one request of Amplitude's webhook destination. Its body is an object, or an array of them.
func (h *Handler) serveWebhook(w http.ResponseWriter, r *http.Request) *refusal {
	answerBy := time.NewTimer(webhookWithin)
	defer answerBy.Stop()
	project, refused := h.webhookProject(r)
	if refused != nil {
		h.complain(refused, "")
		return refused
	}
	j := newJob(h.inFlight)
	if refused := h.limits.read(j, r, h.limits.body); refused != nil {
		j.release()
		h.complain(refused, "")
		return refused
	}
	refused, detail := j.parseWebhook(h.limits.events)
	if len(j.events) == 0 {
		j.release()
		h.complain(refused, detail)
		return refused
	}

	// From here on the job belongs to the one who stores it: the answer may have to be given before.
	size, events := j.received, len(j.events)
	stored, failed := make(chan time.Time, 1), make(chan *refusal, 1)
	arrival := mapping.Arrival{Project: project.project, Address: h.sender(r), Source: mapping.SourceWebhook, Events: j.events}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), webhookWithin)
	go func() {
		defer cancel()
		defer j.release()
		at, refused := h.storeWebhook(ctx, j, arrival, project)
		if refused != nil {
			failed <- refused
			return
		}
		stored <- at
	}()
	select {
	case at := <-stored:
		if refused == nil {
			writeStored(w, at.UnixMilli(), size, events)
			return nil
		}
		h.complain(refused, detail) // the others are stored: when all come again, they are known
		return refused
	case refused := <-failed:
		return refused
	case <-answerBy.C:
		slow := refuseAppend(queue.ErrBusy)
		slow.reason, slow.message, slow.cause = reasonSlowStore, "Service Unavailable: the disk is slow", errSlowStore
		return slow
	}
}

func (h *Handler) storeWebhook(ctx context.Context, j *job, a mapping.Arrival, project projectKey) (time.Time, *refusal) {
	if h.storing.Acquire(ctx, 1) != nil {
		return time.Time{}, refuseAppend(queue.ErrBusy)
	}
	defer h.storing.Release(1)
	if h.Refusing() {
		return time.Time{}, refuseDraining()
	}
	received := h.now()
	project.lastSeen.Store(received.UnixMilli())
	a.Received = received.UnixMilli()
	duplicates, err := h.appender.Append(ctx, a)
	if err != nil {
		refused := refuseAppend(err)
		j.keep = refused.reason == reasonStore // who knows what still reads the buffer
		return time.Time{}, refused
	}
	h.door.events.Add(uint64(len(a.Events)))
	h.door.duplicates.Add(uint64(duplicates))
	return received, nil
}

// parseWebhook cuts the body into events. Those that are right are taken, since Amplitude repeats the body as it is:
// what is refused names the others. detail is for the log; it has no words of the body.
func (j *job) parseWebhook(maxEvents int) (refused *refusal, detail string) {
	q := &j.request
	q.reset()
	j.events = j.events[:0]
	c := cutter{b: j.body}
	c.space()
	if c.i == len(c.b) {
		return refuseEmpty, ""
	}
	many, ok := q.cutItems(&c, maxEvents, true)
	c.space()
	switch {
	case !ok || c.i != len(c.b):
		return &refusal{reason: reasonJSON, status: http.StatusBadRequest, message: textBodyJSON + ": an event in the shape of Amplitude's Export API belongs here", missingField: "event_type"}, "it is no JSON"
	case many:
		return refuseMany, ""
	case len(q.items) == 0:
		return refuseField("event_type"), "no event in it"
	}
	bad := &refusal{reason: reasonEvents, status: http.StatusBadRequest, message: textFieldValues}
	for i, item := range q.items {
		event, problems := mapping.Event{}, []mapping.Problem{{Detail: "is not a JSON object, or nests too deep"}}
		if item[0] == '{' && !q.deep[i] {
			event, problems = exportProblem(item)
		}
		for _, p := range problems {
			field := p.Field
			if field == "" {
				field = "event"
			}
			if detail = field + " " + p.Detail; p.Missing {
				bad.missing.add(field, i)
			} else {
				bad.invalid.add(field, i)
			}
		}
		if problems == nil {
			j.events = append(j.events, event)
		}
	}
	if bad.missing == nil && bad.invalid == nil {
		return nil, ""
	}
	if bad.message += ": " + detail; len(q.items) > 1 {
		bad.message = fmt.Sprintf("%s; %d of %d are stored", bad.message, len(j.events), len(q.items))
	}
	return bad, detail
}

// complain logs what Amplitude will only repeat until it gives up: somebody has to know. Reasons of 5xx are logged where
// the answer is written.
func (h *Handler) complain(refused *refusal, detail string) {
	if refused.status >= 500 || refused.reason == reasonSlow || refused.reason == reasonAborted {
		return
	}
	if detail == "" {
		detail = refused.message
	}
	h.repeats.Note(webhookRefused, refused.reason, 1, "status", refused.status, "reason", refused.reason, "why", detail)
}
