package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/delivery"
	"ampcio/queue"
)

// A relay passes the events of a project on to Amplitude. It is a stream as a sync is,
// with a ledger and a row of its own, and every verb that takes the name of a sync takes
// its name: relay.PROJECT, which no sync can have.
const relayPrefix = "relay."

// relayedProject is the project of which a stream is the relay, if it is one.
func relayedProject(stream string) (project string, isRelay bool) {
	return strings.CutPrefix(stream, relayPrefix)
}

func isRelay(stream string) bool { return strings.HasPrefix(stream, relayPrefix) }

// streamNames lists the streams of a configuration, syncs and relays, sorted.
func streamNames(cfg *config.Config) []string {
	names := cfg.Sync.Names()
	for _, project := range cfg.Project.Relayed() {
		names = append(names, relayPrefix+project)
	}
	slices.Sort(names)
	return names
}

// inConfig says whether a stream is in a configuration.
func inConfig(cfg *config.Config, stream string) bool {
	if project, isRelay := relayedProject(stream); isRelay {
		return cfg.Project[project].Relayed()
	}
	_, configured := cfg.Sync[stream]
	return configured
}

// relaySettings are what a relay does; nil when there is none of that name. It takes all
// that its project takes. A bound of its own never makes new events refused: what waits for
// Amplitude longest is given up then, and where no bound is written nothing is.
func relaySettings(cfg *config.Config, stream string) *settings {
	if !isRelay(stream) || !inConfig(cfg, stream) {
		return nil
	}
	project, _ := relayedProject(stream)
	p := cfg.Project[project]
	return &settings{
		project: project, enabled: true, options: relayOptions(p),
		maxPending: int64(p.RelayMaxPendingBytes), discardOldest: true,
	}
}

// relayOptions are a relay's settings as delivery takes them.
func relayOptions(p config.Project) delivery.Options {
	return delivery.Options{
		Name: relayPrefix + p.Name, Region: p.Relay, Endpoint: p.RelayEndpoint,
		Relay:     &delivery.Relay{Project: p.Name, Keys: p.AmplitudeAPIKeys, Mark: p.RelayMark},
		UserAgent: "ampcio/" + version().version,
	}
}

// takenBySync says whether a sync of the project takes a record, or took it. That is what
// relay_mark tells Amplitude's hosted destination to leave out, and it is exact however
// late an event is relayed: a sync that begins or ends to take events, as one does that
// leaves a dry run or is disabled, does so between two records.
func (d *daemon) takenBySync(project string) func(seq uint64) bool {
	return func(seq uint64) bool {
		d.mu.RLock()
		defer d.mu.RUnlock()
		for name, s := range d.streams {
			if takesForSync(name) && s.consumer != nil && s.consumer.Takes(project, seq) {
				return true
			}
		}
		for _, c := range d.between { // as while a sync is renamed, or a new one has begun to take this very record
			if c.Takes(project, seq) {
				return true
			}
		}
		return false
	}
}

// relayedFirst is an error as long as a relay that marks has pending what a sync has taken:
// without the ledger of that nobody would know to mark it any more.
func relayedFirst(ctx context.Context, h house, sync string) error {
	c := h.consumer(sync)
	stats, err := c.Stats()
	if err != nil {
		return exit(exitIO, err)
	}
	name := relayPrefix + stats.Project
	relay, p := h.consumer(name), h.config().Project[stats.Project]
	if isRelay(sync) || relay == nil || !p.Relayed() || p.RelayMark == "" {
		return nil
	}
	found := errors.New("one is enough")
	err = relay.PendingRecords(ctx, func(r queue.Record) error {
		if c.Takes(r.Project, r.Seq) {
			return found
		}
		return nil
	})
	if errors.Is(err, found) {
		return exit(exitData, fmt.Errorf("%s has not passed on yet all that %s has taken: without %[2]s it would not know to mark that (relay_mark), and Amplitude's hosted sync would send it again. Wait until nothing of then is pending there (ampcio sync status %[1]s); where no hosted sync looks at the mark, take relay_mark out of the configuration, then: ampcio reload", name, sync))
	}
	return exit(exitIO, err)
}

// takesForSync says whether what the ledger of that name takes is what a sync sends: not
// that of a relay or a dry run.
func takesForSync(name string) bool {
	_, trial := syncOfTrial(name)
	return !trial && !isRelay(name)
}

// checkRelays tells of each relay where it goes, and with --online asks Amplitude whether
// it knows the keys.
func checkRelays(c *cli.Context, cfg *config.Config, w io.Writer, report *checkReport) (errs []error) {
	for _, project := range cfg.Project.Relayed() {
		p := cfg.Project[project]
		name, to := relayPrefix+project, "Amplitude, region "+p.Relay
		if p.RelayEndpoint != "" {
			to = p.RelayEndpoint
		}
		report.Syncs = append(report.Syncs, checkedSync{Sync: name, Project: project, Destination: admin.ToAmplitude, Region: p.Relay})
		y := &report.Syncs[len(report.Syncs)-1]
		fmt.Fprintf(w, "%s: every event of project %s is passed on to %s\n", name, project, to)
		if !c.Bool("online") {
			continue
		}
		if _, err := delivery.CheckAccount(c.Context, relayOptions(p)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			y.Agrees, y.Error = new(bool), err.Error()
			continue
		}
		y.Agrees = new(true)
		fmt.Fprintf(w, "%s: Amplitude answers, and says nothing against %s\n", name, counted(uint64(len(p.AmplitudeAPIKeys)), "API key", "API keys"))
	}
	return errs
}

// service is where a stream goes to, for people.
func service(stream string) string {
	if isRelay(stream) {
		return "Amplitude"
	}
	return "Customer.io"
}

// leftOut says of a stream that is not in the configuration what is missing there.
func leftOut(stream string) string {
	if project, isRelay := relayedProject(stream); isRelay {
		return fmt.Sprintf("project.%s.relay is off", project)
	}
	return fmt.Sprintf("[sync.%s] is gone", stream)
}

// relayJudge is the judge of a relay: what did not come from an SDK is not passed on.
func (s *standard) relayJudge(fromSDK bool, eventType string) judged {
	if fromSDK {
		return judged{event: verdictSent, name: eventType}
	}
	return judged{event: "not_from_sdk", name: eventType}
}
