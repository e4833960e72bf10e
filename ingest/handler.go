// Package ingest is the public door: it speaks Amplitude's ingestion API. Its promise: an
// event is answered 200 only after the Appender said that it is stored, and every other
// answer either stops the SDK that hears it or slows it down, so that none of them loops.
//
// What the answers look like and what each SDK does with them is known from Amplitude's
// documentation (https://amplitude.com/docs/apis/analytics/http-v2, …/batch-event-upload,
// …/identify), from the SDKs' source, and from recordings of running SDKs.
package ingest

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"path"
	"sync/atomic"
	"time"

	"github.com/rs/cors"
	"golang.org/x/sync/semaphore"

	"ampcio/logbook"
	"ampcio/mapping"
	"ampcio/queue"
)

// Appender stores the events of one request, all or none.
type Appender interface {
	// Append returns nil once all events of a are on stable storage, or were there
	// already; duplicates says how many were. Errors: *queue.FullError, queue.ErrBusy and
	// queue.ErrClosed mean nothing was stored; after any other error the outcome is unknown.
	// The slices in a are the caller's again when Append returns. Safe for concurrent use.
	Append(ctx context.Context, a mapping.Arrival) (duplicates int, err error)
}

// Options of a Handler. A zero number means its default.
type Options struct {
	Projects    map[string][]string // project → the API keys its SDKs send
	CORSOrigins []string            // "*" = any; empty = no browser of another origin

	TrustedProxies []netip.Prefix // whose X-Forwarded-For is believed; see Trust

	MaxBody       int64 // bytes of a body on the wire, but for /batch; 1 MiB as Amplitude
	MaxBatchBody  int64 // bytes of a body of /batch on the wire; 20 MiB as Amplitude
	MaxInflated   int64 // bytes that a gzip body may become, and never less than its endpoint's limit; 20 MiB
	MaxEvents     int   // events per request; 2000 as Amplitude
	InFlightBytes int64 // bytes of all bodies held at one time; 64 MiB. Above: 503

	Now func() time.Time // time.Now when nil
	Log *slog.Logger     // slog.Default() when nil; never hears of bodies or keys
	// Repeats hears of refused requests. nil = a book of its own, in Log.
	Repeats *logbook.Book
}

// answerWithin is how long a request may wait for its turn to be stored; a 503 in time makes
// all SDKs try again. Once its turn has come the answer is the disk's, however long that takes.
const answerWithin = 9 * time.Second

// Handler answers the public listener. Safe for concurrent use.
type Handler struct {
	appender Appender
	admitted atomic.Pointer[admitted]
	trusted  atomic.Pointer[[]netip.Prefix] // proxies
	storing  *semaphore.Weighted            // each request that is being stored has 1 of storingMost; Change and Refuse take all
	refusing atomic.Int64                   // how many have new events refused
	inFlight *semaphore.Weighted
	limits   limits
	door     *door
	now      func() time.Time
	repeats  *logbook.Book // of refused requests, by reason

	webhooks atomic.Pointer[[]webhookSecret]
}

// admitted is who may send, which Change replaces as a whole.
type admitted struct {
	keys    []projectKey
	handler http.Handler // route, with CORS around it
}

type projectKey struct {
	digest   [sha256.Size]byte // of the API key: comparing digests takes the same time for any key
	project  string
	id       uint64        // mapping.KeyID, where the project has several keys; else 0
	lastSeen *atomic.Int64 // of the project; the door's
}

// storingMost is far more than the requests that can be stored at one time.
const storingMost = 1 << 30

// New returns a handler that gives what it accepts to a.
func New(o Options, a Appender) *Handler {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	h := &Handler{
		appender: a, limits: newLimits(o), now: o.Now, repeats: o.Repeats,
	}
	if h.repeats == nil {
		h.repeats = logbook.New(o.Log, o.Now)
	}
	h.door = newDoor()
	h.storing = semaphore.NewWeighted(storingMost)
	h.inFlight = semaphore.NewWeighted(h.limits.inFlight)
	h.admitted.Store(h.admit(o.Projects, o.CORSOrigins))
	h.Trust(o.TrustedProxies)
	return h
}

