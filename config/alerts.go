package config

import (
	"net/url"
	"strings"
	"time"
)

// alerts finds the address that alerts are posted to, and checks what bounds them. No
// message holds the address: whoever knows that of a webhook can post there.
func (c checker) alerts() {
	a := &c.Alerts
	a.Given = a.URLFile != "" || !a.URL.IsZero()
	const here, file = "alerts.url", "alerts.url_file"
	switch {
	case c.env.NoSecrets:
		a.URL = Secret{}
	case a.URLFile != "" && !a.URL.IsZero():
		c.check(file, "give the address here or in url, not in both")
	case strings.Contains(a.URLFile, "://"):
		c.check(file, "looks like the address itself: this is the name of a file that holds it (not shown here)")
	case a.URLFile != "":
		a.URL, a.URLFrom = c.addressFile(file, a.URLFile)
	case !a.URL.IsZero():
		if a.URLFrom = "url"; c.open {
			c.warn(here, "whoever knows the address of a webhook can post there, and everybody on this machine can read this file: chmod o= %s, or use url_file", c.problems.places.file)
		}
		a.URL = c.webhook(here, "url", a.URL.Reveal())
	}
	within(c, "alerts.after", a.After, 0, Duration(time.Hour))
	within(c, "alerts.over_after", a.OverAfter, 0, Duration(24*time.Hour))
	if a.Repeat != 0 && a.Repeat < Duration(10*time.Minute) {
		c.check("alerts.repeat", `must be at least 10m, or "0s" for never, not %v`, a.Repeat)
	}
	if a.NoTraffic != 0 && a.NoTraffic < Duration(time.Minute) {
		c.check("alerts.no_traffic", `must be at least 1m, or "0s" for never, not %v`, a.NoTraffic)
	}
	if a.DeadLetters < 0 {
		c.check("alerts.dead_letters", "must be 0 (never) or more, not %d", a.DeadLetters)
	}
	if len(a.Name) > 64 || strings.IndexFunc(a.Name, func(r rune) bool { return r < ' ' || r == 0x7f }) >= 0 {
		c.check("alerts.name", "must be at most 64 bytes in one line")
	}
}

// addressFile reads the address from a file of its own, which is where api_key_file
// would be.
func (c checker) addressFile(path, name string) (Secret, string) {
	address, file, ok := c.secretFile(path, name, "the address",
		"write the address that alerts are posted to into it as its only line, and then: chmod 600 %s")
	switch {
	case !ok:
	case address == "":
		c.check(path, "%s is empty: write the address that alerts are posted to into it", file)
	default:
		return c.webhook(path, file, address), file
	}
	return Secret{}, ""
}

// webhook checks an address to post to.
func (c checker) webhook(path, from, address string) Secret {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" || len(address) > 2048 || strings.IndexFunc(address, func(r rune) bool { return r <= ' ' || r == 0x7f }) >= 0:
		c.check(path, `%s does not hold an address to post to, such as "https://hooks.slack.com/services/…" or "https://alerts.example.com/ampcio"`, from)
		return Secret{}
	case u.Scheme == "http" && !loopback(u.Hostname()):
		c.warn(path, "is http: the alerts, and the address itself, travel in clear")
	}
	return NewSecret(address)
}
