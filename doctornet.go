package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/delivery"
)

// reloaded says whether the daemon runs by the file as it is now.
func (d *doctor) reloaded(ctx context.Context) {
	const check = "in force"
	if !d.running {
		return
	}
	if d.broken {
		d.say(check, warning, "the daemon runs by what the file was before; it could not be started again with it as it is", "mend the file, then: ampcio reload")
		return
	}
	started := time.Time{}
	if d.snap.Uptime != nil {
		started = d.snap.At.Add(-time.Duration(*d.snap.Uptime) * time.Second)
	}
	if d.unit.there && d.pid != 0 && d.unit.mainPID == fmt.Sprint(d.pid) {
		for _, name := range d.cfg.Sync.Names() { // a credential is a copy of the start
			file := d.cfg.Sync[name].APIKeyFile
			if file == "" || filepath.IsAbs(file) {
				continue
			}
			file = filepath.Join(filepath.Dir(d.configFile), file)
			if st, err := os.Stat(file); err == nil && st.ModTime().After(started.Add(time.Second)) {
				d.say(check, warning, fmt.Sprintf("%s was changed %s, after ampcio was started: the service still has the old one", file, ago(d.now(), st.ModTime())), "systemctl restart ampcio")
			}
		}
	}
	st, err := os.Stat(d.configFile)
	if err != nil {
		return
	}
	if st.ModTime().Before(started.Add(-time.Second)) {
		d.say(check, fine, "the configuration was not changed since ampcio was started", "")
		return
	}
	file, err := filepath.Abs(d.configFile)
	if err != nil {
		return
	}
	question, err := json.Marshal(reloadQuestion{Config: file, DryRun: true})
	if err != nil {
		return
	}
	if r := d.snap.Reload; r != nil && r.OK && st.ModTime().Before(r.At.Add(-time.Second)) {
		d.say(check, fine, "the configuration was not changed since it was reloaded, "+ago(d.now(), r.At), "")
		return
	}
	var report reloadReport
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	err = askDaemon(ctx, socketPath(d.cfg), "reload", question, func(line []byte) error { return json.Unmarshal(line, &report) })
	changed := report.changes()
	switch {
	case err != nil && !report.Refused:
		first, _, _ := strings.Cut(err.Error(), "\n")
		d.say(check, wrong, "the file was changed and could not be put in force: "+clipText(first, 300), "mend it, then: ampcio reload")
	case len(changed) > 0:
		d.say(check, warning, fmt.Sprintf("the file was changed %s, and that is not in force: %s", ago(d.now(), st.ModTime()), strings.Join(changed, ", ")), "see what it would do: ampcio reload --dry-run; then: ampcio reload")
	case len(report.Restart) > 0:
		d.say(check, warning, "the file was changed, and needs a restart: "+strings.Join(report.Restart, ", "), "systemctl restart ampcio")
	default:
		d.say(check, fine, "the daemon runs by the file as it is", "")
	}
}

// changes are what a reload would put in force, in few words.
func (r *reloadReport) changes() (words []string) {
	for _, y := range r.Syncs {
		words = append(words, "sync "+y.Name+" "+y.Change)
	}
	if r.Certificate {
		words = append(words, "another certificate")
	}
	return append(words, r.Changed...)
}

// jumped is how far the wall clock and the time that passed may differ over a look.
const jumped = 200 * time.Millisecond

// Clocks that are wrong by this much are worth a word, and wrong: Customer.io drops a user
// update that is older than the last, and an event's time is never later than a minute
// after its receipt.
const (
	clockOff   = 5 * time.Second
	clockWrong = time.Minute
)

// clock asks the kernel whether anybody keeps the clock right. What the services say of
// it comes with their answers.
func (d *doctor) clock(context.Context) {
	kept, err := clockIsKept()
	switch {
	case err != nil:
		d.say("clock", skipped, "the kernel does not tell whether the clock is kept right: "+err.Error(), "")
	case !kept:
		d.say("clock", warning, "the kernel says that nobody keeps the clock right (no NTP)", "timedatectl set-ntp true, or install chrony or systemd-timesyncd")
	default:
		d.say("clock", fine, "it is kept right (NTP)", "")
	}
}

