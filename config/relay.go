package config

import (
	"net/url"
	"strings"
)

// Relayed says whether the project's events are passed on to Amplitude.
func (p Project) Relayed() bool { return p.Relay == "us" || p.Relay == "eu" }

// Relayed are the names of the projects whose events are passed on to Amplitude, sorted.
func (p Projects) Relayed() (names []string) {
	for _, name := range p.Names() {
		if p[name].Relayed() {
			names = append(names, name)
		}
	}
	return names
}

// relay checks how a project's events are passed on to Amplitude, and that somebody has
// thought of it: without a webhook the project's events come from SDKs.
func (c checker) relay(path string, p *Project) {
	if p.Relay == "" {
		if p.WebhookSecretFile == "" {
			c.check(join(path, "relay"), `must be chosen, since an SDK has one server URL: what it sends here reaches Amplitude only if it is passed on. Write
    relay = "us"    # or "eu", where your Amplitude project is: every event is passed on to Amplitude
    relay = "off"   # Amplitude gets none of these events, or gets them in another way`)
		}
		p.Relay = "off"
	}
	if p.RelayMark != "" && (strings.TrimSpace(p.RelayMark) != p.RelayMark || strings.ContainsFunc(p.RelayMark, func(r rune) bool { return r < ' ' })) {
		c.check(join(path, "relay_mark"), "must be the name of an event property, without a space before or behind it")
	}
	if bound := ByteSize(p.RelayMaxPendingBytes); bound != 0 {
		at := join(path, "relay_max_pending_bytes")
		if bound < MiB {
			c.check(at, "must be at least 1MiB, not %v", bound)
		}
		if bound > c.Storage.MaxBytes {
			c.check(at, "must be at most storage.max_bytes (%v), not %v: that bound would be met first", c.Storage.MaxBytes, bound)
		}
	}
	if p.RelayEndpoint != "" {
		c.relayEndpoint(join(path, "relay_endpoint"), p.RelayEndpoint)
		p.RelayEndpoint = strings.TrimRight(p.RelayEndpoint, "/")
	}
	if !p.Relayed() {
		for _, key := range []struct{ name, value string }{{"relay_mark", p.RelayMark}, {"relay_endpoint", p.RelayEndpoint}} {
			if key.value != "" {
				c.warn(join(path, key.name), `counts for nothing while relay = "off"`)
			}
		}
		return
	}
	if len(p.AmplitudeAPIKeys) == 0 && p.AmplitudeAPIKeysFile == "" {
		c.check(join(path, "amplitude_api_keys"), "required with relay: the key under which Amplitude is to take the events, in Amplitude under Settings > Projects > your project > API Key")
	}
	if p.WebhookSecretFile != "" && p.RelayMark == "" {
		c.warn(join(path, "relay"), "what is passed on to Amplitude comes back through the webhook: set relay_mark, and filter events with that property in Amplitude's webhook destination")
	}
}

// relayMarks warns of marks that no event can get.
func (c checker) relayMarks() {
	for _, name := range c.Project.Relayed() {
		if c.Project[name].RelayMark == "" {
			continue
		}
		taken := false
		for _, sync := range c.Sync.Names() {
			s := c.Sync[sync]
			taken = taken || s.Project == name && s.Enabled && !s.DryRun
		}
		if !taken {
			c.warn(join(join("project", name), "relay_mark"), "no event is marked for now: it marks what a sync of the project takes, and there is none that is enabled and not in a dry run")
		}
	}
}

func (c checker) relayEndpoint(path, written string) {
	u, err := url.Parse(written)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https":
		c.check(path, `must be a base URL such as "http://127.0.0.1:9000" or "https://amplitude.example.com"`)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		c.check(path, "must be a base URL, without a password, ? or #")
	case strings.HasSuffix(strings.TrimRight(u.Path, "/"), "/2/httpapi"):
		c.check(path, "must be a base URL: /2/httpapi is added to it")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		c.check(path, "must be https, since people's data would travel in clear; http is for this machine only (127.0.0.1, [::1], localhost)")
	}
}
