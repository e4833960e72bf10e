package admin

import (
	"net"
	"net/http"
	"strings"
)

// Guard keeps web pages of others away from what the listener shows. A browser on this
// machine can be made to come here by any page: by a name that its owner lets point to
// 127.0.0.1, and that is then the same origin (DNS rebinding). So who comes over the
// loopback must have called it by an address, or by localhost. Nothing may be read from
// another origin, or shown in a frame.
func Guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("X-Frame-Options", "DENY")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		header.Set("Cross-Origin-Opener-Policy", "same-origin")
		if overLoopback(r) && !ownName(r.Host) {
			http.Error(w, "this is ampcio's admin listener, and it is called "+quoted(r.Host)+": only localhost and addresses are answered here, so that no web page can "+
				"read it under a name of its own. Use http://localhost and the port of server.admin; a proxy in front sends Host: localhost", http.StatusMisdirectedRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// overLoopback says whether a request came to a loopback address; one that comes to no
// address that is known counts as if.
func overLoopback(r *http.Request) bool {
	local, known := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !known {
		return true
	}
	tcp, isTCP := local.(*net.TCPAddr)
	return !isTCP || tcp.IP.IsLoopback()
}

// ownName says whether a Host header is an address or localhost, with a port or without.
// An empty one comes from no browser.
func ownName(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(name, "["), "]"), ".")
	name = strings.ToLower(name)
	return name == "" || name == "localhost" || strings.HasSuffix(name, ".localhost") || net.ParseIP(name) != nil
}

func quoted(host string) string {
	if len(host) > 100 {
		host = host[:100] + "…"
	}
	return `"` + host + `"`
}
