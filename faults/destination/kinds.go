package destination

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"
)

// A kind is one way to fail. It has one of front, faults, or dns.
type kind struct {
	name   string
	front  func(rng *rand.Rand) shape // at the address
	faults string                     // of the sandbox, with SHARE for a share, as sandbox.ParseFaults reads them
	tls    bool                       // only where there is TLS
	dns    bool                       // the name does not resolve; a person has written it down, and corrects it
	blocks bool                       // deliveries wait for a person, who mends it
	anew   bool                       // seen at a start only: the daemon is killed and started
	silent bool                       // seen only by who waits until the timeout: it lasts until then
	// workspace: the account's keys lead to another one than that for which events are pending; a person adopts it.
	workspace bool
}

// timeout is of one request, in the daemon's configuration.
const timeout = 250 * time.Millisecond

func raw(f func(net.Conn)) func(*rand.Rand) shape {
	return func(*rand.Rand) shape { return shape{raw: f} }
}

func handshake(f func(*keys, *tls.Config)) func(*rand.Rand) shape {
	return func(*rand.Rand) shape { return shape{tls: f} }
}

// answers is a front of which each request meets f, with the chance of this stretch of time.
func answers(f func(w http.ResponseWriter, r *http.Request, inner http.Handler)) func(*rand.Rand) shape {
	return func(rng *rand.Rand) shape {
		sometimes, seed := rng.IntN(2) == 0, rng.Uint64()
		met := make(chan uint64, 1)
		met <- 0
		return shape{does: func(w http.ResponseWriter, r *http.Request, inner http.Handler) {
			n := <-met
			met <- n + 1
			if sometimes && rand.New(rand.NewPCG(seed, n)).IntN(2) == 0 {
				inner.ServeHTTP(w, r)
				return
			}
			f(w, r, inner)
		}}
	}
}

