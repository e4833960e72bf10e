package alerts

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// house is a desk that runs in virtual time, with somebody who looks every ten seconds.
type house struct {
	t     *testing.T
	desk  *Desk
	wrong map[string]Trouble
	dark  bool          // nothing can be seen
	set   time.Duration // how far the clock is from the right time
	end   func()
	log   *bytes.Buffer
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answers(status int, header ...string) (*http.Response, error) {
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(""))}, nil
}

func newHouse(t *testing.T, s shelf, transport http.RoundTripper) *house {
	t.Helper()
	h := &house{t: t, wrong: map[string]Trouble{}, log: &bytes.Buffer{}}
	h.desk = open(Options{URL: "https://alerts.example/secret-path", Instance: "vm", Version: "1", After: time.Minute, OverAfter: 5 * time.Minute, Repeat: 24 * time.Hour,
		Transport: transport, Log: slog.New(slog.NewTextHandler(h.log, nil))}, s)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { h.desk.Run(ctx); close(ended) }()
	h.end = func() { cancel(); <-ended }
	return h
}

func (h *house) passes(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Second) {
		s := Sight{At: time.Now().Add(h.set)}
		for _, w := range h.wrong {
			if !h.dark {
				s.Troubles = append(s.Troubles, w)
			}
		}
		if h.dark {
			s.Unclear = func(string, string) bool { return true }
		}
		h.desk.Look(s)
	}
	synctest.Wait()
}

func (h *house) trouble(kind, of, cause, level string) {
	h.wrong[kind+of] = Trouble{Kind: kind, Of: of, Cause: cause, Level: level, What: of + " is wrong", Do: "mend it"}
}

// events are what was told, in short.
func (r *receiver) events() string {
	var all []string
	for _, p := range r.told {
		all = append(all, p.Event+" "+p.Kind+" "+p.names())
	}
	return strings.Join(all, "; ")
}

func TestWhenItIsTold(t *testing.T) {
	tests := []struct {
		name string
		live func(h *house)
		want string
	}{
		{"not what is over within a minute", func(h *house) {
			h.trouble("blocked", "a", "", Critical)
			h.passes(50 * time.Second)
			clear(h.wrong)
			h.passes(time.Hour)
		}, ""},
		{"once, and its end", func(h *house) {
			h.trouble("blocked", "a", "", Critical)
			h.passes(20 * time.Hour)
			clear(h.wrong)
			h.passes(time.Hour)
		}, "firing blocked a; over blocked a"},
		{"what lasts again each day", func(h *house) {
			h.trouble("blocked", "a", "", Critical)
			h.passes(50 * time.Hour)
		}, "firing blocked a; still blocked a; still blocked a"},
		{"a minute after the clock is set back by days, and the end likewise", func(h *house) {
			h.trouble("blocked", "a", "", Critical)
			h.passes(30 * time.Second)
			h.set = -72 * time.Hour
			h.passes(2 * time.Minute)
			clear(h.wrong)
			h.passes(time.Minute)
			h.set = -144 * time.Hour
			h.passes(10 * time.Minute)
		}, "firing blocked a; over blocked a"},
		{"what lasts again each day, also after the clock was set back by a year", func(h *house) {
			h.trouble("blocked", "a", "", Critical)
			h.passes(time.Hour)
			h.set = -365 * 24 * time.Hour
			h.passes(25 * time.Hour)
		}, "firing blocked a; still blocked a"},
		{"many of one cause together, and others apart", func(h *house) {
			h.trouble("blocked", "a", "401", Critical)
			h.passes(30 * time.Second)
			h.trouble("blocked", "b", "401", Critical)
			h.trouble("blocked", "c", "other", Critical)
			h.passes(time.Hour)
			clear(h.wrong)
			h.passes(time.Hour)
		}, "firing blocked a, b; firing blocked c; over blocked a, b; over blocked c"},
		{"what gets worse, once", func(h *house) {
			h.trouble("disk", "", "", Warning)
			h.passes(time.Hour)
			h.trouble("disk", "", "", Critical)
			h.passes(time.Hour)
			h.trouble("disk", "", "", Warning)
			h.passes(time.Hour)
			h.trouble("disk", "", "", Critical)
			h.passes(time.Hour)
		}, "firing disk ; worse disk "},
		{"nothing of what cannot be seen", func(h *house) {
			h.trouble("blocked", "b", "", Critical)
			h.passes(30 * time.Second)
			h.dark = true
			h.passes(48 * time.Hour)
			h.dark = false
			clear(h.wrong)
			h.passes(time.Hour)
			h.trouble("blocked", "a", "", Critical)
			h.passes(time.Hour)
			h.dark = true
			h.passes(20 * time.Hour)
			h.dark = false
			h.passes(time.Hour)
			clear(h.wrong)
			h.passes(time.Hour)
		}, "firing blocked a; over blocked a"},
		{"not again what somebody knows of", func(h *house) {
			h.trouble("blocked", "a", "", Critical)
			h.passes(time.Hour)
			known := h.wrong["blockeda"]
			known.Known = true
			h.wrong["blockeda"] = known
			h.passes(72 * time.Hour)
		}, "firing blocked a"},
		{"what comes and goes, seldom", func(h *house) {
			for range 6 * 6 { // six hours
				h.trouble("blocked", "a", "", Critical)
				h.passes(4 * time.Minute)
				clear(h.wrong)
				h.passes(6 * time.Minute)
			}
		}, "firing blocked a; over blocked a; firing blocked a"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &receiver{status: 200, seen: map[string]string{}}
				h := newHouse(t, &memoryShelf{}, r)
				test.live(h)
				h.end()
				if got := r.events(); got != test.want {
					t.Errorf("told:  %s\nwant:  %s", got, test.want)
				}
			})
		})
	}
}

