package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ampcio/admin"
	"ampcio/queue"
)

func sendTestCommand() *cli.Command {
	return &cli.Command{
		Name: "send-test", Usage: "send one event through the real listener, and follow it until Customer.io has answered",
		UsageText: "ampcio send-test [--project P] [--sync S] [--event NAME] [--user U] [--dry-run] [--yes] [--json]",
		Description: "Sends one event as an SDK does, and says of each step how it went and how long it took: the listener, the disk,\n" +
			"the rules of each sync, Customer.io's answer; and where it stops, what to do. The daemon must run.\n\n" +
			"A person (ampcio-send-test, or --user) and an event appear in Customer.io, and campaigns that the event starts do\n" +
			"start for that person: it asks before, and --dry-run only says what would be sent. By default the event has the\n" +
			"name that the first rule of the sync sends.\n\n" +
			"Exit 0: every enabled sync has delivered it. 65: a rule filters it, or Customer.io refuses it. 69: it did not get\n" +
			"that far; it waits in the queue, and is sent when the sync delivers again.",
		Flags: []cli.Flag{configFlag,
			&cli.StringFlag{Name: "project", Usage: "whose API key it carries; needed when there is more than one `PROJECT`"},
			&cli.StringFlag{Name: "sync", Usage: "look at this `SYNC` only"},
			&cli.StringFlag{Name: "event", Usage: "the `NAME` of the event"},
			&cli.StringFlag{Name: "user", Usage: "its `USER` id", Value: "ampcio-send-test"},
			&cli.StringFlag{Name: "properties", Usage: "event properties, a `JSON` object"},
			&cli.StringFlag{Name: "user-properties", Usage: "user properties, a `JSON` object"},
			&cli.DurationFlag{Name: "timeout", Usage: "how long to wait for Customer.io", Value: 30 * time.Second},
			dryRunFlag, yesFlag, &cli.BoolFlag{Name: "json", Usage: "one JSON object"}},
		Action: sendTest,
	}
}

// testReport is what send-test --json prints.
type testReport struct {
	OK       bool         `json:"ok"`
	DryRun   bool         `json:"dry_run"`
	Plan     *testPlan    `json:"plan"`
	Accepted *testAnswer  `json:"accepted"` // null: it was not sent
	Steps    []timedStep  `json:"steps"`
	Syncs    []testResult `json:"syncs"`
}

// testAnswer is how the listener has answered.
type testAnswer struct {
	Status       int    `json:"status"`
	Milliseconds int64  `json:"ms"`
	Protocol     string `json:"protocol"`
	Body         string `json:"body"`
	TLSProblem   string `json:"tls_problem"` // why an SDK would not trust the certificate; "" = it would, or there is none
}

type timedStep struct {
	Milliseconds int64 `json:"ms"` // since it was sent
	testStep
}

// testResult is how it ended for one sync.
type testResult struct {
	Sync      string    `json:"sync"`
	Counts    bool      `json:"counts"` // for the exit code
	Delivered bool      `json:"delivered"`
	Ended     bool      `json:"ended"`
	Event     string    `json:"event"` // delivered, filtered/REASON, dead/REASON; "" while it waits
	User      string    `json:"user"`
	State     testState `json:"state"`
}

// testRun is one send-test as it goes.
type testRun struct {
	c      *cli.Context
	say    io.Writer // for people; nothing with --json
	report testReport
	began  time.Time
}

var errTestOver = errors.New("nothing more is to come")

func sendTest(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	if c.String("user") == "" {
		return exit(exitUsage, errors.New("--user: an event needs a user"))
	}
	if c.Duration("timeout") <= 0 {
		return exit(exitUsage, errors.New("--timeout: it takes some time, such as 30s"))
	}
	o, err := newOperator(c)
	if err != nil {
		return err
	}
	order := testOrder{Project: c.String("project"), Sync: c.String("sync"), Event: c.String("event"), User: c.String("user"),
		InsertID: "ampcio-send-test-" + rand.Text()}
	for _, given := range []struct {
		flag string
		into *json.RawMessage
	}{{"properties", &order.Properties}, {"user-properties", &order.UserProperties}} {
		if text := c.String(given.flag); text != "" {
			if *given.into = json.RawMessage(text); !json.Valid(*given.into) {
				return exit(exitUsage, fmt.Errorf(`--%s must be a JSON object, such as '{"total": 20}'`, given.flag))
			}
		}
	}
	t := &testRun{c: c, say: c.App.Writer, report: testReport{DryRun: c.Bool("dry-run"), Steps: []timedStep{}, Syncs: []testResult{}}}
	if c.Bool("json") {
		t.say = io.Discard
	}
	if err := t.plan(o, order); err != nil {
		return err
	}
	if c.Bool("dry-run") {
		fmt.Fprintf(t.say, "would be sent:\n%s\n", t.report.Plan.Body)
		return t.end(nil)
	}
	if !c.Bool("yes") {
		if c.Bool("json") {
			t.writePlan(c.App.ErrWriter)
		}
		if err := confirm(c, "Send it?"); err != nil {
			return err
		}
	}
	return t.end(t.send(o, order))
}

