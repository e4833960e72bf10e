package delivery_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ampcio/delivery"
	"ampcio/sandbox"
)

// Something on the way does not find a person whose identifier has a slash: their large event, which goes by v1, is kept as a
// dead letter, and all else arrives. Where nothing is found at all, the address is wrong, and everything waits.
func TestNotFoundForOnePerson(t *testing.T) {
	for _, status := range []int{http.StatusNotFound, http.StatusMethodNotAllowed} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1})
				var moved atomic.Bool
				h := open(t, dir, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if moved.Load() && r.Method == http.MethodPost || strings.Contains(r.URL.EscapedPath(), "%2F") {
						w.Header().Set("Content-Type", "text/html")
						w.WriteHeader(status)
						_, _ = w.Write([]byte("<h1>not here</h1>"))
						return
					}
					box.ServeHTTP(w, r)
				}), rules(t, nil), nil)
				large := `,"p":"` + strings.Repeat("x", 40_000) + `"`
				all := []event{{user: "ann", n: 1, more: large}, {user: "a/b", n: 1}, {user: "a/b", n: 2, more: large}, {user: "a/b", n: 3}, {user: "bob", n: 1, more: large}}
				moved.Store(true)
				h.append(all...)
				h.within(time.Minute, "it is blocked", func() bool { return h.sync.Status().State == delivery.Blocked })
				time.Sleep(time.Hour) // virtual: nothing may happen meanwhile
				if s, b := h.sync.Status(), h.stats().Books; s.State != delivery.Blocked || s.Reason != "wrong_endpoint" || b.Pending != 5 || b.Dead != 0 {
					t.Errorf("status %+v, books %+v", s, b)
				}
				moved.Store(false)
				b := h.drained(5 * time.Minute).Books
				if s := h.sync.Status(); b.Delivered != 4 || b.Dead != 1 || s.State != delivery.Delivering {
					t.Errorf("books %+v, status %+v", b, s)
				}
				h.close()
				if d := h.buried; len(d) != 1 || d[0].Reason != "http_"+map[int]string{404: "404", 405: "405"}[status] {
					t.Errorf("dead letters %+v", d)
				}
				for user, want := range map[string]int{"ann": 1, "a/b": 2, "bob": 1} {
					if p, _ := box.Person("id", user); len(p.Events) != want {
						t.Errorf("%s has %d events, not %d", user, len(p.Events), want)
					}
				}
			})
		})
	}
}
