package bitrot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"ampcio-faults/scoreboard"
	"ampcio/admin"
	"ampcio/queue"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

const (
	daemonUsers  = 6
	daemonFlips  = 10 // of one installation
	poisonedName = "Poisoned"
)

// ownFiles are what the daemon keeps beside the queue: of these none may change what is delivered, whatever it says.
var ownFiles = map[string]bool{"hash.key": true, "door.json": true, "alerts.json": true, "acknowledged.json": true, "charts": true}

// installation is a stopped daemon with files of all kinds, and what they hold.
type installation struct {
	c       *scoreboard.Case
	r       *rehearsal.Rehearsal
	whole   string                    // a copy of the storage folder, undamaged
	acked   [daemonUsers]int          // by user: the last event that was acknowledged
	pending [daemonUsers]int          // by user: how many of these had not been delivered
	books   admin.Sync                // at the stop
	proofs  map[string]map[int]string // what each event says, by person and number
}

// daemonFlipped is one installation, and flips in copies of its folder, each with the built program over it.
func daemonFlipped(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	in, err := newInstallation(ctx, c)
	if err != nil {
		return 0, fmt.Errorf("prepare the installation: %w", err)
	}
	defer func() { err = errors.Join(err, in.r.Kill(), in.r.Close()) }()
	for n < min(daemonFlips, c.Left) {
		f, err := pick(rand.New(rand.NewPCG(c.Seed, uint64(n))), in.whole)
		if err != nil {
			return n, err
		}
		if err := in.try(ctx, f); err != nil {
			return n, fmt.Errorf("%s, under the daemon: %w\n%s", f.text, err, in.r.LogTail())
		}
		n++
	}
	return n, nil
}

func newInstallation(ctx context.Context, c *scoreboard.Case) (in *installation, err error) {
	in = &installation{c: c, whole: filepath.Join(c.Memory, "whole"), proofs: map[string]map[int]string{}}
	in.r, err = rehearsal.New(c.Memory, c.Ampcio, rehearsal.Settings{
		Sandbox: sandbox.Options{Seed: c.Seed, Faults: sandbox.Faults{RefuseEvent: []string{poisonedName}}},
		Storage: "min_free = \"16MiB\"\nkeep = \"24h\"\n",
		Sync:    "retry_initial = \"20ms\"\nrequests_per_second = 1000\n\n[alerts]\nurl = \"http://127.0.0.1:9/\"\nafter = \"0s\"\n",
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.r.Kill(), in.r.Close())
		}
	}()
	if err := in.r.Start(ctx); err != nil {
		return nil, err
	}
	for range 6 + c.Rand.IntN(6) {
		if err := in.send(ctx, c.Rand, "Order"); err != nil {
			return nil, err
		}
	}
	// Events without a number that are refused for good: dead letters.
	body := fmt.Appendf(nil, `{"api_key":%q,"events":[{"event_type":%q,"user_id":"poisoned","insert_id":"p1"},{"event_type":%[2]q,"user_id":"poisoned","insert_id":"p2"}]}`, recordings.Key, poisonedName)
	if err := in.r.Post(ctx, "/2/httpapi", [][2]string{{"Content-Type", "application/json"}}, body); err != nil {
		return nil, err
	}
	if _, err := in.r.Drained(ctx); err != nil {
		return nil, err
	}
	// Then the key is wrong: alerts fire, somebody says that they know, and what comes is pending.
	in.r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{401: 1}})
	for range 3 + c.Rand.IntN(3) {
		before := in.acked
		if err := in.send(ctx, c.Rand, "Order"); err != nil {
			return nil, err
		}
		for u := range in.pending {
			in.pending[u] += in.acked[u] - before[u]
		}
	}
	if err := in.until(ctx, "the sync is blocked", func(s *admin.Snapshot) bool { return s.Syncs[0].Status == admin.StatusBlocked }); err != nil {
		return nil, err
	}
	for _, args := range [][]string{{"queue-stats", "--ack-blocked", "ticket 7", "--sync", rehearsal.Sync, "--for", "8h"}, {"dead-letters", "list"}} {
		if out, err := in.r.Command(append(args, "--config", in.r.ConfigPath)...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ampcio %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	snap, err := in.r.Stats(ctx)
	if err != nil {
		return nil, err
	}
	in.books = snap.Syncs[0]
	if err := in.r.Stop(); err != nil {
		return nil, err
	}
	for _, name := range []string{"hash.key", "door.json", "alerts.json", "acknowledged.json", "charts", "users.db", "sync/demo.db"} {
		if _, err := os.Stat(in.stored(name)); err != nil {
			return nil, fmt.Errorf("the folder lacks what is to be damaged: %w", err)
		}
	}
	return in, copyFolder(in.stored(""), in.whole)
}

func (in *installation) stored(name string) string {
	return filepath.Join(in.r.Dir, "storage", filepath.FromSlash(name))
}

func daemonUser(u int) string { return fmt.Sprintf("rot-user-%d", u) }

// send sends one event or two of each user, each with a number and something that only it says.
func (in *installation) send(ctx context.Context, chance *rand.Rand, name string) error {
	var events []string
	for u := range in.acked {
		for range 1 + chance.IntN(2) {
			in.acked[u]++
			n, proof := in.acked[u], proofOf(chance)
			if in.proofs[daemonUser(u)] == nil {
				in.proofs[daemonUser(u)] = map[int]string{}
			}
			in.proofs[daemonUser(u)][n] = proof
			events = append(events, fmt.Sprintf(`{"event_type":%q,"user_id":%q,"insert_id":"%d","event_properties":{"seq":%d,"currency":%q},"user_properties":{"plan":"plan-%[4]d"}}`,
				name, daemonUser(u), n, n, proof))
		}
	}
	body := fmt.Appendf(nil, `{"api_key":%q,"events":[%s]}`, recordings.Key, strings.Join(events, ","))
	return in.r.Post(ctx, "/2/httpapi", [][2]string{{"Content-Type", "application/json"}}, body)
}

// proofOf is text that does not pack, so that it is most of what the log has of an event, and most flips there change it.
func proofOf(chance *rand.Rand) string {
	b := make([]byte, 300)
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-"[chance.IntN(64)]
	}
	return string(b)
}