// instead answers this, whether the sandbox has processed the request or not.
func instead(processed bool, status int, contentType, body string) func(*rand.Rand) shape {
	return answers(func(w http.ResponseWriter, r *http.Request, inner http.Handler) {
		if processed {
			process(inner, r)
		}
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

// huge answers in the same way with 5 MiB and more. They are made only when they are needed: each process of this program
// starts with this package.
func huge(processed bool, status int, contentType, begin, again, end string) func(*rand.Rand) shape {
	return func(r *rand.Rand) shape {
		return instead(processed, status, contentType, begin+strings.Repeat(again, 1+5<<20/len(again))+end)(r)
	}
}

// process lets the sandbox process a request, and gives its answer. A cut is no answer: status 0.
func process(inner http.Handler, r *http.Request) (answer *httptest.ResponseRecorder) {
	answer = httptest.NewRecorder()
	defer func() {
		if p := recover(); p != nil { // that is how the sandbox cuts a connection
			if p != http.ErrAbortHandler {
				panic(p)
			}
			answer.Code = 0
		}
	}()
	inner.ServeHTTP(answer, r)
	return answer
}

// pass hands on an answer of the sandbox.
func pass(w http.ResponseWriter, a *httptest.ResponseRecorder) {
	if a.Code == 0 {
		panic(http.ErrAbortHandler)
	}
	for k, v := range a.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(a.Code)
	_, _ = w.Write(a.Body.Bytes())
}

// detach makes a request of its own, which is processed whether or not the client waits.
func detach(r *http.Request) (*http.Request, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	own := r.Clone(r.Context())
	own = own.WithContext(contextOfNobody)
	own.Body = io.NopCloser(bytes.NewReader(body))
	return own, nil
}

// operationsIn counts the operations of a batch, and leaves the body as it was.
func operationsIn(r *http.Request) int {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	var b struct{ Batch []json.RawMessage }
	_ = json.Unmarshal(body, &b)
	return len(b.Batch)
}

// onlyFew refuses whole requests with more than a few operations, as something before Customer.io may.
func onlyFew(status int) func(*rand.Rand) shape {
	return answers(func(w http.ResponseWriter, r *http.Request, inner http.Handler) {
		if operationsIn(r) > 3 {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"meta":{"error":"too much of it"}}`)
			return
		}
		inner.ServeHTTP(w, r)
	})
}

// reword changes each element of a 207's errors before it is answered.
func reword(change func(map[string]any)) func(*rand.Rand) shape {
	return answers(func(w http.ResponseWriter, r *http.Request, inner http.Handler) {
		a := process(inner, r)
		var body struct {
			Errors []map[string]any `json:"errors"`
		}
		if a.Code == http.StatusMultiStatus && json.Unmarshal(a.Body.Bytes(), &body) == nil {
			for _, e := range body.Errors {
				change(e)
			}
			text, err := json.Marshal(body)
			if err != nil {
				panic(err)
			}
			a.Body = bytes.NewBuffer(text)
		}
		pass(w, a)
	})
}

// processedLate answers a request after its client has given up: it was processed all the same, before or after that.
func processedLate(before bool) func(*rand.Rand) shape {
	return answers(func(w http.ResponseWriter, r *http.Request, inner http.Handler) {
		own, err := detach(r)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		var a *httptest.ResponseRecorder
		if before {
			a = process(inner, own)
		}
		select {
		case <-r.Context().Done():
		case <-time.After(4 * timeout):
		}
		if !before {
			a = process(inner, own)
		}
		pass(w, a)
	})
}

// drip answers what the sandbox has answered, byte by byte.
func drip(pause time.Duration) func(*rand.Rand) shape {
	return answers(func(w http.ResponseWriter, r *http.Request, inner http.Handler) {
		a := process(inner, r)
		if a.Code == 0 {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(a.Code)
		flush := http.NewResponseController(w)
		for _, b := range a.Body.Bytes() {
			select {
			case <-time.After(pause):
			case <-r.Context().Done():
				panic(http.ErrAbortHandler)
			}
			if _, err := w.Write([]byte{b}); err != nil || flush.Flush() != nil {
				panic(http.ErrAbortHandler)
			}
		}
	})
}

// kinds are all ways to fail.
var kinds = []kind{
	{name: "refused", front: func(*rand.Rand) shape { return shape{gone: true} }},
	{name: "DNS gone", dns: true},
	{name: "silence", silent: true, front: raw(func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })},
	{name: "reset", front: raw(func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0); c.Close() })},
	{name: "reset while sending", front: raw(func(c net.Conn) {
		_, _ = io.CopyN(io.Discard, c, 200)
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	})},
	{name: "another protocol", front: raw(func(c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.2p1\r\n"); c.Close() })},

	{name: "TLS: wrong name", tls: true, front: handshake(func(k *keys, c *tls.Config) { c.Certificates = []tls.Certificate{k.name} })},
	{name: "TLS: expired", tls: true, front: handshake(func(k *keys, c *tls.Config) { c.Certificates = []tls.Certificate{k.expired} })},
	{name: "TLS: not yet valid", tls: true, front: handshake(func(k *keys, c *tls.Config) { c.Certificates = []tls.Certificate{k.early} })},
	{name: "TLS: self-signed", tls: true, front: handshake(func(k *keys, c *tls.Config) { c.Certificates = []tls.Certificate{k.self} })},
	{name: "TLS: too old", tls: true, front: handshake(func(_ *keys, c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 })},
	{name: "TLS: plaintext", tls: true, front: func(*rand.Rand) shape { return shape{http: true} }},

	{name: "500", faults: "500=SHARE"}, {name: "502", faults: "502=SHARE"}, {name: "503", faults: "503=SHARE"}, {name: "504", faults: "504=SHARE"},
	{name: "408", faults: "408=SHARE"},
	{name: "429 with Retry-After", faults: "429=SHARE,retry_after=1s"},
	{name: "429 without Retry-After", faults: "429=SHARE,retry_after=never"},
	{name: "few requests allowed", faults: "rate_limit=20,retry_after=never"},
	{name: "hang", silent: true, faults: "hang=SHARE,hang_for=20s"},
	{name: "cut before processing", faults: "cut_before=SHARE"},
	{name: "cut after processing", faults: "cut_after=SHARE"},
	{name: "HTML 200", faults: "garbage=SHARE"},
	{name: "HTML 200, processed", faults: "garbage_applied=SHARE"},
	{name: "half an answer", faults: "truncate=SHARE"},

	{name: "empty 200", front: instead(false, 200, "application/json", "")},
	{name: "empty 200, processed", front: instead(true, 200, "application/json", "")},
	{name: "204, processed", front: instead(true, 204, "application/json", "")},
	{name: "truncated JSON", front: instead(false, 200, "application/json", `{"errors":[`)},
	{name: "truncated JSON, processed", front: instead(true, 200, "application/json", `{"errors":[{"batch_index":0,"rea`)},
	{name: "a list", front: instead(false, 200, "application/json", `[]`)},
	{name: "null", front: instead(false, 200, "application/json", `null`)},
	{name: "huge answer", front: huge(false, 200, "application/json", `{"padding":"`, "x", `"}`)},
	{name: "huge answer, processed", front: huge(true, 200, "application/json", `{"padding":"`, "x", `"}`)},
	{name: "huge HTML 500", front: huge(false, 500, "text/html", "", "<p>sorry</p>", "")},
	{name: "HTML 400", front: instead(false, 400, "text/html", "<h1>Bad Request</h1>")},
	{name: "207 without a list", front: instead(true, 207, "application/json", `{}`)},
	{name: "207 with a strange list", front: instead(true, 207, "application/json", `{"errors":{"0":"bad"}}`)},

	{name: "wrong content type", front: answers(func(w http.ResponseWriter, r *http.Request, inner http.Handler) {
		a := process(inner, r)
		a.Header().Set("Content-Type", "text/html")
		pass(w, a)
	})},
	{name: "one answer a connection", front: answers(func(w http.ResponseWriter, r *http.Request, inner http.Handler) {
		w.Header().Set("Connection", "close")
		inner.ServeHTTP(w, r)
	})},
	{name: "answer before the request is read", front: answers(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusServiceUnavailable)
	})},
	{name: "413 above a few", front: onlyFew(413)}, {name: "400 above a few", front: onlyFew(400)},
	{name: "207 that names nobody", front: reword(func(e map[string]any) { delete(e, "batch_index") })},
	{name: "207 that names one who is not there", front: reword(func(e map[string]any) { e["batch_index"] = 100_000 })},
	{name: "207 in other words", front: reword(func(e map[string]any) {
		e["reason"], e["field"], e["message"] = 17, nil, map[string]any{"a": []int{1}}
	})},
	{name: "slow drip", front: drip(100 * time.Millisecond)},
	{name: "drip in time", front: drip(2 * time.Millisecond)},
	{name: "too late, processed before", front: processedLate(true)},
	{name: "too late, processed after", front: processedLate(false)},

	{name: "one user fails: 500", faults: "poison=demo-user-00003,poison_how=500"},
	{name: "one user fails: 503", faults: "poison=demo-user-00004,poison_how=503"},
	{name: "one user fails: cut", faults: "poison=demo-user-00005,poison_how=cut"},
	{name: "one user fails: hang", silent: true, faults: "poison=demo-user-00006,poison_how=hang,hang_for=20s"},
	{name: "one user fails: HTML", faults: "poison=demo-user-00007,poison_how=garbage"},

	{name: "401", faults: "401=100%", blocks: true},
	{name: "401 now and then", faults: "401=SHARE", blocks: true},
	{name: "401 for data", faults: "401=100%,on=data", blocks: true},
	{name: "403", faults: "403=100%", blocks: true},
	{name: "403 for data", faults: "403=100%,on=data", blocks: true},
	{name: "404", faults: "404=100%", blocks: true},
	{name: "405", faults: "405=SHARE", blocks: true},
	{name: "redirect", faults: "redirect=SHARE,redirect_to=HERE", blocks: true},
	{name: "redirect to nowhere", faults: "redirect=SHARE", blocks: true},
	{name: "another workspace", workspace: true, anew: true},
	{name: "region unknown", faults: "503=100%,on=region", anew: true},
	{name: "wrong region", blocks: true, anew: true, front: func(*rand.Rand) shape {
		return shape{does: func(w http.ResponseWriter, r *http.Request, inner http.Handler) {
			if r.Method == http.MethodGet {
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprintln(w, `{"url":"https://track.customer.io","region":"us","environment_id":1}`)
				return
			}
			inner.ServeHTTP(w, r)
		}}
	}},
}
