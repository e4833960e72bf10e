// Command check lives through an outage, a crash and a revoked key with the real daemon,
// a sandbox Customer.io and a real Prometheus that scrapes the one every second, and asks
// Prometheus what it made of it. contrib/prometheus/run builds and starts it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	key    = "0123456789abcdef0123456789abcdef"
	within = 15 * time.Second // each step
)

// mayBeEmpty are expressions of the dashboard that ask for what this story does not have.
var mayBeEmpty = []string{
	"ampcio_certificate_not_after_timestamp_seconds", // no HTTPS
	"ampcio_storage_full_eta_seconds",                // it does not fill
}

type house struct {
	ampcio, prometheus, contrib, folder string

	listen, admin, sandbox, prom string // addresses
	config                       string
	daemon                       *exec.Cmd
	sent                         int

	exprs  map[string]string // of the dashboard, by panel
	filled map[string]bool   // they have returned something
}

func main() {
	h := &house{filled: map[string]bool{}}
	flag.StringVar(&h.ampcio, "ampcio", "", "the binary")
	flag.StringVar(&h.prometheus, "prometheus", "prometheus", "the binary")
	flag.StringVar(&h.contrib, "contrib", "", "the folder contrib")
	flag.StringVar(&h.folder, "folder", "", "an empty folder")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := h.live(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (h *house) live(ctx context.Context) (err error) {
	for _, a := range []*string{&h.listen, &h.admin, &h.sandbox, &h.prom} {
		if *a, err = freeAddress(); err != nil {
			return err
		}
	}
	if err := h.readDashboard(); err != nil {
		return err
	}
	if err := h.writeConfigs(); err != nil {
		return err
	}
	sandbox, err := h.start("sandbox", h.ampcio, "sandbox", "--listen", h.sandbox, "--region", "eu")
	if err != nil {
		return err
	}
	defer end(sandbox)
	if h.daemon, err = h.start("daemon", h.ampcio, "serve", "--config", h.config); err != nil {
		return err
	}
	defer func() { end(h.daemon) }()
	prometheus, err := h.start("prometheus", h.prometheus, "--config.file="+filepath.Join(h.folder, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(h.folder, "tsdb"), "--web.listen-address="+h.prom, "--log.level=warn")
	if err != nil {
		return err
	}
	defer end(prometheus)

	steps := []struct {
		what string
		do   func(context.Context) error
	}{
		{"the target is up", h.until(`up{job="ampcio"}`, 1)},
		{"events flow, one is refused for good, one comes twice, one has a wrong key", h.flow},
		{"one user fails, all others get through", h.oneFails},
		{"Customer.io is down: AmpcioEventsWait fires", h.outage},
		{"it is back: AmpcioEventsWait ends", h.back},
		{"ampcio is killed and started again: no counter of a sync has gone down", h.crash},
		{"the key is revoked: AmpcioSyncBlocked fires", h.revoked},
		{"it is mended: AmpcioSyncBlocked ends", h.mended},
		{"the configuration is reloaded", h.reload},
		{"every rule is evaluated without an error", h.rulesAreWell},
		{"every panel has had something to show", h.panelsAreWell},
	}
	for _, s := range steps {
		began := time.Now()
		step, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("not within %v", within))
		err := s.do(step)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
		fmt.Printf("%5.1f s  %s\n", time.Since(began).Seconds(), s.what)
	}
	return nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// start starts a program that dies with this one.
func (h *house) start(name, path string, args ...string) (*exec.Cmd, error) {
	said, err := os.OpenFile(filepath.Join(h.folder, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer said.Close()
	c := exec.Command(path, args...)
	c.Stdout, c.Stderr = said, said
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c, c.Start()
}

func end(c *exec.Cmd) {
	if c.Process.Signal(syscall.SIGTERM) == nil {
		kill := time.AfterFunc(5*time.Second, func() { c.Process.Kill() })
		defer kill.Stop()
	}
	_ = c.Wait()
}

func (h *house) writeConfigs() error {
	h.config = filepath.Join(h.folder, "config.toml")
	shipped := filepath.Join(h.contrib, "prometheus", "alerts.yml")
	rules, err := os.ReadFile(shipped)
	if err != nil {
		return err
	}
	short, err := shortened(string(rules))
	return errors.Join(err,
		os.WriteFile(h.config, fmt.Appendf(nil, `[server]
listen = %q
admin  = %q
socket = %q

[storage]
dir      = %q
min_free = "16MiB"

[project.app]
amplitude_api_keys = [%q]
relay = "off"

[sync.production]
region     = "eu"
site_id    = "site"
api_key    = "key"
endpoint   = "http://%s"
identifier = "user_id"

[[sync.production.select]]
event  = ["Heartbeat"]
action = "drop"

[[sync.production.select]]
event = ["*"]

[sync.production.delivery]
retry_max = "1s"
max_pending_bytes = "64MiB"
`, h.listen, h.admin, filepath.Join(h.folder, "admin.sock"), filepath.Join(h.folder, "storage"), key, h.sandbox), 0o600),
		os.WriteFile(filepath.Join(h.folder, "short.yml"), []byte(short), 0o600),
		os.WriteFile(filepath.Join(h.folder, "prometheus.yml"), fmt.Appendf(nil, `global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q, %q]
scrape_configs:
  - job_name: ampcio
    static_configs: [{targets: [%q]}]
`, shipped, filepath.Join(h.folder, "short.yml"), h.admin), 0o600))
}

// shortened are the alerts of age and of blocked syncs, by the same expressions, but with
// seconds in place of minutes. The shipped file stays as it is, and is evaluated too.
func shortened(rules string) (string, error) {
	out := "groups:\n  - name: short\n    rules:\n"
	for _, name := range []string{"AmpcioSyncBlocked", "AmpcioEventsWait"} {
		_, rule, found := strings.Cut(rules, "      - alert: "+name+"\n")
		rule, _, ended := strings.Cut(rule, "\n\n")
		if !found || !ended {
			return "", fmt.Errorf("alerts.yml has no %s", name)
		}
		for _, change := range [][2]string{{"for: 2m", "for: 1s"}, {"for: 5m", "for: 1s"}, {"> 900", "> 1"}} {
			rule = strings.Replace(rule, change[0], change[1], 1)
		}
		if !strings.Contains(rule, "for: 1s") || name == "AmpcioEventsWait" && !strings.Contains(rule, "_seconds > 1\n") {
			return "", fmt.Errorf("%s has changed, and check does not know how to shorten it: %s", name, rule)
		}
		out += "      - alert: Short" + name + "\n" + rule + "\n"
	}
	return out, nil
}

// The steps.

func (h *house) flow(ctx context.Context) error {
	if err := h.fault(ctx, http.MethodPut, "refuse_event=Refused"); err != nil {
		return err
	}
	if err := errors.Join(h.send(ctx, key, 20, "Order Paid"), h.send(ctx, key, 5, "Heartbeat")); err != nil {
		return err
	}
	if err := h.until(`sum(ampcio_events_total{outcome="delivered"})`, 25)(ctx); err != nil {
		return err
	}
	// A series of a reason is seen to grow from its second time on.
	for n := range 2 {
		err := errors.Join(h.send(ctx, key, 20, "Order Paid"), h.send(ctx, key, 5, "Heartbeat"), h.send(ctx, key, 1, "Refused"))
		h.sent-- // the same once more
		err = errors.Join(err, h.send(ctx, key, 1, "Refused"))
		if wrong := h.send(ctx, "not a key", 1, "Order Paid"); wrong == nil {
			err = errors.Join(err, errors.New("a wrong key was taken"))
		}
		if err != nil {
			return err
		}
		if err := h.until(`sum(ampcio_events_total{outcome="dead"})`, float64(n+1))(ctx); err != nil {
			return err
		}
	}
	if err := h.until(`sum(ampcio_door_duplicates_total)`, 2)(ctx); err != nil {
		return err
	}
	return h.look(ctx)
}

func (h *house) oneFails(ctx context.Context) error {
	if err := h.fault(ctx, http.MethodPut, "poison=user-99999"); err != nil {
		return err
	}
	others := h.sent
	h.sent = 99_998
	err := h.send(ctx, key, 1, "Order Paid")
	h.sent = others
	if err := errors.Join(err, h.send(ctx, key, 9, "Order Paid")); err != nil {
		return err
	}
	if err := h.until(`sum(ampcio_queue_waiting_users)`, 1)(ctx); err != nil {
		return err
	}
	if err := h.look(ctx); err != nil {
		return err
	}
	if err := h.fault(ctx, http.MethodDelete, ""); err != nil {
		return err
	}
	return h.until(`sum(ampcio_events_total{outcome="delivered"})`, 85)(ctx)
}

func (h *house) outage(ctx context.Context) error {
	if err := h.fault(ctx, http.MethodPut, "outage=1h"); err != nil {
		return err
	}
	if err := h.send(ctx, key, 40, "Order Paid"); err != nil {
		return err
	}
	if err := h.alert(ctx, "ShortAmpcioEventsWait", "firing"); err != nil {
		return err
	}
	return h.look(ctx)
}

func (h *house) back(ctx context.Context) error {
	if err := h.fault(ctx, http.MethodDelete, ""); err != nil {
		return err
	}
	if err := h.alert(ctx, "ShortAmpcioEventsWait", ""); err != nil {
		return err
	}
	if err := h.until(`sum(ampcio_events_total{outcome="delivered"})`, 125)(ctx); err != nil {
		return err
	}
	return h.look(ctx)
}

func (h *house) crash(ctx context.Context) (err error) {
	if err := h.daemon.Process.Kill(); err != nil {
		return err
	}
	_ = h.daemon.Wait()
	if h.daemon, err = h.start("daemon", h.ampcio, "serve", "--config", h.config); err != nil {
		return err
	}
	if err := h.until(`changes(ampcio_start_time_seconds[1m])`, 1)(ctx); err != nil {
		return err
	}
	if err := h.look(ctx); err != nil {
		return err
	}
	for _, counter := range []string{"ampcio_events_total", "ampcio_events_received_total", "ampcio_operations_total"} {
		if err := h.until(`max(resets(`+counter+`[1m]))`, 0)(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (h *house) revoked(ctx context.Context) error {
	if err := h.fault(ctx, http.MethodPut, "401=1"); err != nil {
		return err
	}
	if err := h.send(ctx, key, 5, "Order Paid"); err != nil {
		return err
	}
	if err := h.alert(ctx, "ShortAmpcioSyncBlocked", "firing"); err != nil {
		return err
	}
	return h.look(ctx)
}

func (h *house) mended(ctx context.Context) error {
	if err := h.fault(ctx, http.MethodDelete, ""); err != nil {
		return err
	}
	if err := h.verb(ctx, "sync", "retry", "production"); err != nil {
		return err
	}
	return h.alert(ctx, "ShortAmpcioSyncBlocked", "")
}

func (h *house) reload(ctx context.Context) error {
	// More than once: Prometheus sees a change between two looks, and times are whole seconds.
	err := poll(ctx, func() bool {
		if h.verb(ctx, "reload") != nil {
			return false
		}
		values, err := h.query(ctx, `max(changes(ampcio_config_last_reload_timestamp_seconds[1m])) > bool 0`)
		return err == nil && slices.Equal(values, []string{"1"})
	}, func() string { return "no reload has changed ampcio_config_last_reload_timestamp_seconds" })
	if err != nil {
		return err
	}
	return h.look(ctx)
}

func (h *house) rulesAreWell(ctx context.Context) error {
	var rules struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Name, Health, LastError string
				Alerts                  []struct{ Annotations map[string]string }
			}
		}
	}
	if err := h.ask(ctx, "/api/v1/rules", &rules); err != nil {
		return err
	}
	seen := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if seen++; r.Health != "ok" {
				return fmt.Errorf("%s/%s is %s: %s", g.Name, r.Name, r.Health, r.LastError)
			}
		}
	}
	if seen < 22 {
		return fmt.Errorf("only %d rules were evaluated", seen)
	}
	return nil
}

func (h *house) panelsAreWell(context.Context) error {
	var empty []string
	for _, panel := range slices.Sorted(maps.Keys(h.exprs)) {
		expr := h.exprs[panel]
		if !h.filled[panel] && !slices.ContainsFunc(mayBeEmpty, func(name string) bool { return strings.Contains(expr, name) }) {
			empty = append(empty, fmt.Sprintf("%s: %s", panel, expr))
		}
	}
	if len(empty) > 0 {
		return fmt.Errorf("%d of %d never had:\n%s", len(empty), len(h.exprs), strings.Join(empty, "\n"))
	}
	return nil
}

// What they do it with.

// readDashboard gathers what the panels ask, as Grafana would.
func (h *house) readDashboard() error {
	b, err := os.ReadFile(filepath.Join(h.contrib, "grafana", "ampcio.json"))
	if err != nil {
		return err
	}
	var dashboard any
	if err := json.Unmarshal(b, &dashboard); err != nil {
		return err
	}
	h.exprs = map[string]string{}
	fill := strings.NewReplacer("$__rate_interval", "10s", "$__interval", "20s", "$instance", ".*", "$sync", ".*")
	var walk func(title string, v any)
	walk = func(title string, v any) {
		switch v := v.(type) {
		case map[string]any:
			if own, ok := v["title"].(string); ok {
				title = own
			}
			if expr, ok := v["expr"].(string); ok {
				h.exprs[fmt.Sprint(title, " ", v["refId"], v["name"])] = fill.Replace(expr)
			}
			for _, below := range v {
				walk(title, below)
			}
		case []any:
			for _, below := range v {
				walk(title, below)
			}
		}
	}
	walk("", dashboard)
	if len(h.exprs) < 40 {
		return fmt.Errorf("only %d expressions were found in the dashboard", len(h.exprs))
	}
	return nil
}

// look evaluates all that the dashboard asks, and remembers what was answered.
func (h *house) look(ctx context.Context) error {
	for panel, expr := range h.exprs {
		found, err := h.query(ctx, expr)
		if err != nil {
			return fmt.Errorf("panel %s: %w", panel, err)
		}
		if len(found) > 0 {
			h.filled[panel] = true
		}
	}
	return nil
}

// send posts events of one name, each of another user.
func (h *house) send(ctx context.Context, key string, n int, name string) error {
	var events []map[string]any
	for range n {
		h.sent++
		events = append(events, map[string]any{"user_id": fmt.Sprintf("user-%05d", h.sent), "event_type": name, "insert_id": fmt.Sprint(name, h.sent)})
	}
	body, err := json.Marshal(map[string]any{"api_key": key, "events": events})
	if err != nil {
		return err
	}
	return h.do(ctx, http.MethodPost, "http://"+h.listen+"/2/httpapi", body, nil)
}

func (h *house) fault(ctx context.Context, method, query string) error {
	return h.do(ctx, method, "http://"+h.sandbox+"/_sandbox/faults?"+query, nil, nil)
}

func (h *house) verb(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, h.ampcio, append(args, "--config", h.config)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ampcio %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (h *house) do(ctx context.Context, method, address string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %.300s", method, address, resp.Status, text)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// ask asks Prometheus' HTTP API.
func (h *house) ask(ctx context.Context, path string, into any) error {
	var answer struct {
		Status string
		Data   json.RawMessage
	}
	if err := h.do(ctx, http.MethodGet, "http://"+h.prom+path, nil, &answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", path, answer.Status)
	}
	return json.Unmarshal(answer.Data, into)
}

// query gives the values of an expression now.
func (h *house) query(ctx context.Context, expr string) (values []string, err error) {
	var data struct {
		Result []struct{ Value [2]any }
	}
	if err := h.ask(ctx, "/api/v1/query?query="+url.QueryEscape(expr), &data); err != nil {
		return nil, err
	}
	for _, r := range data.Result {
		values = append(values, fmt.Sprint(r.Value[1]))
	}
	return values, nil
}

// until waits for an expression of one series to have a value.
func (h *house) until(expr string, value float64) func(context.Context) error {
	return func(ctx context.Context) error {
		want := fmt.Sprint(value)
		last := "nothing yet"
		return poll(ctx, func() bool {
			values, err := h.query(ctx, expr)
			switch {
			case err != nil:
				last = err.Error()
			default:
				last = strings.Join(values, ", ")
			}
			return err == nil && last == want
		}, func() string { return fmt.Sprintf("%s is %s, want %s", expr, last, want) })
	}
}

// alert waits for an alert to be in a state; "" = it is in none.
func (h *house) alert(ctx context.Context, name, state string) error {
	last := "nothing yet"
	return poll(ctx, func() bool {
		var data struct {
			Alerts []struct {
				Labels, Annotations map[string]string
				State               string
			}
		}
		if err := h.ask(ctx, "/api/v1/alerts", &data); err != nil {
			last = err.Error()
			return false
		}
		last = ""
		for _, a := range data.Alerts {
			if a.Labels["alertname"] == name && a.Labels["sync"] == "production" {
				last = a.State
				for _, text := range a.Annotations {
					if strings.Contains(text, "error") || strings.Contains(text, "{{") || strings.Contains(text, "<no value>") {
						last = "badly worded: " + text
					}
				}
			}
		}
		return last == state
	}, func() string { return fmt.Sprintf("%s is %q, want %q", name, last, state) })
}

func poll(ctx context.Context, done func() bool, why func() string) error {
	for !done() {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", context.Cause(ctx), why())
		}
	}
	return nil
}
