package senders

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"ampcio-faults/scoreboard"
	"ampcio/queue"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// installation is a daemon that is sent to, and Customer.io.
type installation struct {
	*rehearsal.Rehearsal
	pid int
}

// install starts one, in memory: disks are other trials' matter. server is lines of [server].
func install(ctx context.Context, c *scoreboard.Case, server string) (*installation, error) {
	r, err := rehearsal.New(c.Memory, c.Ampcio, rehearsal.Settings{
		Sandbox: sandbox.Options{Seed: c.Seed},
		Storage: "min_free = \"16MiB\"\n",
		Sync:    "batch_operations = 1000\nrequests_per_second = 20\n",
	})
	if err != nil {
		return nil, err
	}
	in := &installation{Rehearsal: r}
	if err := in.prepare(ctx, server); err != nil {
		return nil, errors.Join(err, r.Kill(), r.Close())
	}
	return in, nil
}

func (in *installation) prepare(ctx context.Context, server string) error {
	text, err := os.ReadFile(in.ConfigPath)
	if err != nil {
		return err
	}
	changed := strings.NewReplacer("[project.app]\n", "[project.app]\nwebhook_secret_file = \"webhook_secret\"\n",
		"[server]\n", "[server]\ncors_origins = [\"*\"]\n"+server).Replace(string(text))
	if err := os.WriteFile(in.ConfigPath, []byte(changed), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(in.Dir, "webhook_secret"), []byte(webhookSecret), 0o600); err != nil {
		return err
	}
	if err := in.Start(ctx); err != nil {
		return err
	}
	in.pid = in.Daemon.Process.Pid
	return nil
}

// close ends it. That the daemon ends badly is an error.
func (in *installation) close() error { return in.Close() }

// verdict is at the end of a case: what was answered 200 is stored and nothing else, once, and nothing fell over.
func (in *installation) verdict(ctx context.Context, sum tally, senders []*sender, mostMemory int64) error {
	snap, err := in.Drained(ctx)
	if err != nil {
		return err
	}
	if len(snap.Syncs) != 1 {
		return fmt.Errorf("%d syncs", len(snap.Syncs))
	}
	var problems []error
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	y, door := snap.Syncs[0], snap.Door
	expect(door.Events == uint64(sum.events), "%d events were answered 200, and the door counts %d", sum.events, door.Events)
	expect(int(door.Duplicates) <= sum.repeats, "%d events were taken for duplicates, and %d at most are", door.Duplicates, sum.repeats)
	expect(y.Books.Taken+door.Duplicates == uint64(sum.events), "%d events were answered 200; %d records are stored, and %d were duplicates", sum.events, y.Books.Taken, door.Duplicates)
	expect(y.Books.Balanced, "the books are out by %d", y.Books.Difference)
	expect(y.Totals.Lost == 0, "%d records are lost", y.Totals.Lost)
	in.checkGood(senders, expect)
	in.checkProcess(mostMemory, expect)
	return errors.Join(append(problems, in.audited(ctx))...)
}

// audited stops the daemon and has its files audited.
func (in *installation) audited(ctx context.Context) error {
	if err := in.Stop(); err != nil {
		return fmt.Errorf("the daemon ended with %w\n%s", err, in.LogTail())
	}
	audits, err := queue.AuditFiles(ctx, filepath.Join(in.Dir, "storage"))
	if err != nil || len(audits) != 1 {
		return fmt.Errorf("audit: %d ledgers, %w", len(audits), err)
	}
	if !audits[0].Balanced() {
		return fmt.Errorf("audit: %q", audits[0].Differences)
	}
	return nil
}

// checkGood holds the good events between the others to what Customer.io has: all, once, in order.
func (in *installation) checkGood(senders []*sender, expect func(bool, string, ...any)) {
	got := map[string]int{}
	for _, e := range in.Sandbox.Events(0, 0) {
		if e.Name != "Good" {
			continue
		}
		got[e.PersonID]++
		m := seq().FindSubmatch(e.Attributes)
		expect(m != nil && string(m[1]) == strconv.Itoa(got[e.PersonID]), "good event %d of %s is %.200s", got[e.PersonID], e.PersonID, e.Attributes)
	}
	for _, s := range senders {
		expect(got[s.user] == s.good, "%d good events of %s are in Customer.io, %d were answered 200", got[s.user], s.user, s.good)
	}
}

var seq = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`"seq":(\d+)`) })

// checkProcess looks at the daemon itself: it is the one that was started, has not panicked, and took little memory.
func (in *installation) checkProcess(mostMemory int64, expect func(bool, string, ...any)) {
	select {
	case err := <-in.Ended:
		in.Ended <- err
		expect(false, "the daemon has ended: %v\n%s", err, in.LogTail())
		return
	default:
	}
	memory, err := peakMemory(in.pid)
	expect(err == nil && memory <= mostMemory, "the daemon took %d MiB of memory, %d are allowed; %v", memory>>20, mostMemory>>20, err)
	log, err := os.ReadFile(in.LogFile.Name())
	expect(err == nil, "the log: %v", err)
	for _, word := range []string{"panic", "goroutine ", "DATA RACE"} {
		if i := strings.Index(string(log), word); i >= 0 {
			expect(false, "the log says %.2000s", log[i:])
		}
	}
}

// peakMemory is the most that a process had in memory so far, in bytes.
func peakMemory(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if kb, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(kb), " kB"), 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("no VmHWM")
}