// The other side fails in each of its ways: the message comes through when it mends, in
// order, once, the log has few lines, and nobody is asked often.
func TestTheOtherSideFails(t *testing.T) {
	// Two thirds of longestTry less half of that by chance are 5 minutes: 72 times in six hours, after the first, shorter waits.
	const often = 72 + 9
	for _, test := range []struct {
		name   string
		fails  roundTrip
		says   string
		most   int // requests in six hours
		before bool
	}{
		{"hangs", func(r *http.Request) (*http.Response, error) { <-r.Context().Done(); return nil, r.Context().Err() }, "no answer within 10 s", often, false},
		{"404", func(*http.Request) (*http.Response, error) { return answers(404) }, "404 Not Found", often, false},
		{"429 with a Retry-After", func(*http.Request) (*http.Response, error) { return answers(429, "Retry-After", "7200") }, "429 Too Many Requests", 4, false},
		{"redirects", func(*http.Request) (*http.Response, error) {
			return answers(307, "Location", "https://alerts.example/elsewhere")
		}, "it redirects to another address", often, false},
		{"is gone", func(*http.Request) (*http.Response, error) {
			return nil, fmt.Errorf("dial https://alerts.example/secret-path")
		}, "there was no answer that is HTTP", often, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, requests, failing := &receiver{status: 200, seen: map[string]string{}}, 0, true
				disk := &memoryShelf{}
				h := newHouse(t, disk, roundTrip(func(req *http.Request) (*http.Response, error) {
					if requests++; failing {
						return test.fails(req)
					}
					return r.RoundTrip(req)
				}))
				h.trouble("blocked", "a", "", Critical)
				h.passes(time.Hour)
				clear(h.wrong)
				h.passes(5 * time.Hour)
				if requests < 2 || requests > test.most {
					t.Errorf("%d requests in six hours", requests)
				}
				l := h.desk.List()
				if len(l.Waiting) != 2 || l.Trouble == "" || l.Next == nil || len(l.Firing) != 0 {
					t.Errorf("%+v", l)
				}
				log := h.log.String()
				if n := strings.Count(log, notPosted.Message); n < 1 || n > 7 || !strings.Contains(log, test.says) || strings.Contains(log, "secret-path") {
					t.Errorf("%d lines:\n%s", n, log)
				}
				failing = false
				h.passes(3 * time.Hour)
				h.end()
				if got := r.events(); got != "firing blocked a; over blocked a" || r.again > 0 {
					t.Errorf("told: %s, %d again", got, r.again)
				}
				if !strings.Contains(h.log.String(), notPosted.Over) {
					t.Errorf("nothing says that it is over:\n%s", h.log)
				}
				if text := r.told[0].Text; !strings.Contains(text, "late: it could not be posted before") {
					t.Errorf("%s", text)
				}
			})
		})
	}
}

