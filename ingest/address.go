package ingest

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Trust sets the proxies whose X-Forwarded-For is believed. Safe while requests come.
func (h *Handler) Trust(proxies []netip.Prefix) {
	trusted := make([]netip.Prefix, 0, len(proxies))
	for _, p := range proxies {
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		trusted = append(trusted, p.Masked())
	}
	h.trusted.Store(&trusted)
}

// sender is the address that a request comes from: the other end of the connection or,
// where that is a trusted proxy, whom it names. "" when nothing is known (a unix socket).
//
// Each proxy adds the address of its own visitor at the right end of X-Forwarded-For, and
// lets whatever came with the request stand to the left. So the list is read from the right,
// over trusted proxies, up to the first other address; what is left of that anybody could
// have written. An entry that is no address ends the walk: then it is the last trusted
// proxy's own address that is known, and nothing else.
//
// X-Real-IP and Forwarded (RFC 7239) are not believed: nginx and Caddy pass on a visitor's
// own unless they are told otherwise.
func (h *Handler) sender(r *http.Request) string {
	address := peer(r)
	trusted := *h.trusted.Load()
	believed := address
	if !address.IsValid() {
		believed = loopback // who comes by a unix socket is on this machine
	}
	lists := r.Header["X-Forwarded-For"]
	for i := len(lists) - 1; i >= 0 && trusts(trusted, believed); i-- {
		for rest := lists[i]; rest != "" && trusts(trusted, believed); {
			var entry string
			if at := strings.LastIndexByte(rest, ','); at >= 0 {
				rest, entry = rest[:at], rest[at+1:]
			} else {
				rest, entry = "", rest
			}
			if entry = strings.Trim(entry, " \t"); entry == "" {
				continue // RFC 9110: a list may have empty entries
			}
			next, ok := forwarded(entry)
			if !ok {
				return shown(address)
			}
			address, believed = next, next
		}
	}
	return shown(address)
}

// way is by which way a request has come.
func (h *Handler) way(r *http.Request) *Request {
	address := peer(r)
	believed := address
	if !address.IsValid() {
		believed = loopback
	}
	proxied := len(r.Header["X-Forwarded-For"]) > 0
	return &Request{At: h.now().UTC(), Peer: shown(address), Proxied: proxied, Trusted: proxied && trusts(*h.trusted.Load(), believed)}
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func trusts(proxies []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(proxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// forwarded reads an entry of X-Forwarded-For: an address, which may have a port behind
// it, and an IPv6 one brackets around it.
func forwarded(entry string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(entry); err == nil {
		return bare(a), true
	}
	if a, err := netip.ParseAddrPort(entry); err == nil {
		return bare(a.Addr()), true
	}
	inner, open := strings.CutPrefix(entry, "[")
	inner, closed := strings.CutSuffix(inner, "]")
	if a, err := netip.ParseAddr(inner); err == nil && open && closed && a.Is6() {
		return bare(a), true
	}
	return netip.Addr{}, false
}

// bare is the address in the one form in which it is compared and stored.
func bare(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func shown(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// peer is the address of the other end of the connection; not valid when it has none.
func peer(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return bare(a.Addr())
}