func (in *installation) until(ctx context.Context, what string, holds func(*admin.Snapshot) bool) error {
	for {
		snap, err := in.r.Stats(ctx)
		if err == nil && len(snap.Syncs) == 1 && holds(&snap) {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("never: %s: %w", what, errors.Join(context.Cause(ctx), err))
		}
	}
}

// try makes one flip, and lets the daemon live on it, as often as systemd would start it.
func (in *installation) try(ctx context.Context, f flip) error {
	if err := os.RemoveAll(in.stored("")); err != nil {
		return err
	}
	if err := copyFolder(in.whole, in.stored("")); err != nil {
		return err
	}
	file, err := os.OpenFile(in.stored(f.path), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(f.do(file), file.Close()); err != nil {
		return err
	}
	in.r.Sandbox.Reset()
	in.r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{poisonedName}})
	before := in.acked
	defer func() { in.acked = before }()
	chance := rand.New(rand.NewPCG(in.c.Seed, uint64(f.at)))
	for life := 0; ; life++ {
		snap, err := in.live(ctx, chance, life == 0)
		if err == nil {
			return in.judge(f, before, &snap.Syncs[0])
		}
		if !errors.Is(err, errEnded) || life == mostLives {
			return fmt.Errorf("life %d: %w", life, err)
		}
	}
}

// errEnded is of a daemon that has ended by itself, or has found what its next start mends.
var errEnded = errors.New("it has to be started again")

// live starts the daemon, sends some more, and waits until all is delivered; then it is stopped, and its files audited.
func (in *installation) live(ctx context.Context, chance *rand.Rand, sends bool) (snap admin.Snapshot, err error) {
	if err := in.r.Start(ctx); err != nil {
		return snap, err // always starts
	}
	living, ended := context.WithCancelCause(ctx)
	defer ended(nil)
	daemon := in.r.Ended
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case err := <-daemon:
			daemon <- err // for whoever ends it
			ended(fmt.Errorf("%w: %v", errEnded, err))
		case <-living.Done():
		}
	}()
	if sends {
		err = in.send(living, chance, "Order")
	}
	if err == nil {
		snap, err = in.r.Drained(living)
	}
	ended(nil)
	<-watched
	if err != nil {
		if cause := context.Cause(living); errors.Is(cause, errEnded) {
			err = cause
		}
		return snap, errors.Join(err, in.r.Kill())
	}
	if err := in.r.Stop(); err != nil {
		return snap, fmt.Errorf("%w: %w", errEnded, err)
	}
	return snap, in.audit(&snap)
}

