package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"ampcio/alerts"
	"ampcio/logbook"
)

func alertsCommand() *cli.Command {
	return &cli.Command{
		Name: "alerts", Usage: "try where alerts are posted, and see what is firing",
		UsageText:   "ampcio alerts test|list",
		Description: "Alerts are posted to alerts.url of the configuration, when something is wrong and when it is over.",
		Subcommands: []*cli.Command{
			{
				Name: "test", Usage: "post a test message now, and say what the other side answered",
				UsageText: "ampcio alerts test [--json]",
				Description: "The running daemon posts it, by the configuration in force; when it is stopped, this command does, by that of the file.\n" +
					"The address itself is never printed: many an address is a secret. Exit 69 when it was not taken.\n\nExample: ampcio alerts test",
				Flags: []cli.Flag{configFlag, jsonFlag}, Action: alertsTest,
			},
			{
				Name: "list", Usage: "what is firing, and what waits to be posted",
				UsageText:   "ampcio alerts list [--json]",
				Description: "Works while the daemon runs and when it is stopped.\n\nExample: ampcio alerts list",
				Flags:       []cli.Flag{configFlag, jsonFlag}, Action: alertsList,
			},
		},
	}
}

func init() { verbs["alerts-test"], verbs["alerts-list"] = alertsTestVerb, alertsListVerb }

// alertAnswer is what came of a test message.
type alertAnswer struct {
	alerts.Answer
	TookMS int64  `json:"took_ms"`
	By     string `json:"by"`   // daemon | command
	From   string `json:"from"` // where the address is written down
}

var errNoAlerts = exit(exitData, errors.New(`there is no address for alerts: set url or url_file under [alerts], then: ampcio reload`))

func testAlerts(ctx context.Context, o alerts.Options, by, from string) (alertAnswer, error) {
	if o.URL == "" {
		return alertAnswer{}, errNoAlerts
	}
	a := alerts.PostTest(ctx, o)
	return alertAnswer{Answer: a, TookMS: a.Took.Milliseconds(), By: by, From: from}, nil
}

func alertsTestVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	if err := readInput(in, &struct{}{}); err != nil {
		return err
	}
	answer, err := testAlerts(ctx, alertOptions(h.config()), "daemon", h.config().Alerts.URLFrom)
	if err != nil {
		return err
	}
	return tell(out, answer)
}

func alertsTest(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	o, err := newOperator(c)
	if err != nil {
		return err
	}
	var a alertAnswer
	err = o.ask(c.Context, "alerts-test", []byte("{}"), func(line []byte) error { return json.Unmarshal(line, &a) })
	if notRunning(err) {
		cfg, readErr := readConfig(c, true)
		if readErr != nil {
			return readErr
		}
		a, err = testAlerts(c.Context, alertOptions(cfg), "command", cfg.Alerts.URLFrom)
	}
	if err != nil {
		return err
	}
	if err := shown(c, a, func(w io.Writer) { a.print(w) }); err != nil || a.OK {
		return err
	}
	return exit(exitUnavailable, errors.New("the test message was not taken"))
}

// print tells what came of it.
func (a *alertAnswer) print(w io.Writer) {
	by := "the daemon that runs"
	if a.By != "daemon" {
		by = "this command, since ampcio is stopped"
	}
	fmt.Fprintf(w, "posted to   %s, as %s, by %s; the address is from %s\n", a.To, a.Format, by, a.From)
	fmt.Fprintf(w, "answered    %s, after %s\n", a.Words, time.Duration(a.TookMS)*time.Millisecond)
	if a.Body != "" {
		fmt.Fprintf(w, "with        %s\n", a.Body)
	}
	if a.OK {
		fmt.Fprintf(w, "The message was taken: look whether it has come (its id is %s).\n", a.ID)
	} else {
		fmt.Fprintf(w, "to do       %s\n", a.Advice)
	}
}

// alertList is what alerts list shows.
type alertList struct {
	Configured bool   `json:"configured"` // there is an address
	Source     string `json:"source"`     // daemon | files
	alerts.List
}

func alertsListVerb(_ context.Context, h house, in json.RawMessage, out io.Writer) error {
	if err := readInput(in, &struct{}{}); err != nil {
		return err
	}
	d, runs := h.(*daemon)
	if !runs {
		return errors.New("alerts-list is for the daemon")
	}
	l := alertList{Source: "daemon", Configured: d.config().Alerts.Given, List: alerts.List{Firing: []alerts.Firing{}, Waiting: []alerts.Message{}}}
	if desk := d.alerting.desk.Load(); desk != nil {
		l.List = desk.List()
	}
	return tell(out, l)
}

func alertsList(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	o, err := newOperator(c)
	if err != nil {
		return err
	}
	var l alertList
	err = o.ask(c.Context, "alerts-list", []byte("{}"), func(line []byte) error { return json.Unmarshal(line, &l) })
	if notRunning(err) && o.broken != nil {
		return o.broken
	}
	if notRunning(err) {
		dir := o.cfg.Storage.Dir
		if l.List, err = alerts.ReadList(filepath.Join(dir, alertsFile)); err != nil {
			return filesError(o.cfg, err)
		}
		l.Source, l.Configured = "files", o.cfg.Alerts.Given
	}
	if err != nil {
		return err
	}
	return shown(c, l, func(w io.Writer) { l.print(w, time.Now(), terminalColumns(w)) })
}

func (l *alertList) print(w io.Writer, now time.Time, columns int) {
	const indent = "          "
	if l.Source == "files" {
		fmt.Fprintln(w, "ampcio is stopped: this is how it was when it ran last")
	}
	if len(l.Firing) == 0 {
		fmt.Fprintln(w, "nothing is firing")
	}
	for _, f := range l.Firing {
		fmt.Fprintf(w, "%-8s  %s", f.Level, f.Kind)
		if f.Of != "" {
			fmt.Fprintf(w, " %s", f.Of)
		}
		fmt.Fprintf(w, ", for %s\n%s%s\n", logbook.Short(now.Sub(f.Since)), indent, folded(f.What, indent, columns))
		if f.Do != "" {
			fmt.Fprintf(w, "%sto do: %s\n", indent, folded(f.Do, indent+"       ", columns))
		}
	}
	switch {
	case !l.Configured:
		fmt.Fprintln(w, errNoAlerts)
	case len(l.Waiting) == 0 && l.Posted != nil:
		fmt.Fprintf(w, "nothing waits to be posted; the last message was posted %s ago\n", logbook.Short(now.Sub(*l.Posted)))
	case len(l.Waiting) == 0:
		fmt.Fprintln(w, "nothing waits to be posted; nothing was posted yet")
	default:
		fmt.Fprintf(w, "%s to be posted", counted(uint64(len(l.Waiting)), "message waits", "messages wait"))
		if l.Trouble != "" {
			fmt.Fprintf(w, ": %s", l.Trouble)
		}
		if l.Next != nil {
			fmt.Fprintf(w, "; tried again in %s", logbook.Short(l.Next.Sub(now)))
		}
		fmt.Fprintln(w, ". To see what is wrong: ampcio alerts test")
	}
	for _, m := range l.Waiting {
		fmt.Fprintf(w, "%s%s\n", indent, folded(logbook.Short(now.Sub(m.At))+" ago: "+m.Line(), indent, columns))
	}
	if l.NotKept != "" {
		fmt.Fprintf(w, "this is in memory only: %s\n", l.NotKept)
	}
}
