package ingest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

// Behind proxies the address of an event is the visitor's, and nobody can give another's.
func TestAddressOfTheSender(t *testing.T) {
	local := prefixes("127.0.0.1/32", "::1/128")
	inner := prefixes("127.0.0.1/32", "::1/128", "10.0.0.0/8", "fd00::/8")
	for _, test := range []struct {
		name, peer string
		trusted    []netip.Prefix
		header     []string
		want       string
	}{
		{"directly", "203.0.113.9:5000", local, nil, "203.0.113.9"},
		{"directly, by IPv6 with a zone", "[fe80::1%eth0]:5000", local, nil, "fe80::1"},
		{"directly, by IPv4 in IPv6", "[::ffff:203.0.113.9]:5000", local, nil, "203.0.113.9"},
		{"by a unix socket", "@", local, nil, ""},
		{"a visitor who claims to be a proxy", "203.0.113.9:5000", local, []string{"X-Forwarded-For", "198.51.100.1"}, "203.0.113.9"},
		{"behind nginx", "127.0.0.1:5000", local, []string{"X-Forwarded-For", "203.0.113.9"}, "203.0.113.9"},
		{"behind Caddy on ::1", "[::1]:5000", local, []string{"X-Forwarded-For", "2001:db8::7"}, "2001:db8::7"},
		{"behind a proxy on a unix socket", "@", local, []string{"X-Forwarded-For", "203.0.113.9"}, "203.0.113.9"},
		{"no proxy is trusted", "127.0.0.1:5000", nil, []string{"X-Forwarded-For", "203.0.113.9"}, "127.0.0.1"},
		{"a unix socket, no proxy is trusted", "@", nil, []string{"X-Forwarded-For", "203.0.113.9"}, ""},
		{"a visitor who puts somebody else before", "127.0.0.1:5000", local, []string{"X-Forwarded-For", "198.51.100.1, 203.0.113.9"}, "203.0.113.9"},
		{"over two proxies", "127.0.0.1:5000", inner, []string{"X-Forwarded-For", "198.51.100.1, 203.0.113.9, 10.1.2.3"}, "203.0.113.9"},
		{"over two proxies, the list in two lines", "127.0.0.1:5000", inner, []string{"X-Forwarded-For", "198.51.100.1, 203.0.113.9", "X-Forwarded-For", "10.1.2.3"}, "203.0.113.9"},
		{"from inside", "127.0.0.1:5000", inner, []string{"X-Forwarded-For", "10.9.9.9, 10.1.2.3"}, "10.9.9.9"},
		{"with ports", "127.0.0.1:5000", inner, []string{"X-Forwarded-For", "203.0.113.9:4711, [fd00::5]:80"}, "203.0.113.9"},
		{"IPv6 in brackets with a port", "127.0.0.1:5000", local, []string{"X-Forwarded-For", "[2001:db8::7]:4711"}, "2001:db8::7"},
		{"IPv6 in brackets", "127.0.0.1:5000", local, []string{"X-Forwarded-For", "[2001:db8::7]"}, "2001:db8::7"},
		{"IPv6 with a zone", "127.0.0.1:5000", local, []string{"X-Forwarded-For", "fe80::7%eth0"}, "fe80::7"},
		{"IPv4 in IPv6, trusted as IPv4", "127.0.0.1:5000", inner, []string{"X-Forwarded-For", "203.0.113.9, ::ffff:10.1.2.3"}, "203.0.113.9"},
		{"IPv4, trusted as IPv4 in IPv6", "10.1.2.3:5000", prefixes("::ffff:10.0.0.0/104"), []string{"X-Forwarded-For", "203.0.113.9"}, "203.0.113.9"},
		{"empty entries", "127.0.0.1:5000", local, []string{"X-Forwarded-For", " ,203.0.113.9 ,, "}, "203.0.113.9"},
		{"nothing but commas", "127.0.0.1:5000", local, []string{"X-Forwarded-For", ", ,"}, "127.0.0.1"},
		{"no address", "127.0.0.1:5000", local, []string{"X-Forwarded-For", "203.0.113.9, unknown"}, "127.0.0.1"},
		{"no address behind a second proxy", "127.0.0.1:5000", inner, []string{"X-Forwarded-For", "203.0.113.9, _hidden, 10.1.2.3"}, "10.1.2.3"},
		{"brackets around IPv4", "127.0.0.1:5000", local, []string{"X-Forwarded-For", "[203.0.113.9]"}, "127.0.0.1"},
		{"X-Real-IP", "127.0.0.1:5000", local, []string{"X-Real-IP", "198.51.100.1"}, "127.0.0.1"},
		{"Forwarded", "127.0.0.1:5000", local, []string{"Forwarded", "for=198.51.100.1"}, "127.0.0.1"},
		{"all networks are trusted", "203.0.113.9:5000", prefixes("0.0.0.0/0", "::/0"), []string{"X-Forwarded-For", "198.51.100.1, 10.1.2.3"}, "198.51.100.1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := options()
			o.TrustedProxies = test.trusted
			store := &memory{}
			h := New(o, store)
			r := httptest.NewRequest("POST", "/2/httpapi", strings.NewReader(batch(good)))
			r.RemoteAddr = test.peer
			for i := 0; i < len(test.header); i += 2 {
				r.Header.Add(test.header[i], test.header[i+1])
			}
			h.ServeHTTP(httptest.NewRecorder(), r)
			if len(store.arrivals) != 1 || store.arrivals[0].Address != test.want {
				t.Errorf("stored with %+v, want the address %q", store.arrivals, test.want)
			}
			refused := httptest.NewRequest("POST", "/nowhere", nil)
			refused.RemoteAddr, refused.Header = test.peer, r.Header
			h.ServeHTTP(httptest.NewRecorder(), refused)
			if at := h.Door().Refused[0].Address; at != test.want {
				t.Errorf("refused from %q, want %q", at, test.want)
			}
		})
	}
}