// dated notes by how much the clock of whoever answers differs from ours.
type dated struct {
	now  func() time.Time
	mu   sync.Mutex
	seen bool
	off  time.Duration // theirs minus ours; the header has whole seconds
}

func (t *dated) RoundTrip(r *http.Request) (*http.Response, error) {
	began := t.now()
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	ended := t.now()
	if theirs, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		ours := began.Round(0).Add(ended.Sub(began) / 2)
		t.mu.Lock()
		t.seen, t.off = true, theirs.Add(500*time.Millisecond).Sub(ours)
		t.mu.Unlock()
	}
	return resp, nil
}

// accounts asks Customer.io and Amplitude what check-config --online asks.
func (d *doctor) accounts(ctx context.Context) {
	const check = "credentials"
	if d.offline {
		d.say(check, skipped, "not asked (--offline)", "")
		return
	}
	if d.keys == nil {
		d.say(check, skipped, "nobody was asked, since there are no keys to ask with", "")
		if d.running {
			for _, y := range d.snap.Syncs {
				if y.Status == admin.StatusOK && y.Workspace != 0 {
					d.say("sync "+y.Name, fine, fmt.Sprintf("Customer.io has agreed with the daemon: workspace %d", y.Workspace), "")
				}
			}
		}
		return
	}
	clock := &dated{now: d.now}
	wall, passed := d.now().Round(0), time.Now()
	for _, name := range d.keys.Sync.Names() {
		s := d.keys.Sync[name]
		if s.SiteID == "" || s.APIKey.IsZero() {
			d.say("sync "+name, skipped, "a dry run without Site ID or API key: Customer.io was not asked", "")
			continue
		}
		o := accountOptions(s)
		o.Transport = clock
		account, err := delivery.CheckAccount(ctx, o)
		d.account("sync "+name, fmt.Sprintf("Customer.io agrees: region %s, workspace %d", account.Region, account.EnvironmentID), err)
	}
	for _, project := range d.keys.Project.Relayed() {
		o := relayOptions(d.keys.Project[project])
		o.Transport = clock
		_, err := delivery.CheckAccount(ctx, o)
		d.account(relayPrefix+project, "Amplitude answers, and says nothing against its API keys", err)
	}
	if went := d.now().Round(0).Sub(wall) - time.Since(passed); went.Abs() > jumped {
		d.say("clock", warning, fmt.Sprintf("it jumped by %s while this looked", went.Round(time.Millisecond)), "two programs may set it: timedatectl; systemctl status chrony systemd-timesyncd")
	}
	if !clock.seen {
		return
	}
	off := clock.off.Abs()
	way := "behind"
	if clock.off < 0 {
		way = "ahead of"
	}
	says := fmt.Sprintf("this machine's is %s %s that of the services", forPeople(off), way)
	verdict, todo := fine, ""
	switch {
	case off >= clockWrong:
		verdict = wrong
	case off >= clockOff:
		verdict = warning
	default:
		says = "it agrees with that of the services, within " + fmt.Sprintf("%ds", int64(math.Ceil(off.Seconds())))
	}
	if verdict != fine {
		todo = "set it right (timedatectl set-ntp true): Customer.io passes over user updates that are older than the last"
	}
	f := d.say("clock", verdict, says, todo)
	f.Exact = map[string]any{"off_ms": clock.off.Milliseconds()}
}

func (d *doctor) account(check, agrees string, err error) {
	var account *delivery.AccountError
	switch {
	case err == nil:
		d.say(check, fine, agrees, "")
	case errors.As(err, &account) && account.Blocked:
		d.say(check, wrong, account.Detail, account.Advice)
	case errors.As(err, &account):
		d.say(check, warning, account.Detail, account.Advice)
	default:
		d.say(check, warning, err.Error(), "")
	}
}