func (h *Handler) admit(projects map[string][]string, corsOrigins []string) *admitted {
	a := &admitted{handler: http.HandlerFunc(h.route)}
	for project, keys := range projects {
		lastSeen := h.door.project(project)
		for _, key := range keys {
			known := projectKey{digest: sha256.Sum256([]byte(key)), project: project, lastSeen: lastSeen}
			if len(keys) > 1 {
				known.id = mapping.KeyID(key)
			}
			a.keys = append(a.keys, known)
		}
	}
	if len(corsOrigins) > 0 { // rs/cors takes an empty list for "*"
		a.handler = cors.New(cors.Options{
			AllowedOrigins: corsOrigins,
			AllowedMethods: []string{http.MethodPost, http.MethodGet, http.MethodHead},
			AllowedHeaders: []string{"*"}, // echoed: applications add headers of their own
			MaxAge:         24 * 60 * 60,  // seconds; browsers cap it
			// A browser asks before a public site may send to an address of a private network.
			AllowPrivateNetwork: true,
		}).Handler(a.handler)
	}
	return a
}

// Change replaces the projects with their API keys, and the CORS origins. It waits until
// the requests that are being stored have been; until meanwhile has returned, further
// ones wait for their turn, so what meanwhile changes has happened either before a
// request or after it. When it fails, or ctx ends while requests are still being
// stored, nothing has changed.
func (h *Handler) Change(ctx context.Context, projects map[string][]string, corsOrigins []string, meanwhile func() error) error {
	if err := h.storing.Acquire(ctx, storingMost); err != nil {
		return fmt.Errorf("wait for the requests that are being stored: %w", err)
	}
	defer h.storing.Release(storingMost)
	if err := meanwhile(); err != nil {
		return err
	}
	h.admitted.Store(h.admit(projects, corsOrigins))
	return nil
}

// Beside calls f, which stores events that come another way, as if it were a request: Change waits for it, and it for
// Change. An error is f's, or ctx's.
func (h *Handler) Beside(ctx context.Context, f func() error) error {
	if err := h.storing.Acquire(ctx, 1); err != nil {
		return err
	}
	defer h.storing.Release(1)
	return f()
}

// Door returns what was asked and refused since the start.
func (h *Handler) Door() DoorStats { return h.door.stats() }

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if (r.URL.Path == "/healthz" || r.URL.Path == "/healthz/") && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		w.Header().Set("Cache-Control", "no-store")
		writeText(w, http.StatusOK, "ok\n")
		return // a load balancer's questions are none of a sender: they are not counted
	}
	h.door.requests.Add(1)
	h.door.last.Store(h.way(r))
	h.admitted.Load().handler.ServeHTTP(w, r)
}

// route finds the endpoint. It cleans the path itself: the redirects of http.ServeMux would
// turn an SDK's POST into a GET.
func (h *Handler) route(w http.ResponseWriter, r *http.Request) {
	endpoint := path.Clean("/" + r.URL.Path)
	methods := "POST, OPTIONS"
	if endpoint == "/identify" || endpoint == "/groupidentify" {
		methods = "GET, POST, OPTIONS"
	}
	if endpoint == "/healthz" {
		methods = "GET, HEAD, OPTIONS"
	}
	if r.Method == http.MethodOptions {
		w.Header().Set("Allow", methods)
		w.WriteHeader(http.StatusNoContent)
		return
	}

	var refused *refusal
	switch {
	case endpoint == "/2/httpapi" && r.Method == http.MethodPost:
		refused = h.serveEvents(w, r, h.limits.body)
	case endpoint == "/batch" && r.Method == http.MethodPost:
		refused = h.serveEvents(w, r, h.limits.batchBody)
	case endpoint == "/" && r.Method == http.MethodPost:
		refused = h.serveRoot(w, r)
	case endpoint == "/httpapi" && r.Method == http.MethodPost:
		refused = h.serveOldHTTPAPI(w, r)
	case endpoint == "/identify" && (r.Method == http.MethodPost || r.Method == http.MethodGet):
		refused = h.serveForm(w, r, identifyAPI)
	case endpoint == "/groupidentify" && (r.Method == http.MethodPost || r.Method == http.MethodGet):
		refused = h.serveForm(w, r, groupIdentifyAPI)
	case endpoint == WebhookPath && r.Method == http.MethodPost:
		refused = h.serveWebhook(w, r)
	case endpoint == WebhookPath || endpoint == "/2/httpapi" || endpoint == "/batch" || endpoint == "/" || endpoint == "/httpapi" ||
		endpoint == "/identify" || endpoint == "/groupidentify" || endpoint == "/healthz":
		w.Header().Set("Allow", methods)
		refused = refuseMethod(r.Method)
		if endpoint == "/healthz" {
			refused = refuseHealth(r.Method)
		}
	default:
		refused = refusePath
	}
	if refused == nil {
		return
	}
	// A client that is still sending when the answer comes may see a cut connection in its
	// place, and the Node and Go SDKs then drop the events at once. So hear it out.
	h.limits.discard(r)
	h.refuse(w, r, refused)
}

