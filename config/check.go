package config

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// checker checks what decoding cannot see: ranges, addresses, what is required, and
// what must agree with something else.
type checker struct {
	*Config
	*problems
	env    Environment
	open   bool   // the configuration file can be read by everybody
	folder string // that holds the configuration file
}

func (c checker) all() {
	c.server()
	c.storage()
	c.projects()
	c.syncs()
	c.relayMarks()
	c.alerts()
}

func within[T cmp.Ordered](c checker, path string, value, low, high T) {
	if value < low || value > high {
		c.check(path, "must be between %v and %v, not %v", low, high, value)
	}
}

func (c checker) server() {
	listen, ok := c.address("server.listen", c.Server.Listen)
	c.certificate()
	c.trustedProxies()
	if ok && !listen.loopback() && c.Server.TLSCert == "" {
		c.warn("server.listen", "%s is reachable from other machines and has no TLS: set tls_cert and tls_key, or keep it behind a proxy that has TLS, or in a private network", c.Server.Listen)
	}
	if c.Server.Admin != "" {
		admin, adminOK := c.address("server.admin", c.Server.Admin)
		if ok && adminOK && listen.clashes(admin) {
			c.check("server.admin", "%s and server.listen (%s) cannot both be opened: give them different ports", c.Server.Admin, c.Server.Listen)
		}
		if adminOK && !admin.loopback() {
			c.warn("server.admin", "%s shows metrics and counts to other machines, and asks nobody for a password", c.Server.Admin)
		}
	}
	if s := c.Server.Socket; s != "" {
		// The kernel's limit (sun_path) is 108 bytes with the closing zero on Linux, 104 on macOS.
		if !filepath.IsAbs(s) {
			c.check("server.socket", "must be an absolute path, such as /run/ampcio/admin.sock")
		} else if len(s) > 103 {
			c.check("server.socket", "the path of a unix socket has at most 103 bytes, this one %d", len(s))
		}
	}
	for i, origin := range c.Server.CORSOrigins {
		_, host, found := strings.Cut(origin, "://")
		if origin != "*" && (!found || host == "" || strings.ContainsAny(origin, " \t") || strings.ContainsAny(host, "/?#")) {
			c.check(item("server.cors_origins", i), `%q: must be "*" or an origin such as "https://www.example.com", without a path`, origin)
		}
	}
}

type address struct {
	host string
	port int
}