// plan asks the daemon what would be, and prints it.
func (t *testRun) plan(o *operator, order testOrder) error {
	order.DryRun = true
	return t.ask(t.c.Context, o, order, func(told testTold) error {
		t.report.Plan = told.Plan
		t.writePlan(t.say)
		return nil
	})
}

func (t *testRun) ask(ctx context.Context, o *operator, order testOrder, each func(testTold) error) error {
	body, err := json.Marshal(order)
	if err != nil {
		return err
	}
	err = o.ask(ctx, "send-test", body, func(line []byte) error {
		var told testTold
		if err := json.Unmarshal(line, &told); err != nil {
			return exit(exitUnavailable, fmt.Errorf("read the daemon's answer: %w", err))
		}
		return each(told)
	})
	switch {
	case !notRunning(err):
		return err
	case o.broken != nil:
		return o.broken
	}
	return exit(exitUnavailable, fmt.Errorf("ampcio does not run (nobody answers at %s), so there is nothing to send a test to: systemctl start ampcio, or ampcio serve", o.socket))
}

const planIndent = "             "

func (t *testRun) writePlan(w io.Writer) {
	p := t.report.Plan
	columns := terminalColumns(w)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-12s %s\n", name, folded(fmt.Sprintf(format, args...), planIndent, columns))
	}
	row("config", "%s, project %s", p.Config, p.Project)
	for _, l := range p.Listeners {
		where := l.URL
		if l.Network == "unix" {
			where += " at the unix socket " + l.Address
		}
		if p.Systemd {
			where += ", passed by systemd"
		}
		row("listener", "%s", where)
	}
	if c := p.Certificate; c != nil {
		row("TLS", "certificate for %s, until %s", strings.Join(c.Names, ", "), c.NotAfter.Format(time.DateOnly))
	}
	row("proxies", "X-Forwarded-For is believed from: %s", orNone(strings.Join(p.TrustedProxies, ", ")))
	if p.Full != "" {
		row("storage", "FULL, the event will be refused: %s", p.Full)
	}
	row("event", "%q of user %s; its id in Customer.io: %s", p.Event, p.User, p.EventID)
	for _, y := range p.Syncs {
		row(y.Sync, "%s, to %s", y.State.Status, y.Endpoint)
		t.explain(w, y.State)
		if y.Event == verdictSent {
			row("", "the event is sent by %s", y.Rule)
		} else {
			row("", "the event is NOT sent (%s)", y.Event)
		}
		for _, why := range y.Why {
			row("", "- %s", why)
		}
		user := "sent, if anything is new"
		if y.User != verdictSent {
			user = "not sent (" + y.User + ")"
		}
		row("", "the user update is %s; person: %s", user, orNone(y.Identifier))
	}
	if slices.ContainsFunc(p.Syncs, func(y testSync) bool {
		return y.Event == verdictSent && y.State.Status != admin.StatusDisabled && y.State.Status != dryRunStatus
	}) {
		fmt.Fprintln(w, folded(fmt.Sprintf("In Customer.io the person and the event appear, and campaigns that %q starts will start for that person.", p.Event), "", columns))
	} else {
		fmt.Fprintln(w, "As things are, the event does not reach Customer.io.")
	}
	if p.Relay != "" {
		fmt.Fprintf(w, "The project's relay passes the event on to Amplitude (%s), too.\n", p.Relay)
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// explain says why a sync does not deliver, and what to do.
func (t *testRun) explain(w io.Writer, s testState) {
	if s.Status == admin.StatusOK {
		return
	}
	columns := terminalColumns(w)
	row := func(text string) { fmt.Fprintf(w, "%s%s\n", planIndent, folded(text, planIndent, columns)) }
	if s.Detail != "" {
		detail := s.Detail
		if s.Reason != "" && !strings.Contains(detail, "("+s.Reason+")") {
			detail += " (" + s.Reason + ")"
		}
		row(detail)
	}
	if s.Advice != "" {
		row("to do: " + s.Advice)
	}
	for _, h := range s.Hints {
		row("- " + h)
	}
}

// send has the daemon follow the event, sends it, and waits for what becomes of it.
func (t *testRun) send(o *operator, order testOrder) error {
	ctx, cancel := context.WithTimeout(t.c.Context, t.c.Duration("timeout"))
	defer cancel()
	err := t.ask(ctx, o, order, func(told testTold) error {
		if told.Plan != nil {
			t.report.Plan = told.Plan
			for _, y := range told.Plan.Syncs {
				t.report.Syncs = append(t.report.Syncs, testResult{Sync: y.Sync, State: y.State,
					Counts: order.Sync != "" || y.State.Status != admin.StatusDisabled && y.State.Status != dryRunStatus})
			}
			if err := t.post(ctx, told.Plan); err != nil {
				return err
			}
			return t.over()
		}
		if told.Step != nil {
			t.step(*told.Step)
		}
		return t.over()
	})
	switch {
	case errors.Is(err, errTestOver):
		return nil
	case t.c.Context.Err() != nil:
		return exit(exitTemporary, errEndedByOperator)
	case ctx.Err() != nil:
		return nil // end says what waits
	}
	return err
}

// over says that nothing more is to be waited for: each sync has ended it, or cannot
// until somebody does something.
func (t *testRun) over() error {
	for _, y := range t.report.Syncs {
		if !y.Ended && !y.State.hopeless() {
			return nil
		}
	}
	return errTestOver
}

// post sends the event to the first listener.
func (t *testRun) post(ctx context.Context, p *testPlan) error {
	if len(p.Listeners) == 0 {
		return exit(exitUnavailable, errors.New("ampcio listens nowhere yet: try again in a moment"))
	}
	l := p.Listeners[0]
	answer := &testAnswer{}
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, l.Network, l.Address)
		},
		ForceAttemptHTTP2: true,
		// It is asked for under the name that it has: which one SDKs use is not known here.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
			answer.TLSProblem = distrust(s.PeerCertificates)
			return nil
		}},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.URL, bytes.NewReader(p.Body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	t.began = time.Now()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		if wrapped, is := errors.AsType[*url.Error](err); is {
			err = wrapped.Err
		}
		return exit(exitUnavailable, fmt.Errorf("the listener %s cannot be reached from this machine: %w", l.URL, err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return exit(exitUnavailable, fmt.Errorf("read the listener's answer: %w", err))
	}
	answer.Status, answer.Protocol, answer.Body = resp.StatusCode, resp.Proto, strings.TrimSpace(string(body))
	answer.Milliseconds = time.Since(t.began).Milliseconds()
	t.report.Accepted = answer
	if answer.TLSProblem != "" {
		t.line(time.Now(), "listener", "the certificate is one that browsers and SDKs refuse: %s", answer.TLSProblem)
	}
	if resp.StatusCode != http.StatusOK {
		advice := "see ampcio queue-stats"
		if p.Full != "" {
			advice = p.Full
		}
		return exit(exitUnavailable, fmt.Errorf("the event was refused: %d %s; %s", resp.StatusCode, answer.Body, advice))
	}
	t.line(time.Now(), "accepted", "200 by %s: it is on disk", resp.Proto)
	return nil
}

// distrust says why a certificate would not be trusted by a machine like this one.
func distrust(chain []*x509.Certificate) string {
	if len(chain) == 0 {
		return "there is none"
	}
	o := x509.VerifyOptions{Intermediates: x509.NewCertPool()}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(o); err != nil {
		return err.Error()
	}
	return ""
}

// line says what happened, and when, counted from the sending.
func (t *testRun) line(at time.Time, name, format string, args ...any) {
	fmt.Fprintf(t.say, "%6d ms  %-12s %s\n", at.Sub(t.began).Milliseconds(), name, fmt.Sprintf(format, args...))
}

// step takes what the daemon tells of one sync.
func (t *testRun) step(s testStep) {
	t.report.Steps = append(t.report.Steps, timedStep{s.At.Sub(t.began).Milliseconds(), s})
	var y *testResult
	for i := range t.report.Syncs {
		if t.report.Syncs[i].Sync == s.Sync {
			y = &t.report.Syncs[i]
		}
	}
	if y == nil {
		return
	}
	switch s.What {
	case queue.StepRead:
		t.line(s.At, s.Sync, "in its queue, sequence %d", s.Seq)
	case queue.StepClaimed:
		t.line(s.At, s.Sync, "its turn: the rules decide, and what they send goes to Customer.io")
	case queue.StepWaits:
		t.line(s.At, s.Sync, "the try has failed (%s); the next in %s", s.Reason, (time.Duration(s.WaitMS) * time.Millisecond).Round(100*time.Millisecond))
	case "state":
		y.State = *s.State
		t.line(s.At, s.Sync, "is %s", y.State.Status)
		t.explain(t.say, y.State)
	case queue.StepEnded:
		y.Ended, y.Event, y.User = true, s.Event, s.User
		switch {
		case s.Event == "delivered":
			y.Delivered = true
		case s.Event == "filtered/events_off": // of a sync of user updates
			y.Delivered = s.User == "delivered" || s.User == "filtered/unchanged"
		}
		t.line(s.At, s.Sync, "%s: event %s, user update %s", s.Ending, inWords(s.Event), inWords(s.User))
		if len(s.Answer) > 0 && string(s.Answer) != "null" {
			t.line(s.At, s.Sync, "Customer.io's answer: %s; the whole of it: ampcio dead-letters show %s/%d", s.Answer, s.Sync, s.Seq)
		}
	}
}

// inWords puts a verdict such as filtered/not_selected into words.
func inWords(verdict string) string {
	switch kind, reason, _ := strings.Cut(verdict, "/"); {
	case kind == "delivered":
		return "accepted by Customer.io"
	case kind == "dead":
		return "refused (" + reason + ")"
	case reason == "unchanged":
		return "not needed (unchanged)"
	case kind == "filtered":
		return "not sent (" + reason + ")"
	}
	return "none"
}

// end prints the result and says with which code the command exits.
func (t *testRun) end(err error) error {
	var wrong []string
	code, delivered := 0, 0
	for _, y := range t.report.Syncs {
		switch {
		case y.Delivered:
			delivered++
		case !y.Counts:
			fmt.Fprintf(t.say, "%s is %s and does not count\n", y.Sync, y.State.Status)
		case y.Ended:
			code = max(code, exitData)
			wrong = append(wrong, fmt.Sprintf("%s has not delivered the event: %s", y.Sync, inWords(y.Event)))
		case y.State.Status == admin.StatusOK:
			code = exitUnavailable
			wrong = append(wrong, fmt.Sprintf("%s has not delivered it within %s; it waits in the queue, which goes on by itself (ampcio sync status %[1]s)", y.Sync, t.c.Duration("timeout")))
		case y.State.Status == admin.StatusDisabled || y.State.Status == dryRunStatus:
			code = exitUnavailable
			wrong = append(wrong, fmt.Sprintf("%s is %s: it never sends this event, also when it delivers again", y.Sync, y.State.Status))
		default:
			code = exitUnavailable
			wrong = append(wrong, fmt.Sprintf("%s is %s: the event waits in its queue, and is sent when it delivers again", y.Sync, y.State.Status))
		}
	}
	if err == nil && !t.report.DryRun && delivered == 0 && len(wrong) == 0 {
		code = exitUnavailable
		wrong = append(wrong, "no sync delivers: nothing reached Customer.io")
	}
	for _, y := range t.report.Plan.Syncs { // why a rule has filtered it was said above, but a person looks at the end
		for _, r := range t.report.Syncs {
			if r.Sync == y.Sync && r.Ended && !r.Delivered && strings.HasPrefix(r.Event, "filtered/") {
				wrong = append(wrong, y.Why...)
			}
		}
	}
	t.report.OK = err == nil && code == 0
	if t.c.Bool("json") {
		e := json.NewEncoder(t.c.App.Writer)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if encodeErr := e.Encode(t.report); encodeErr != nil {
			return encodeErr
		}
	}
	if err != nil || t.report.DryRun {
		return err
	}
	if code != 0 {
		return exit(code, errors.New(strings.Join(wrong, "\n  ")))
	}
	fmt.Fprintf(t.say, "ok: Customer.io has accepted it. Look for %s in its activity log; to remove the person, delete it there\n", t.report.Plan.User)
	return nil
}
