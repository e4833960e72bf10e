package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strings"
	"sync"
	"time"

	"ampcio/admin"
)

func init() { verbs["ack-blocked"] = ackVerb }

// ackMost is for how long somebody can know of an outage: who is on holiday longer than
// that has to be woken.
const ackMost = 30 * 24 * time.Hour

// acknowledging is that somebody knows of it.
type acknowledging struct {
	Syncs  []string `json:"syncs,omitempty"` // none = all that are blocked or unreachable
	Reason string   `json:"reason"`
	By     string   `json:"by"`
	For    int64    `json:"for_s"` // 0 = nobody knows of it any more
	DryRun bool     `json:"dry_run,omitempty"`
}

// ackAnswer is of one sync.
type ackAnswer struct {
	Sync         string              `json:"sync"`
	Status       string              `json:"status"`
	Acknowledged *admin.Acknowledged `json:"acknowledged"`
	DryRun       bool                `json:"dry_run"`
}

// ackFileMu is held by who changes the file.
var ackFileMu sync.Mutex

// ackVerb enters, durably, that somebody knows that syncs do not deliver. Of a stopped
// installation nobody knows which are blocked, so they have to be named.
func ackVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var asked acknowledging
	if err := readInput(in, &asked); err != nil {
		return err
	}
	long := time.Duration(asked.For) * time.Second
	if long < 0 || long > ackMost || long > 0 && strings.TrimSpace(asked.Reason) == "" {
		return exit(exitUsage, fmt.Errorf("say why it may wait, and for how long: at most %d days", ackMost/(24*time.Hour)))
	}
	status := map[string]string{}
	for _, name := range h.names() {
		status[name] = admin.StatusStopped
	}
	if d, is := h.(*daemon); is {
		snap, err := d.Snapshot(ctx)
		if err != nil {
			return exit(exitIO, err)
		}
		for _, y := range snap.Syncs {
			status[y.Name] = y.Status
		}
	}
	names := asked.Syncs
	for _, name := range names {
		if _, known := status[name]; !known {
			return unknownSync(h, name)
		}
	}
	stuck := func(name string) bool {
		return status[name] == admin.StatusBlocked || status[name] == admin.StatusUnreachable
	}
	if len(names) == 0 {
		for _, name := range h.names() {
			if stuck(name) || long == 0 {
				names = append(names, name)
			}
		}
		if len(names) == 0 {
			return exit(exitData, errors.New("nothing was acknowledged: no sync is blocked or unreachable (where ampcio is stopped, name the sync: --sync NAME)"))
		}
	}
	ackFileMu.Lock()
	defer ackFileMu.Unlock()
	storage := h.config().Storage.Dir
	known, err := readAcknowledgements(storage)
	if err != nil {
		return exit(exitIO, err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	var answers []ackAnswer
	for _, name := range names {
		if long > 0 && h.running() && !stuck(name) {
			return exit(exitData, fmt.Errorf("nothing was acknowledged: %s is %s, neither blocked nor unreachable", name, status[name]))
		}
		a := ackAnswer{Sync: name, Status: status[name], DryRun: asked.DryRun}
		if delete(known.Syncs, name); long > 0 {
			known.Syncs[name] = admin.Acknowledged{Reason: clipText(asked.Reason, 200), By: clipText(asked.By, 60), At: now, Until: now.Add(long)}
			entered := known.Syncs[name]
			a.Acknowledged = &entered
		}
		answers = append(answers, a)
	}
	if !asked.DryRun {
		if err := known.write(storage); err != nil {
			return exit(exitIO, fmt.Errorf("nothing was acknowledged: %w", err))
		}
	}
	for _, a := range answers {
		if err := tell(out, a); err != nil {
			return err
		}
	}
	return nil
}

// whoAsks names who sits at the keyboard, as far as that is known.
func whoAsks() string {
	for _, name := range []string{"SUDO_USER", "USER", "LOGNAME"} {
		if who := os.Getenv(name); who != "" {
			return who
		}
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "somebody"
}

// endAcknowledged forgets what was acknowledged and is over, so that the next outage
// wakes somebody again.
func (d *daemon) endAcknowledged(ctx context.Context) {
	storage := d.config().Storage.Dir
	if known, err := readAcknowledgements(storage); err != nil || len(known.Syncs) == 0 {
		return
	}
	snap, err := d.Snapshot(ctx)
	if err != nil {
		return
	}
	ackFileMu.Lock()
	defer ackFileMu.Unlock()
	known, err := readAcknowledgements(storage)
	if err != nil {
		return
	}
	var ended []string
	for name, a := range known.Syncs {
		i := slices.IndexFunc(snap.Syncs, func(y admin.Sync) bool { return y.Name == name })
		if i < 0 || over(a, &snap.Syncs[i], time.Now()) {
			ended = append(ended, name)
			delete(known.Syncs, name)
		}
	}
	if len(ended) == 0 {
		return
	}
	if err := known.write(storage); err != nil {
		d.log.Warn("that an acknowledged outage is over could not be entered; the next one may wake nobody before that ends", "syncs", ended, "error", err)
		return
	}
	slices.Sort(ended)
	d.log.Info("an acknowledged outage is over, or its time is", "syncs", strings.Join(ended, ", "))
}

func printAck(w io.Writer, line []byte) error {
	var a ackAnswer
	if err := json.Unmarshal(line, &a); err != nil {
		return err
	}
	is, would := "is", ""
	if a.DryRun {
		is, would = "would be", "would "
	}
	if a.Acknowledged == nil {
		_, err := fmt.Fprintf(w, "%s: nobody %sknow%s of it any more\n", a.Sync, would, map[bool]string{false: "s"}[a.DryRun])
		return err
	}
	_, err := fmt.Fprintf(w, "%s is %s, and that %s known to %s until %s: %s\n", a.Sync, a.Status, is, a.Acknowledged.By,
		a.Acknowledged.Until.Format("2006-01-02 15:04:05 UTC"), a.Acknowledged.Reason)
	return err
}