// Whatever a visitor writes into the header, and however the proxies split it over
// lines, what is stored is what the outermost trusted proxy saw.
func TestNobodyCanGiveAnothersAddress(t *testing.T) {
	h := New(options(), &memory{})
	h.Trust(prefixes("127.0.0.1/32", "10.0.0.0/8", "fd00::/8"))
	proxy := rapid.SampledFrom([]string{"10.0.0.1", "10.2.3.4:80", "fd00::1", "[fd00::2]:8080", "fd00::3%eth0", "::ffff:10.1.1.1", "127.0.0.1"})
	visitor := rapid.SampledFrom([][2]string{{"203.0.113.9", "203.0.113.9"}, {"[2001:db8::7]:99", "2001:db8::7"}, {"11.0.0.1:1", "11.0.0.1"}, {"fe80::2%wlan0", "fe80::2"}})
	rapid.Check(t, func(t *rapid.T) {
		forged := rapid.SliceOf(rapid.OneOf(proxy, rapid.StringMatching(`[ -~]{0,20}`), rapid.Just("198.51.100.1"))).Draw(t, "forged")
		seen := visitor.Draw(t, "visitor")
		hops := rapid.SliceOfN(proxy, 0, 4).Draw(t, "hops")
		entries := append(append(forged, seen[0]), hops...)
		header := http.Header{}
		line := entries[0]
		for _, e := range entries[1:] {
			if rapid.Bool().Draw(t, "new line") {
				header.Add("X-Forwarded-For", line)
				line = e
				continue
			}
			line += rapid.SampledFrom([]string{",", ", ", " ,\t"}).Draw(t, "comma") + e
		}
		header.Add("X-Forwarded-For", line)
		if got := h.sender(&http.Request{RemoteAddr: "127.0.0.1:1", Header: header}); got != seen[1] {
			t.Fatalf("%q: %q, want %q", header, got, seen[1])
		}
	})
}

// FuzzForwarded: no header makes anything but an address, in its one form, or none.
func FuzzForwarded(f *testing.F) {
	for _, s := range []string{"", "203.0.113.9", "[::1%25]:1, 10.0.0.1", "\x00,", "1.2.3.4:99999", "::ffff:1.2.3.4%x", "0x7f.1", "010.0.0.1"} {
		f.Add(s, "127.0.0.1:1")
	}
	h := New(options(), &memory{})
	h.Trust(prefixes("127.0.0.0/8", "::1/128", "10.0.0.0/8"))
	f.Fuzz(func(t *testing.T, list, peer string) {
		got := h.sender(&http.Request{RemoteAddr: peer, Header: http.Header{"X-Forwarded-For": {list}}})
		if got == "" {
			return
		}
		a, err := netip.ParseAddr(got)
		if err != nil || a.String() != got || a.Is4In6() || a.Zone() != "" {
			t.Fatalf("%q from %q: %q", list, peer, got)
		}
	})
}

func TestHealthzOnThePublicListener(t *testing.T) {
	h := New(options(), &memory{})
	for _, method := range []string{"GET", "HEAD"} {
		w := do(t, h, method, "/healthz", "")
		if w.Code != 200 || w.Header().Get("Cache-Control") != "no-store" || w.Body.String() != "ok\n" { // net/http leaves out the body of HEAD
			t.Errorf("%s: %d %v %q", method, w.Code, w.Header(), w.Body)
		}
	}
	if w := do(t, h, "GET", "/healthz/", ""); w.Code != 200 || w.Body.String() != "ok\n" {
		t.Errorf("with a slash: %d %q", w.Code, w.Body)
	}
	if n := h.Door().Requests; n != 0 {
		t.Errorf("%d requests counted: a load balancer is no sender", n)
	}
	w := do(t, h, "POST", "/healthz", batch(good))
	if w.Code != 400 || w.Header().Get("Allow") != "GET, HEAD, OPTIONS" || !strings.Contains(w.Body.String(), "Invalid request method POST: /healthz is asked by GET or HEAD") {
		t.Errorf("POST: %d %v %s", w.Code, w.Header(), w.Body)
	}
	if reason := spins(w.Code, w.Body.Bytes()); reason != "" {
		t.Error(reason)
	}
}

// A page on the web may send to an ampcio in a private network: the browser asks for that
// in its preflight.
func TestPreflightForAPrivateNetwork(t *testing.T) {
	o := options()
	o.CORSOrigins = []string{"https://shop.example"}
	for origin, want := range map[string]string{"https://shop.example": "true", "https://evil.example": ""} {
		w := do(t, New(o, &memory{}), "OPTIONS", "/2/httpapi", "", "Origin", origin, "Access-Control-Request-Method", "POST",
			"Access-Control-Request-Headers", "content-type", "Access-Control-Request-Private-Network", "true")
		if got := w.Header().Get("Access-Control-Allow-Private-Network"); got != want || (w.Header().Get("Access-Control-Allow-Origin") != "") != (want != "") {
			t.Errorf("%s: %d %v", origin, w.Code, w.Header())
		}
		if varies := fmt.Sprint(w.Header()["Vary"]); !strings.Contains(varies, "Origin") {
			t.Errorf("%s: a cache would give the answer to other origins: Vary %s", origin, varies)
		}
	}
}
