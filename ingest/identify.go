package ingest

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"unicode/utf8"

	"ampcio/mapping"
)

// Identify answers in plain words: "success", "missing_event", "invalid_api_key"
// (https://amplitude.com/docs/apis/analytics/identify). Without a form or a query refusals
// are JSON: an SDK whose URL is wrong may be listening.

// serveIdentify answers /identify: a query (GET), a form, or JSON, each with api_key,
// identification (one object or an array of them) and options.
func (h *Handler) serveIdentify(w http.ResponseWriter, r *http.Request) *refusal {
	j := newJob(h.inFlight)
	defer j.release()
	text := isForm(r) || r.URL.RawQuery != ""
	refused := func() *refusal {
		if refused := h.limits.read(j, r, h.limits.body); refused != nil {
			return refused
		}
		if startsObject(j.body) {
			text = false
			if refused := j.request.parse(j.body, "identification", h.limits.events); refused != nil {
				return refused
			}
		} else {
			parameters, ok := identifyParameters(r, j.body)
			if !ok {
				return refuseField("identification")
			}
			if refused := j.request.fromParameters(parameters, h.limits.events); refused != nil {
				return refused
			}
		}
		for i, item := range j.request.items {
			if !j.request.deep[i] {
				j.request.items[i] = asIdentify(item)
			}
		}
		_, refused := h.store(r, j)
		return refused
	}()
	if refused != nil {
		plain := *refused
		plain.text = text
		return &plain
	}
	writeText(w, http.StatusOK, "success")
	return nil
}

// identifyParameters reads the parameters of a query and, for a POST, of the form in its body.
// ok is false when they cannot be read or one comes twice.
func identifyParameters(r *http.Request, body []byte) (map[string]string, bool) {
	parameters := map[string]string{}
	add := func(values url.Values) bool {
		for name, all := range values {
			if _, twice := parameters[name]; twice || len(all) > 1 {
				return false
			}
			parameters[name] = all[0]
		}
		return true
	}

	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil || !add(query) {
		return nil, false
	}
	if r.Method != http.MethodPost {
		return parameters, true
	}
	kind, attributes, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err == nil && kind == "multipart/form-data" {
		form, ok := multipartForm(body, attributes["boundary"])
		return parameters, ok && add(form)
	}
	form, err := url.ParseQuery(string(body))
	return parameters, err == nil && add(form)
}

// multipartForm reads a form of a few parts; all of it is in memory already.
func multipartForm(body []byte, boundary string) (url.Values, bool) {
	const maxParts = 16
	form := url.Values{}
	parts := multipart.NewReader(bytes.NewReader(body), boundary)
	for range maxParts {
		part, err := parts.NextPart()
		if err == io.EOF {
			return form, true
		}
		if err != nil {
			return nil, false
		}
		value, err := io.ReadAll(part)
		if err != nil {
			return nil, false
		}
		form.Add(part.FormName(), string(value))
	}
	return nil, false
}

// fromParameters fills q from form parameters; identification and options are JSON texts.
func (q *request) fromParameters(parameters map[string]string, maxItems int) *refusal {
	q.reset()
	q.key = append(q.key, parameters["api_key"]...)
	if len(q.key) == 0 {
		return refuseNoKey
	}
	c := cutter{b: []byte(parameters["identification"])}
	c.space()
	many, ok := q.cutItems(&c, maxItems)
	c.space()
	if !ok || c.i != len(c.b) || len(q.items) == 0 {
		return refuseField("identification")
	}
	if many {
		return refuseMany
	}
	options := bytes.TrimSpace([]byte(parameters["options"]))
	if len(options) == 0 {
		return nil
	}
	return q.parseOptions(options)
}

// asIdentify is an identification as the $identify event that means the same. What is no
// object is returned as it is, to be refused by its reader.
func asIdentify(identification []byte) []byte {
	if identification[0] != '{' || !utf8.Valid(identification) {
		return identification
	}
	event := append(make([]byte, 0, len(identification)+32), `{"event_type":"$identify"`...)
	err := mapping.Members(identification, func(name string, value []byte) error {
		if name == "event_type" {
			return nil
		}
		event = appendQuoted(append(event, ','), name)
		event = append(append(event, ':'), value...)
		return nil
	})
	if err != nil {
		return identification // a name twice and the like
	}
	return append(event, '}')
}

// isForm says whether the body claims to be a form; curl and others say so of JSON, too.
func isForm(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && (kind == "application/x-www-form-urlencoded" || kind == "multipart/form-data")
}