// address checks a host:port to listen on.
func (c checker) address(path, written string) (address, bool) {
	host, port, err := net.SplitHostPort(written)
	n, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || portErr != nil || strings.ContainsAny(host, " \t/") {
		c.check(path, `%q: must be host:port with a port from 0 to 65535, such as "127.0.0.1:8080" or "[::1]:8080"`, written)
		return address{}, false
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if host == "0.0.0.0" || host == "::" {
		host = ""
	}
	return address{host, int(n)}, true
}

func (a address) loopback() bool { return loopback(a.host) }

// clashes says whether a and b cannot be listened on at once. Port 0 is any free one.
func (a address) clashes(b address) bool {
	return a.port != 0 && a.port == b.port && (a.host == b.host || a.host == "" || b.host == "")
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func (c checker) storage() {
	s := c.Storage
	if !filepath.IsAbs(s.Dir) {
		c.check("storage.dir", "must be an absolute path, such as /var/lib/ampcio")
	}
	within(c, "storage.rotate_bytes", s.RotateBytes, 1*MiB, 1*GiB)
	if s.MaxBytes < s.RotateBytes {
		c.check("storage.max_bytes", "must be at least rotate_bytes (%v), not %v: ampcio fills one file before it begins the next", s.RotateBytes, s.MaxBytes)
	}
	if s.RotateAfter < Duration(time.Second) {
		c.check("storage.rotate_after", "must be at least 1s, not %v", s.RotateAfter)
	}
}

func (c checker) projects() {
	if len(c.Project) == 0 {
		c.unfilled("project", []Missing{{Table: "project.app", Text: keysText, Where: inAmplitude}, {Table: "project.app", Text: relayText, Where: relayWhere}}, `there is no project: add
    [project.app]
    amplitude_api_keys = ["…"]   # Amplitude: Settings > Projects > your project > API Key`)
	}
	owner, secretOf := map[string]string{}, map[string]string{}
	for _, name := range c.Project.Names() {
		p := c.Project[name]
		p.Name = name
		path := join("project", name)
		c.relay(path, &p)
		if p.WebhookSecret = c.webhookSecret(path, p.WebhookSecretFile); !p.WebhookSecret.IsZero() {
			if other := secretOf[p.WebhookSecret.Reveal()]; other != "" {
				c.check(join(path, "webhook_secret_file"), "is also the secret of project %s: it says which project a webhook is of, so each needs its own", other)
			}
			secretOf[p.WebhookSecret.Reveal()] = name
		}
		keys, at := p.AmplitudeAPIKeys, func(i int) string { return item(join(path, "amplitude_api_keys"), i) }
		if p.AmplitudeAPIKeysFile != "" {
			path := join(path, "amplitude_api_keys_file")
			if len(keys) > 0 {
				c.check(path, "give the keys here or in amplitude_api_keys, not in both")
				continue
			}
			if c.env.NoSecrets {
				c.Project[name] = p
				continue
			}
			var ok bool
			if keys, ok = c.keysFile(path, p.AmplitudeAPIKeysFile); !ok {
				continue
			}
			at = func(int) string { return path }
		}
		if len(keys) == 0 && p.WebhookSecretFile == "" {
			at := join(path, "amplitude_api_keys")
			c.unfilled(at, c.inPlaceOf(at, Missing{Table: path, Text: keysText, Where: inAmplitude}), "required, unless there is a webhook_secret_file: the API keys that the project's SDKs send, in Amplitude under Settings > Projects > your project > API Key")
		}
		p.AmplitudeAPIKeys = nil
		for i, key := range keys {
			switch {
			case key == "":
				c.unfilled(at(i), c.inPlaceOf(join(path, "amplitude_api_keys"), Missing{Table: path, Text: keysText, Where: inAmplitude}), "fill in the project's API key, in Amplitude under Settings > Projects > your project > API Key")
			case !printable(key):
				c.check(at(i), "key %d is not an Amplitude API key: it has a space or another character that no key has", i+1)
			case owner[key] != "" && owner[key] != name:
				c.check(at(i), "key %d is also a key of project %s: an event can only go to one project", i+1, owner[key])
			case owner[key] == "":
				owner[key] = name
				p.AmplitudeAPIKeys = append(p.AmplitudeAPIKeys, key)
			}
		}
		c.Project[name] = p
	}
}

func (c checker) syncs() {
	if len(c.Sync) == 0 && len(c.Project.Relayed()) == 0 {
		const table, file = "sync.production", "customerio_api_key"
		path, credential := c.keyFilePath(file)
		c.unfilled("sync", []Missing{
			{Table: table, Text: regionText, Where: ofAccount}, {Table: table, Text: siteText, Where: inCustomerIO},
			{Table: table, Text: fileText, Where: keyFileWhere},
			{KeyFile: c.keyFileOf(path, credential), Where: inCustomerIO},
			{Table: "[sync.production.select]", Text: eventsText, Where: eventsWhere},
		}, `there is no sync: add
    [sync.production]
    region       = "us"                    # or "eu", in Customer.io under Account Settings
    site_id      = "…"                     # Customer.io: Account Settings > API Credentials > Track API Keys
    api_key_file = "customerio_api_key"    # a file that holds the API key beside that Site ID`)
	}
	workspace := map[[2]string]string{}
	taken := map[string]bool{}
	pending := 0.0 // bytes that may wait for all syncs together; a sum of int64 could overflow
	for _, name := range c.Sync.Names() {
		s := c.Sync[name]
		s.Name = name
		path := join("sync", name)
		c.project(path, &s)
		taken[s.Project] = true
		pending += float64(s.Delivery.MaxPendingBytes)
		c.destination(path, &s)
		c.apiKey(path, &s)
		c.rules(path, &s)
		c.delivery(join(path, "delivery"), s.Delivery)
		c.queue(join(path, "delivery"), s.Delivery)
		c.Sync[name] = s
		if s.DryRun && s.Enabled {
			c.warn(join(path, "dry_run"), "nothing is sent to Customer.io: what would be is written to the folder dry-run of storage.dir")
		}
		if s.SiteID == "" || s.DryRun {
			continue
		}
		id := [2]string{s.Region, s.SiteID}
		if other := workspace[id]; other != "" {
			c.warn(join(path, "site_id"), "sync %s sends to the same workspace: an event that both send arrives once there", other)
		} else {
			workspace[id] = name
		}
	}
	if pending > float64(c.Storage.MaxBytes) && len(c.Sync) > 1 {
		c.warn("storage.max_bytes", "the max_pending_bytes of all syncs together are more than %v: one that does not deliver can fill what the others need", c.Storage.MaxBytes)
	}
	for _, name := range c.Project.Names() {
		if !taken[name] && !c.Project[name].Relayed() && len(c.Sync) > 0 {
			c.warn(join("project", name), "no sync takes this project's events: they are accepted and go nowhere")
		}
	}
}

// project resolves which project s takes its events from.
func (c checker) project(path string, s *Sync) {
	path = join(path, "project")
	names := c.Project.Names()
	switch _, known := c.Project[s.Project]; {
	case known || len(names) == 0: // that there is no project is reported already
	case s.Project == "" && len(names) == 1:
		s.Project = names[0]
	case s.Project == "":
		c.check(path, "required, since there is more than one project: %s", orList(names))
	default:
		hint := "the projects are " + strings.Join(names, ", ")
		if near, _ := nearest(s.Project, names); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		c.check(path, "there is no [project.%s]; %s", s.Project, hint)
	}
}

// destination checks where s sends to.
func (c checker) destination(path string, s *Sync) {
	if s.Region == "" {
		at := join(path, "region")
		c.unfilled(at, c.inPlaceOf(at, Missing{Table: path, Text: regionText, Where: ofAccount}), `required: "us" or "eu", in Customer.io under Account Settings. It is not guessed, since data sent to the wrong region passes through it`)
	}
	if s.SiteID == "" && s.DryRun {
		// nothing is sent
	} else if s.SiteID == "" {
		at := join(path, "site_id")
		c.unfilled(at, c.inPlaceOf(at, Missing{Table: path, Text: siteText, Where: inCustomerIO}), "required: the workspace's Site ID, in Customer.io under Account Settings > API Credentials > Track API Keys")
	} else if !printable(s.SiteID) || strings.Contains(s.SiteID, ":") {
		c.check(join(path, "site_id"), "is not a Site ID: it has a space, a colon or another character that none has")
	}
	if s.Endpoint == "" {
		return
	}
	// What was written is not repeated: it may carry a password.
	path = join(path, "endpoint")
	u, err := url.Parse(s.Endpoint)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https":
		c.check(path, `must be a base URL such as "http://127.0.0.1:9000" or "https://track.example.com"`)
	case u.User != nil:
		c.check(path, "must not hold a user name or password: site_id and the API key are sent")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		c.check(path, "must be a base URL, without ? or #")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		c.check(path, "must be https, since the API key would travel in clear; http is for this machine only (127.0.0.1, [::1], localhost)")
	}
	s.Endpoint = strings.TrimRight(s.Endpoint, "/")
}

// rules checks the shape of what s selects and sends; what paths, operators and
// globs mean is checked where they are compiled.
func (c checker) rules(path string, s *Sync) {
	if s.Identifier == "" {
		c.check(join(path, "identifier"), `must be a path: "user_id", or a property such as "user.email"`)
	}
	if s.Events.Send && len(s.Select) == 0 {
		c.unfilled(join(path, "select"), []Missing{{Table: "[" + join(path, "select") + "]", Text: eventsText, Where: eventsWhere}}, `which events are sent? Add, with * for any text,
    [[%s]]
    event = ["Signed Up", "Order *"]
or send no events: [%s] send = false`, join(path, "select"), join(path, "events"))
	}
	if !s.Events.Send && !s.Users.Send {
		c.warn(path, "sends neither events nor users: everything is filtered")
	}
	for i, rule := range s.Select {
		at := item(join(path, "select"), i)
		if len(rule.Event) == 0 {
			c.check(join(at, "event"), `required: the names of events, with * for any text; all events: event = ["*"]`)
		}
		c.words(join(at, "event"), rule.Event)
		c.words(join(at, "properties"), rule.Properties)
		for j, where := range rule.Where {
			at := item(join(at, "where"), j)
			if where.Path == "" {
				c.check(join(at, "path"), `required: such as "event.total" or "user.plan"`)
			}
			if where.Op == "" {
				c.check(join(at, "op"), `required: such as "is", "contains", ">=" or "is set"`)
			}
		}
	}
	events, users := join(path, "events"), join(path, "users")
	c.words(join(events, "properties"), s.Events.Properties)
	c.words(join(events, "user_properties"), s.Events.UserProperties)
	c.words(join(events, "fields"), s.Events.Fields)
	c.words(join(events, "exclude"), s.Events.Exclude)
	c.names(join(events, "rename"), s.Events.Rename)
	c.words(join(users, "properties"), s.Users.Properties)
	c.words(join(users, "exclude"), s.Users.Exclude)
	c.names(join(users, "rename"), s.Users.Rename)
	c.names(join(users, "convert"), s.Users.Convert)
}

func (c checker) words(path string, list []string) {
	if i := slices.Index(list, ""); i >= 0 {
		c.check(item(path, i), "is empty")
	}
}

func (c checker) names(path string, table map[string]string) {
	for from, to := range table {
		if from == "" || to == "" {
			c.check(join(path, from), "has an empty name")
		}
	}
}

func (c checker) delivery(path string, d Delivery) {
	within(c, join(path, "concurrency"), d.Concurrency, 1, 64)
	if d.RequestsPerSecond <= 0 || d.RequestsPerSecond > 10_000 {
		c.check(join(path, "requests_per_second"), "must be more than 0 and at most 10000, not %v", d.RequestsPerSecond)
	}
	within(c, join(path, "batch_operations"), d.BatchOperations, 1, 10_000)
	durations := func(key string, value Duration, low, high time.Duration) {
		within(c, join(path, key), value, Duration(low), Duration(high))
	}
	durations("timeout", d.Timeout, time.Millisecond, 10*time.Minute)
	durations("retry_initial", d.RetryInitial, time.Millisecond, time.Hour)
	durations("retry_max", d.RetryMax, time.Millisecond, 24*time.Hour)
	if d.RetryInitial > d.RetryMax {
		c.check(join(path, "retry_initial"), "must not be more than retry_max (%v), and is %v", d.RetryMax, d.RetryInitial)
	}
}

// queue checks how much may wait for a sync, and for how long an event is worth sending.
func (c checker) queue(path string, d Delivery) {
	at, bound := join(path, "max_pending_bytes"), ByteSize(d.MaxPendingBytes)
	relays := len(c.Project.Relayed())
	one, all := "sync", "syncs"
	if relays > 0 {
		one, all = "sync or relay", "syncs and relays"
	}
	switch n := ByteSize(len(c.Sync) + relays); {
	case bound == 0 && n > 1:
		share := c.Storage.MaxBytes / n
		for _, unit := range []ByteSize{GiB, MiB} {
			if share >= unit {
				share -= share % unit
				break
			}
		}
		c.check(at, `required when there is more than one %s, so that what waits for one cannot fill the disk that the others need. Write, for example,
    [%s]
    max_pending_bytes = "%v"   # storage.max_bytes is %v, for %d %s`, one, path, share, c.Storage.MaxBytes, n, all)
	case bound == 0 && d.WhenFull == "discard_oldest":
		c.check(at, `required with when_full = "discard_oldest": how much may wait before the oldest is discarded, such as "4GiB"`)
	case bound != 0:
		if bound < MiB {
			c.check(at, "must be at least 1MiB, not %v", bound)
		}
		if bound > c.Storage.MaxBytes {
			c.check(at, "must be at most storage.max_bytes (%v), not %v: that bound would be met first", c.Storage.MaxBytes, bound)
		}
	}
	if d.LateAfter < Duration(time.Minute) {
		c.check(join(path, "late_after"), "must be at least 1m, not %v: events are on their way for some seconds always", d.LateAfter)
	}
}

// printable says whether s could be a key: visible ASCII, not absurdly long.
func printable(s string) bool {
	return len(s) <= 256 && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) < 0
}