// listener tries the public door, as a sender would.
func (d *doctor) listener(ctx context.Context) {
	const check = "listener"
	if d.snap == nil || d.broken && !d.running {
		return // nobody knows the address
	}
	path, unix := strings.CutPrefix(d.snap.Door.URL, "unix:")
	u, err := url.Parse(d.snap.Door.URL)
	if unix {
		u = &url.URL{Scheme: "http", Host: "localhost"}
	}
	if err != nil || u.Host == "" {
		return
	}
	everywhere := u.Hostname() == "HOST"
	address := u.Host
	if unix {
		address = path
	}
	if everywhere {
		address = net.JoinHostPort("127.0.0.1", u.Port())
	}
	base, network := u.Scheme+"://"+u.Host, "tcp"
	if unix {
		base, network = "the unix socket "+address, "unix"
	}
	var leaf *x509.Certificate
	var trusted error
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, network, address)
		},
		// Whether the certificate is good is judged below: one that is not is to be told of.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
			leaf = s.PeerCertificates[0]
			others := x509.NewCertPool()
			for _, c := range s.PeerCertificates[1:] {
				others.AddCert(c)
			}
			_, trusted = leaf.Verify(x509.VerifyOptions{Intermediates: others, CurrentTime: d.now()})
			return nil
		}},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.Scheme+"://"+u.Host+"/healthz", nil)
	if err != nil {
		return
	}
	resp, err := client.Do(req)
	var said []byte
	if err == nil {
		said, _ = io.ReadAll(io.LimitReader(resp.Body, 64))
		resp.Body.Close()
	}
	answers := err == nil && resp.StatusCode == http.StatusOK && strings.TrimSpace(string(said)) == "ok"
	switch {
	case !d.running && err == nil && !answers:
		d.say(check, wrong, "ampcio is stopped, and another program answers at "+address, "ss -ltnp shows which; stop it, or change the address")
	case !d.running && d.unit.socket == "active":
		d.say(check, fine, "systemd holds "+address+" until ampcio is started: connections wait", "")
	case !d.running && err == nil:
		d.say(check, warning, "an ampcio answers at "+address+", but not that of this configuration", "ss -ltnp shows which")
	case !d.running:
		d.say(check, warning, "nothing listens at "+address+", since ampcio is stopped", "")
	case err != nil:
		d.say(check, wrong, base+" cannot be reached from this machine: "+clipText(err.Error(), 200), "ss -ltnp; journalctl -u ampcio -n 30; a firewall on this machine?")
	case !answers:
		d.say(check, wrong, fmt.Sprintf("%s answers %s, and not as ampcio does", base, resp.Status), "ss -ltnp shows who listens there")
	default:
		says := base + " answers"
		ip := net.ParseIP(u.Hostname())
		switch {
		case everywhere:
			says += ", on every address of this machine"
		case ip != nil && ip.IsLoopback():
			says += ", to programs of this machine only: apps reach it through a proxy"
		}
		d.say(check, fine, says, "")
		if everywhere && u.Scheme == "http" {
			d.say(check, warning, "events travel in clear to it", "set server.tls_cert and tls_key, or let a proxy with HTTPS stand before it (docs/proxies.md)")
		}
	}
	if leaf != nil {
		d.certificate(leaf, trusted)
	}
}

// certificate judges what the listener has shown.
func (d *doctor) certificate(leaf *x509.Certificate, trusted error) {
	const check = "certificate"
	left := leaf.NotAfter.Sub(d.now())
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	of := strings.Join(names, ", ")
	if of == "" {
		of = "no name"
	}
	const renew = "renew it (certbot renew); new files are taken within a minute"
	var unknown x509.UnknownAuthorityError
	switch {
	case left < 0:
		d.say(check, wrong, fmt.Sprintf("it expired %s: SDKs are turned away before they can send", ago(d.now(), leaf.NotAfter)), renew)
	case d.now().Before(leaf.NotBefore):
		d.say(check, wrong, "it is valid only from "+leaf.NotBefore.UTC().Format("2006-01-02 15:04 UTC")+" on", "is the clock right? timedatectl")
	case errors.As(trusted, &unknown):
		d.say(check, warning, "who issued it is not known to this machine: SDKs that do not know it either turn away", "tls_cert must hold the whole chain (certbot: fullchain.pem); one of your own is for your own apps")
	case trusted != nil:
		d.say(check, warning, "it does not stand up: "+clipText(trusted.Error(), 200), "tls_cert must hold the whole chain (certbot: fullchain.pem)")
	case left < config.CertificateSoon:
		d.say(check, warning, "it ends in "+forPeople(left), renew)
	default:
		d.say(check, fine, fmt.Sprintf("for %s, until %s", of, leaf.NotAfter.UTC().Format("2006-01-02")), "")
	}
	if c := d.snap.Door.Certificate; c != nil && c.Problem != "" {
		d.say(check, warning, "the files on disk cannot be used, the old one stays in use: "+c.Problem, "mend server.tls_cert and tls_key")
	}
}