// serveEvents answers a body of the HTTP V2 API, which is also that of /batch.
func (h *Handler) serveEvents(w http.ResponseWriter, r *http.Request, limit int64) *refusal {
	j := newJob(h.inFlight)
	defer j.release()
	if refused := h.limits.read(j, r, limit); refused != nil {
		return refused
	}
	return h.storeEvents(w, r, j)
}

func (h *Handler) storeEvents(w http.ResponseWriter, r *http.Request, j *job) *refusal {
	if refused := j.request.parse(j.body, "events", h.limits.events); refused != nil {
		return refused
	}
	return h.storeParsed(w, r, j)
}

func (h *Handler) storeParsed(w http.ResponseWriter, r *http.Request, j *job) *refusal {
	stored, refused := h.store(r, j)
	if refused != nil {
		return refused
	}
	writeStored(w, stored.UnixMilli(), j.received, len(j.request.items))
	return nil
}

// store checks who asks and what, and appends all items of the request or none. It returns
// the time of receipt.
func (h *Handler) store(r *http.Request, j *job) (time.Time, *refusal) {
	// A page that is being left has hung up when its last events are read: they are stored all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), answerWithin)
	defer cancel()
	if h.storing.Acquire(ctx, 1) != nil {
		return time.Time{}, refuseAppend(queue.ErrBusy)
	}
	defer h.storing.Release(1)
	if h.Refusing() {
		return time.Time{}, refuseDraining()
	}
	project, refused := h.project(&j.request)
	if refused != nil {
		return time.Time{}, refused
	}
	received := h.now()
	project.lastSeen.Store(received.UnixMilli())
	if refused := j.parseEvents(); refused != nil {
		return time.Time{}, refused
	}
	duplicates, err := h.appender.Append(ctx, mapping.Arrival{
		Project:  project.project,
		Received: received.UnixMilli(),
		Uploaded: j.request.uploaded,
		Address:  h.sender(r),
		Source:   mapping.SourceHTTP,
		KeyID:    project.id,
		Events:   j.events,
	})
	if err != nil {
		refused := refuseAppend(err)
		j.keep = refused.reason == reasonStore // who knows what still reads the buffer
		return time.Time{}, refused
	}
	h.door.events.Add(uint64(len(j.events)))
	h.door.duplicates.Add(uint64(duplicates))
	return received, nil
}

// project finds the project whose API key the request carries. All keys are compared, each in
// constant time, so that the time of an answer says nothing about them.
func (h *Handler) project(q *request) (projectKey, *refusal) {
	if len(q.key) == 0 {
		return projectKey{}, refuseNoKey
	}
	digest := sha256.Sum256(q.key)
	keys, found := h.admitted.Load().keys, -1
	for i := range keys {
		if subtle.ConstantTimeCompare(digest[:], keys[i].digest[:]) == 1 {
			found = i
		}
	}
	if found < 0 {
		return projectKey{}, refuseKey(q.key)
	}
	return keys[found], nil
}

// refuseAppend says what a failed append means for the sender: nothing but "try again".
func refuseAppend(err error) *refusal {
	unavailable := &refusal{status: http.StatusServiceUnavailable, cause: err,
		retryAfter: time.Second + rand.N(2*time.Second)} // spread, so that senders do not come back together
	var full *queue.FullError
	switch {
	case errors.As(err, &full):
		unavailable.reason, unavailable.message = reasonFull, "Service Unavailable: storage is full"
		if full.Sync != "" {
			unavailable.message = "Service Unavailable: storage is full: a sync has delivery.max_pending_bytes waiting"
		}
		unavailable.retryAfter += full.RetryAfter
	case errors.Is(err, queue.ErrBusy):
		unavailable.reason, unavailable.message = reasonBusy, "Service Unavailable: too many events in flight"
	case errors.Is(err, queue.ErrClosed):
		unavailable.reason, unavailable.message = reasonClosed, "Service Unavailable: stopping"
	default:
		unavailable.reason, unavailable.message = reasonStore, "Service Unavailable: events could not be stored"
	}
	return unavailable
}

// refuse writes the answer, counts it at the door, and logs what became a 5xx.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, refused *refusal) {
	h.door.refuse(refused.reason, h.now(), h.sender(r))
	h.log(refused, path.Clean("/"+r.URL.Path) == WebhookPath)
	if refused.reason == reasonSlow || refused.reason == reasonAborted {
		// The read deadline has passed and the write deadline is due at the same moment.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(5 * time.Second))
		w.Header().Set("Connection", "close")
	}
	refused.write(w)
}