// audit has the program audit the files, and compares what it says is lost with what was said before.
func (in *installation) audit(snap *admin.Snapshot) error {
	out, err := in.r.Command("audit", "--json", "--config", in.r.ConfigPath).Output()
	var said struct{ Syncs []queue.Audit }
	if err := json.Unmarshal(out, &said); err != nil || len(said.Syncs) != 1 {
		return fmt.Errorf("ampcio audit says %s: %w", out, err)
	}
	a := &said.Syncs[0]
	switch {
	case err != nil && a.Balanced():
		return fmt.Errorf("ampcio audit fails, and says of nothing that it is out: %w: %s", err, out)
	case err != nil:
		return fmt.Errorf("%w: %s", errEnded, strings.Join(a.Differences, "; "))
	case a.Books.Lost != snap.Syncs[0].Totals.Lost:
		return fmt.Errorf("ampcio audit says that %d are lost, queue-stats said %d", a.Books.Lost, snap.Syncs[0].Totals.Lost)
	}
	return nil
}

// judge compares what has come with what there was. acked is what was acknowledged before the flip.
func (in *installation) judge(f flip, acked [daemonUsers]int, y *admin.Sync) error {
	got := map[string]map[int]bool{}
	last := map[string]int{}
	for _, e := range in.r.Sandbox.Events(0, int(in.r.Sandbox.Report().Events.Kept)) {
		var says struct {
			Seq      int
			Currency string
		}
		err := json.Unmarshal(e.Attributes, &says)
		proof, known := in.proofs[e.PersonID][says.Seq]
		switch {
		case err != nil || !known || proof != says.Currency || e.Name != "Order":
			return fmt.Errorf("%s of %s was never sent: %s (%v)", e.Name, e.PersonID, e.Attributes, err)
		case says.Seq <= last[e.PersonID]:
			return fmt.Errorf("event %d of %s comes behind %d", says.Seq, e.PersonID, last[e.PersonID])
		}
		last[e.PersonID] = says.Seq
		if got[e.PersonID] == nil {
			got[e.PersonID] = map[int]bool{}
		}
		got[e.PersonID][says.Seq] = true
	}
	plans := map[string]string{}
	for _, p := range in.r.Sandbox.People() {
		plans[p.ID] = string(p.Attributes["plan"])
	}
	missing, again, fresh := uint64(0), 0, uint64(0)
	for u := range in.acked {
		name := daemonUser(u)
		for n := 1; n <= in.acked[u]; n++ {
			pending := n > acked[u]-in.pending[u]
			switch is := got[name][n]; {
			case n > acked[u] && !is:
				return fmt.Errorf("event %d of %s, sent after the damage, was acknowledged and never came", n, name)
			case n > acked[u]:
				fresh++
			case pending && !is:
				missing++
			case !pending && is:
				again++
			}
		}
		if want := strconv.Quote(fmt.Sprintf("plan-%d", in.acked[u])); plans[name] != want {
			return fmt.Errorf("%s has the plan %s at Customer.io, not %s", name, plans[name], want)
		}
	}
	ledger := strings.HasPrefix(f.path, "sync/") && strings.HasSuffix(f.path, ".db")
	lost, was := y.Totals.Lost, &in.books
	switch {
	case !y.Books.Balanced || y.Books.Pending > 0:
		return fmt.Errorf("the books are out by %d, %d are pending", y.Books.Difference, y.Books.Pending)
	case ownFiles[f.path] && (lost > 0 || missing > 0 || again > 0 || y.Books.Taken != was.Books.Taken+fresh || y.Totals.Dead != was.Totals.Dead):
		return fmt.Errorf("%s is not needed to deliver: %d lost, %d missing, %d came again, %d dead", f.path, lost, missing, again, y.Totals.Dead)
	case !ledger && (lost != missing || again > 0 || y.Books.Taken != was.Books.Taken+fresh || y.Totals.Dead != was.Totals.Dead):
		return fmt.Errorf("%d pending events never came, %d are counted as lost; %d came again; %d are dead, %d were; taken %d, %d and %d before",
			missing, lost, again, y.Totals.Dead, was.Totals.Dead, y.Books.Taken, was.Books.Taken, fresh)
	case ledger && missing > lost:
		return fmt.Errorf("%d pending events never came, %d are counted as lost", missing, lost)
	case lost > 0 && f.at >= 2*page && !setAside(in.stored("")):
		return fmt.Errorf("%d records are lost, and no damaged file is kept", lost)
	}
	return nil
}

// setAside says whether a damaged file of a folder was set aside, or is marked to be.
func setAside(dir string) bool {
	for _, where := range []string{"damaged/*", "log/*.suspect", "sync/*.suspect"} {
		if found, _ := filepath.Glob(filepath.Join(dir, where)); len(found) > 0 {
			return true
		}
	}
	return false
}