// A message that the other side calls a bad one does not hold up the others for ever.
func TestABadMessageIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{status: 200, seen: map[string]string{}}
		h := newHouse(t, &memoryShelf{}, roundTrip(func(req *http.Request) (*http.Response, error) {
			b, _ := io.ReadAll(req.Body)
			if bytes.Contains(b, []byte("[CRITICAL] ampcio on vm: events wait too long: a")) {
				return answers(400)
			}
			req.Body = io.NopCloser(bytes.NewReader(b))
			return r.RoundTrip(req)
		}))
		h.trouble("age", "a", "", Critical)
		h.passes(time.Hour)
		h.trouble("blocked", "a", "", Critical)
		h.passes(time.Hour)
		h.end()
		if got := r.events(); got != "firing blocked a" || r.told[0].Earlier == nil || r.told[0].Earlier.Count != 1 {
			t.Errorf("told: %s", got)
		}
	})
}

// While nobody listens messages collapse, and the first and the newest stay.
func TestManyMessagesCollapse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{status: 503, seen: map[string]string{}}
		disk := &memoryShelf{}
		h := newHouse(t, disk, r)
		for i := range 80 {
			h.trouble("blocked", fmt.Sprintf("s%d", i), fmt.Sprint(i), Critical)
			h.passes(2 * time.Minute)
		}
		if n := len(h.desk.List().Waiting); n != mostWaiting {
			t.Errorf("%d wait", n)
		}
		if len(disk.kept) > 200_000 {
			t.Errorf("the file has %d bytes", len(disk.kept))
		}
		r.status = 200
		h.passes(time.Hour)
		h.end()
		if n := len(r.told); n != mostWaiting || r.told[0].names() != "s0" || r.told[n-1].names() != "s79" {
			t.Fatalf("%d were told", n)
		}
		if e := r.told[1].Earlier; e == nil || e.Count != 30 || !strings.Contains(r.told[1].Text, "30 earlier messages could not be posted") ||
			!strings.Contains(r.told[1].Text, "still wrong: ") {
			t.Errorf("%+v\n%s", e, r.told[1].Text)
		}
	})
}

// A restart neither repeats what was told nor forgets its end; what waits is posted.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "alerts.json")
		r := &receiver{status: 200, seen: map[string]string{}}
		h := newHouse(t, fileShelf{path}, r)
		h.trouble("blocked", "a", "", Critical)
		h.passes(time.Hour)
		h.end()
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Error(st, err)
		}
		h = newHouse(t, fileShelf{path}, r)
		h.trouble("blocked", "a", "", Critical)
		h.passes(time.Hour)
		h.end()
		r.status = 503
		time.Sleep(time.Hour)
		h = newHouse(t, fileShelf{path}, r) // it is over meanwhile
		h.passes(time.Hour)
		h.end()
		if l, err := ReadList(path); err != nil || len(l.Waiting) != 1 || len(l.Firing) != 0 {
			t.Errorf("%+v, %v", l, err)
		}
		r.status = 200
		h = newHouse(t, fileShelf{path}, r)
		h.passes(time.Minute)
		h.end()
		if got := r.events(); got != "firing blocked a; over blocked a" {
			t.Errorf("told: %s", got)
		}
	})
}

