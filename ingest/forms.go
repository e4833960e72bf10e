package ingest

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
)

// The endpoints that are older than the HTTP V2 API take parameters, of a form or a query, and answer in plain words:
// "success", "missing_event", "invalid_api_key". Without a form or a query their refusals are JSON: an SDK whose URL is
// wrong may be listening.

// formAPI is one of these endpoints.
type formAPI struct {
	key, list string // its parameters: the API key; an object, or an array of them, as JSON
	most      int    // items in the list; 0 = as many as events in a request
	minID     int    // characters of an ID, unless the parameter options says otherwise
	// event is what an item means in the HTTP V2 API; nil = it is an event.
	event itemReader
	// also looks at the request once it is cut into items; nil = nothing to look at.
	also func(q *request, p parameters) *refusal
}

var (
	// https://amplitude.com/docs/apis/analytics/identify
	identifyAPI = formAPI{key: "api_key", list: "identification", minID: defaultMinIDLength, event: asIdentify}
	// https://amplitude.com/docs/apis/analytics/group-identify
	groupIdentifyAPI = formAPI{key: "api_key", list: "identification", minID: defaultMinIDLength, most: mostGroups, event: asGroupIdentify, also: fewGroupProperties}
	// The first HTTP API: as the second, but for its content type and the name of the list.
	oldHTTPAPI = formAPI{key: "api_key", list: "event", minID: defaultMinIDLength}
	// What amplitude-js, Amplitude-Android and Amplitude-iOS send. They cannot say how short an ID may be, and what is
	// not answered 200 stays with them, and everything behind it: so a short one is an ID.
	oldSDKs = formAPI{key: "client", list: "e", minID: 1, also: uploadedWhole}
)

// maxURL is how long, in bytes, a query may be. Amplitude answers 414 beyond its own bound, which it does not tell; that
// of most servers and proxies is this.
const maxURL = 8 << 10

// serveOldHTTPAPI answers /httpapi. An SDK of today whose URL lacks the 2 sends the body of the HTTP V2 API, and needs its answers.
func (h *Handler) serveOldHTTPAPI(w http.ResponseWriter, r *http.Request) *refusal {
	j := newJob(h.inFlight)
	defer j.release()
	text := isForm(r) || r.URL.RawQuery != ""
	if refused := h.limits.read(j, r, h.limits.body); refused != nil {
		return refused.inWords(text)
	}
	if startsObject(j.body) {
		refused := j.request.parse(j.body, "events", h.limits.events)
		switch {
		case refused == nil:
			return h.storeParsed(w, r, j)
		case refused.status == http.StatusRequestEntityTooLarge || refused.missingField == "options":
			return refused // not of the old form; else that SDK would drop what it can send in halves
		}
	}
	return h.answerForm(w, r, j, oldHTTPAPI, text)
}

// serveRoot answers POST /: the form of the old SDKs for JavaScript, Android and iOS, and the body of the HTTP V2 API, since
// a server URL without its path is a common mistake.
func (h *Handler) serveRoot(w http.ResponseWriter, r *http.Request) *refusal {
	j := newJob(h.inFlight)
	defer j.release()
	if refused := h.limits.read(j, r, h.limits.body); refused != nil {
		return refused.inWords(isForm(r))
	}
	if !startsObject(j.body) && (isForm(r) || startsOldForm(j.body)) {
		return h.answerForm(w, r, j, oldSDKs, true)
	}
	return h.storeEvents(w, r, j)
}

// serveForm answers another of these endpoints.
func (h *Handler) serveForm(w http.ResponseWriter, r *http.Request, api formAPI) *refusal {
	j := newJob(h.inFlight)
	defer j.release()
	text := isForm(r) || r.URL.RawQuery != ""
	if r.Method == http.MethodGet && len(r.URL.RawQuery) > maxURL {
		return refuseURL.inWords(true)
	}
	if refused := h.limits.read(j, r, h.limits.body); refused != nil {
		return refused.inWords(text)
	}
	return h.answerForm(w, r, j, api, text)
}

// answerForm stores what stands in j.body, or in the query of r: a form, or JSON with members of the same names. text
// says whether refusals are plain words; to JSON they never are.
func (h *Handler) answerForm(w http.ResponseWriter, r *http.Request, j *job, api formAPI, text bool) *refusal {
	if refused := h.storeForm(r, j, api); refused != nil {
		return refused.inWords(text && !startsObject(j.body))
	}
	writeText(w, http.StatusOK, "success")
	return nil
}