// requests tells of the last request, and which way it came.
func (d *doctor) requests(context.Context) {
	if d.snap == nil {
		return
	}
	const check = "last request"
	door := d.snap.Door
	since := "since ampcio was started"
	if !d.running {
		since = "to the last ampcio that ran"
	}
	last := time.Time{}
	project := ""
	for name, at := range door.LastSeen {
		if t, err := time.Parse(time.RFC3339, at); err == nil && t.After(last) {
			last, project = t, name
		}
	}
	switch {
	case last.IsZero() && door.Requests == 0:
		d.say(check, warning, "none has come "+since, "try the door: ampcio send-test; then look at the server URL of your SDKs: "+door.URL)
	case last.IsZero():
		d.say(check, warning, fmt.Sprintf("%s came %s, none of them with an API key of a project", counted(door.Requests, "request", "requests"), since),
			"compare the API key of your SDKs with amplitude_api_keys of [project.NAME]")
	default:
		f := d.say(check, fine, fmt.Sprintf("%s, of project %s; %s and %s %s", ago(d.now(), last), project,
			counted(door.Requests, "request", "requests"), events(door.Events), since), "")
		f.Exact = map[string]any{"age_s": seconds(d.now().Sub(last)), "requests": door.Requests, "events": door.Events}
	}
	for _, name := range d.cfg.Project.Names() {
		if door.LastSeen[name] == "" && !last.IsZero() && len(d.cfg.Project[name].AmplitudeAPIKeys) > 0 {
			d.say(check, warning, fmt.Sprintf("none of project %s has come %s", name, since), "compare the API key of its SDKs with amplitude_api_keys of [project."+name+"]")
		}
	}
	switch l := door.Last; {
	case l == nil:
	case l.Proxied && l.Trusted:
		d.say("proxy", fine, fmt.Sprintf("the last request came through a proxy at %s, which is trusted: senders have their own addresses", cmp.Or(l.Peer, "a unix socket")), "")
	case l.Proxied:
		d.say("proxy", warning, fmt.Sprintf("the last request came through a proxy at %s, which is not trusted: all its senders have its address", l.Peer),
			fmt.Sprintf("if it is yours: server.trusted_proxies = [%q], then: ampcio reload", single(l.Peer)))
	default:
		d.say("proxy", fine, fmt.Sprintf("the last request came directly, from %s", cmp.Or(l.Peer, "a unix socket")), "")
	}
}

// single is the network of one address.
func single(address string) string {
	if strings.Contains(address, ":") {
		return address + "/128"
	}
	return address + "/32"
}

// fresh is how long ago something was refused at most that somebody should look at now.
const fresh = time.Hour

// refusals tells of the last request that was turned away, and what to do about each kind.
func (d *doctor) refusals(context.Context) {
	if d.snap == nil {
		return
	}
	const check = "last refused"
	list := slices.Clone(d.snap.Door.Refused)
	list = slices.DeleteFunc(list, func(r admin.Refused) bool { return r.Last == nil })
	if len(list) == 0 {
		d.say(check, fine, "no request was refused", "")
		return
	}
	slices.SortFunc(list, func(a, b admin.Refused) int { return b.Last.Compare(*a.Last) })
	for i, r := range list {
		old := d.now().Sub(*r.Last) > fresh
		if i > 0 && old {
			break
		}
		verdict := warning
		if old || harmless[r.Reason] {
			verdict = fine
		}
		f := d.say(check, verdict, fmt.Sprintf("%s: %s, from %s; %s in all", r.Reason, ago(d.now(), *r.Last), cmp.Or(r.LastAddress, "this machine"), counted(r.Count, "request", "requests")), "")
		if verdict == warning {
			f.ToDo = refusalAdvice(r.Reason)
		}
		f.Exact = map[string]any{"reason": r.Reason, "count": r.Count, "age_s": seconds(d.now().Sub(*r.Last))}
	}
}