// A disk that is full, or hangs, holds up no alert.
func TestWithoutADisk(t *testing.T) {
	for _, fails := range []string{"lost", "kept"} {
		synctest.Test(t, func(t *testing.T) {
			disk := &memoryShelf{fails: fails}
			r := &receiver{status: 200, seen: map[string]string{}}
			h := newHouse(t, disk, r)
			h.trouble("disk", "", "", Critical)
			h.passes(2 * time.Hour)
			if l := h.desk.List(); l.NotKept == "" {
				t.Errorf("%+v", l)
			}
			disk.fails = ""
			clear(h.wrong)
			h.passes(time.Hour)
			h.end()
			if got := r.events(); got != "firing disk ; over disk " {
				t.Errorf("told: %s", got)
			}
			log := h.log.String()
			if n := strings.Count(log, notKept.Message); n < 1 || n > 5 || !strings.Contains(log, notKept.Over) {
				t.Errorf("%s", log)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		r := &receiver{status: 200, seen: map[string]string{}}
		h := newHouse(t, hanging{hang}, r)
		h.trouble("stuck", "", "", Critical)
		h.passes(3 * time.Minute)
		if got := r.events(); got != "firing stuck " {
			t.Errorf("told: %s", got)
		}
		close(hang)
		h.end()
	})
}

type hanging struct{ until chan struct{} }

func (h hanging) read() ([]byte, error) { return nil, nil }
func (h hanging) write([]byte) error    { <-h.until; return nil }

// A file that makes no sense, or is of a later version, counts as none.
func TestFileThatMakesNoSense(t *testing.T) {
	for _, text := range []string{"{", `{"format":2}`, `{"format":0}`, `{"format":1,"known":{"a b":null}}`, `{"format":1,"known":{"a b":{"kind":"x"}}}`, "\x00\x00"} {
		var log bytes.Buffer
		d := open(Options{Log: slog.New(slog.NewTextHandler(&log, nil))}, &memoryShelf{kept: []byte(text)})
		if !strings.Contains(log.String(), "they begin anew") {
			t.Errorf("%q: %s", text, &log)
		}
		d.Look(Sight{At: time.Now(), Troubles: []Trouble{{Kind: "k", Level: Warning}}})
	}
}

// Another address hears at once what is firing; the old one's refusals count for nothing.
func TestAnotherAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var to []string
		status := 404
		transport := roundTrip(func(req *http.Request) (*http.Response, error) {
			to = append(to, req.URL.Path)
			if req.URL.Path == "/new" {
				return answers(200)
			}
			return answers(status)
		})
		h := newHouse(t, &memoryShelf{}, transport)
		h.trouble("blocked", "a", "", Critical)
		h.passes(6 * time.Hour)
		before := len(to)
		o := h.desk.o
		o.URL = "https://alerts.example/new"
		h.desk.Set(o)
		h.passes(20 * time.Second)
		if n := len(to) - before; n != 2 || len(h.desk.List().Waiting) != 0 { // what waited, and what is firing
			t.Errorf("%d posts: %v", n, to[before:])
		}
		h.desk.Set(o)
		h.passes(time.Hour)
		if n := len(to) - before; n != 2 {
			t.Errorf("%d posts: %v", n, to[before:])
		}
		h.end()
	})
}

func TestWordsOfAnAnswer(t *testing.T) {
	secret := "T0000/B0000/s3cr3ts3cr3t"
	mux := http.NewServeMux()
	for path, status := range map[string]int{"/ok/": 200, "/gone/": 404, "/ask/": 429, "/move/": 302, "/bad/": 400} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "/ok/"+secret)
			w.WriteHeader(status)
			fmt.Fprintf(w, "nothing\n\tat %s\x00", r.URL)
		})
	}
	plain, tls := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	defer plain.Close()
	defer tls.Close()
	refusing := httptest.NewServer(mux)
	refusing.Close()
	for _, test := range []struct{ url, words, body, advice string }{
		{plain.URL + "/ok/" + secret, "200 OK", "nothing at [redacted]", ""},
		{plain.URL + "/gone/" + secret + "?key=abcdefg", "404 Not Found", "nothing at [redacted]", "nobody at that address"},
		{plain.URL + "/ask/" + secret, "429 Too Many Requests", "nothing at", "patience"},
		{plain.URL + "/move/" + secret, "302 Found", "", "redirects"},
		{plain.URL + "/bad/" + secret, "400 Bad Request", "", "alerts.format"},
		{refusing.URL + "/" + secret, "the connection was refused", "", "is the port"},
		{tls.URL + "/ok/" + secret, "of an authority that this machine does not know", "", "ca-certificates"},
		{strings.Replace(plain.URL, "http:", "https:", 1) + "/" + secret, "no TLS is spoken there", "", "http://"},
		{"http://nobody.invalid/" + secret, "the name is not known", "", "host"},
	} {
		a := PostTest(t.Context(), Options{URL: test.url, Instance: "vm"})
		all := a.Words + a.Body + a.Advice + a.To
		if !strings.Contains(a.Words, test.words) || !strings.Contains(a.Body, test.body) || !strings.Contains(a.Advice, test.advice) || a.OK != (test.advice == "") ||
			strings.Contains(all, "s3cr3t") || strings.Contains(all, "abcdefg") {
			t.Errorf("%s: %+v", test.url, a)
		}
	}
}

func TestFormatOfAnAddress(t *testing.T) {
	for _, test := range []struct{ format, url, want string }{
		{"auto", "https://hooks.slack.com/services/T0/B0/x", Slack},
		{"", "https://hooks.slack.com/services/T0/B0/x", Slack},
		{"json", "https://hooks.slack.com/services/T0/B0/x", JSON},
		{"auto", "https://alerts.example/hooks.slack.com", JSON},
		{"slack", "https://mattermost.example/hooks/x", Slack},
		{"auto", ":", JSON},
	} {
		if got := formatOf(test.format, test.url); got != test.want {
			t.Errorf("%+v: %s", test, got)
		}
	}
}