// storeForm is answerForm without the answer.
func (h *Handler) storeForm(r *http.Request, j *job, api formAPI) *refusal {
	most := h.limits.events
	if api.most > 0 {
		most = min(most, api.most)
	}
	q := &j.request
	p := parameters{}
	if startsObject(j.body) {
		if refused := q.parse(j.body, api.list, most); refused != nil {
			return refused
		}
	} else {
		if !p.read(r, j.body) {
			return refuseField(api.list)
		}
		if refused := q.fromParameters(p, api, most); refused != nil {
			return refused
		}
	}
	q.event = api.event
	if api.also != nil {
		if refused := api.also(q, p); refused != nil {
			return refused
		}
	}
	_, refused := h.store(r, j)
	return refused
}

// fromParameters fills q; the list and options are JSON texts.
func (q *request) fromParameters(p parameters, api formAPI, maxItems int) *refusal {
	q.reset()
	q.minIDLength = api.minID
	q.key = append(q.key, p[api.key]...)
	if len(q.key) == 0 {
		return refuseNoKey
	}
	c := cutter{b: p[api.list]}
	c.space()
	many, ok := q.cutItems(&c, maxItems, api.list != "e")
	c.space()
	if !ok || c.i != len(c.b) || len(q.items) == 0 {
		return refuseField(api.list)
	}
	if many {
		return refuseMany
	}
	if options := bytes.TrimSpace(p["options"]); len(options) > 0 {
		return q.parseOptions(options)
	}
	return nil
}

// parameters are those of a query and of a form, by name.
type parameters map[string][]byte

// maxParameters is how many there may be; no client sends ten. It bounds the memory of a form that is nothing but names.
const maxParameters = 64

// read takes the query of r and, of a POST, the form in body, which it decodes where it stands. It is false when they
// cannot be read, when one comes twice, or when there are too many.
func (p parameters) read(r *http.Request, body []byte) bool {
	if !p.decode([]byte(r.URL.RawQuery)) {
		return false
	}
	if r.Method != http.MethodPost {
		return true
	}
	if mediaType(r) != "multipart/form-data" {
		return p.decode(body)
	}
	_, attributes, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && p.parts(body, attributes["boundary"])
}

// decode reads application/x-www-form-urlencoded. The values are parts of form, which is overwritten: a form of the
// largest size needs no second one beside it.
func (p parameters) decode(form []byte) bool {
	for len(form) > 0 {
		pair, rest, _ := bytes.Cut(form, []byte("&"))
		form = rest
		if len(pair) == 0 {
			continue
		}
		name, value, _ := bytes.Cut(pair, []byte("="))
		name, ok := unescape(name)
		value, valueOK := unescape(value)
		if !ok || !valueOK || !p.add(string(name), value) {
			return false
		}
	}
	return true
}

func (p parameters) add(name string, value []byte) bool {
	_, twice := p[name]
	if twice || len(p) == maxParameters {
		return false
	}
	p[name] = value
	return true
}

// parts reads a form of a few parts; all of it is in memory already.
func (p parameters) parts(body []byte, boundary string) bool {
	reader := multipart.NewReader(bytes.NewReader(body), boundary)
	for {
		part, err := reader.NextPart()
		if err == io.EOF {
			return true
		}
		if err != nil {
			return false
		}
		value, err := io.ReadAll(part)
		if err != nil || !p.add(part.FormName(), value) {
			return false
		}
	}
}

// unescape undoes the escapes of a form in text itself; ok is false when one is none.
func unescape(text []byte) (plain []byte, ok bool) {
	n := bytes.IndexAny(text, "%+")
	if n < 0 {
		return text, true
	}
	for i := n; i < len(text); i++ {
		c := text[i]
		switch c {
		case '+':
			c = ' '
		case '%':
			if len(text)-i < 3 {
				return nil, false
			}
			high, low := hexDigit(text[i+1]), hexDigit(text[i+2])
			if high > 15 || low > 15 {
				return nil, false
			}
			c = high<<4 | low
			i += 2
		}
		text[n] = c
		n++
	}
	return text[:n:n], true
}

// hexDigit is the value of a digit, 255 = none.
func hexDigit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// mediaType is what the body says it is, without a charset and other attributes, right or wrong.
func mediaType(r *http.Request) string {
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(kind))
}

// isForm says whether the body claims to be a form; curl and others say so of JSON, too.
func isForm(r *http.Request) bool {
	kind := mediaType(r)
	return kind == "application/x-www-form-urlencoded" || kind == "multipart/form-data"
}