// harmless are reasons that no operator has to act on.
var harmless = map[string]bool{"aborted_body": true, "stopping": true, "wrong_method": true}

func refusalAdvice(reason string) string {
	switch reason {
	case "missing_api_key", "invalid_api_key":
		return "compare the API key of that sender with amplitude_api_keys of [project.NAME]; scanners of the internet come with none"
	case "invalid_json", "invalid_request_field", "invalid_events", "unknown_encoding":
		return "look at what that sender sends; its SDK is told which event and field is wrong, and drops it"
	case "too_large", "too_many_events":
		return "SDKs split it by themselves; other senders: at most 1 MiB and 2,000 events a request (/batch 20 MiB)"
	case "wrong_path":
		return "the server URL must end in /2/httpapi (docs/sdks.md); scanners of the internet ask for anything"
	case "bad_checksum":
		return "what an old SDK sent came changed: see what is between it and ampcio"
	case "invalid_webhook_secret":
		return "compare the header of Amplitude's webhook destination with webhook_secret_file"
	case "slow_body":
		return "a sender took too long; behind a proxy, let it buffer requests (docs/proxies.md)"
	case "busy", "slow_disk", "store_error":
		return "see disk speed and disk space above; the log says more: journalctl -u ampcio -n 30"
	case "storage_full":
		return "see disk space above; senders try again"
	case "draining":
		return "somebody drains the queue (ampcio drain --refuse); senders try again"
	case "plain_http":
		return "that sender speaks http where https is spoken: mend its server URL"
	}
	return ""
}

// syncs tells what each sync is doing.
func (d *doctor) syncs(context.Context) {
	if d.snap == nil {
		return
	}
	for _, y := range d.snap.Syncs {
		if d.broken && !d.running { // whether it is in the configuration is not known
			y.Status, y.Detail = admin.StatusStopped, ""
		}
		name := "sync " + y.Name
		if y.Destination == admin.ToAmplitude {
			name = y.Name
		}
		if y.Health.Level == admin.LevelUnknown {
			d.say(name, skipped, cmp.Or(y.Health.Why, "how well it is is not known"), y.Health.ToDo)
		}
		says := fmt.Sprintf("%s, %s pending", y.Status, many(y.Books.Pending))
		if y.OldestAge != nil {
			says += ", the oldest for " + forPeople(time.Duration(*y.OldestAge)*time.Second)
		}
		verdict, todo := fine, ""
		if h := y.Health; y.Status != admin.StatusStopped { // that it is stopped is said above
			switch h.Level {
			case admin.LevelCritical:
				verdict = wrong
			case admin.LevelWarning:
				verdict = warning
			}
			if verdict != fine {
				todo = h.ToDo
				if h.Why != "" && !strings.Contains(says, h.Why) {
					says += ": " + h.Why
				}
			}
		}
		f := d.say(name, verdict, says, todo)
		f.Exact = map[string]any{"pending": y.Books.Pending, "oldest_age_s": y.OldestAge, "dead_letters": y.Depth.Dead}
		if y.Depth.Dead > 0 && y.Health.Word != "refused" {
			d.say(name, warning, letters(y.Depth.Dead)+" kept", "see what was refused: ampcio dead-letters list --sync "+y.Name)
		}
	}
	if h := d.snap.House; !slices.Contains([]string{"stopped", "refusing", "certificate"}, h.Word) { // else it is said above
		switch h.Level {
		case admin.LevelCritical:
			d.say("house", wrong, h.Why, h.ToDo)
		case admin.LevelWarning:
			d.say("house", warning, h.Why, h.ToDo)
		}
	}
	for _, note := range d.snap.Notes {
		d.say("note", warning, note, "")
	}
}
