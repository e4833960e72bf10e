package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"ampcio/config"
	"ampcio/queue"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// stoppedHouseOf opens a rehearsal's storage in this process.
func stoppedHouseOf(t *testing.T, r *rehearsal.Rehearsal) *stoppedHouse {
	t.Helper()
	cfg, err := config.Load(r.ConfigPath, config.Environment{Getenv: os.Getenv, NoSecrets: true})
	if err != nil {
		t.Fatal(err)
	}
	rules, err := compileRules(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h := &stoppedHouse{cfg: cfg, rules: rules, open: map[string]*queue.Consumer{}}
	if err := h.openStorage(); err != nil {
		t.Fatal(err)
	}
	return h
}

// leaves is an operator who goes away as soon as something is told.
type leaves struct {
	bytes.Buffer
	away func()
}

func (l *leaves) Write(b []byte) (int, error) {
	l.away()
	return l.Buffer.Write(b)
}

// Whoever ends a verb over very many dead letters leaves whole steps behind, and the
// same command goes on with the rest.
func TestManyDeadLetters(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{"Never"}})
	up(t, r)
	padding := strings.Repeat("padding ", 50)
	const many = 3 * deadPortion
	for first := 1; first <= many; first += 500 {
		accepted(t, r, strings.ReplaceAll(padded("ann-1", first, first+499, func() string { return padding }), "Order Completed", "Never"))
	}
	if y := only(t, drained(t, r)); y.Totals.Dead != many {
		t.Fatalf("%+v", y.Totals)
	}

	// Ctrl-C ends an export at the daemon too, which is in the middle of it: nobody reads.
	export := ampcio("dead-letters", "export", "--config", r.ConfigPath)
	out, err := export.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	export.Stderr = &said
	if err := export.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(20*time.Second, func() { export.Process.Kill() })
	defer late.Stop()
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil || !strings.HasPrefix(line, `{"id":"demo/`) {
		t.Fatalf("%q, %v: %s", line, err, &said)
	}
	if err := export.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, lines); err != nil {
		t.Fatal(err)
	}
	export.Wait()
	if code := export.ProcessState.ExitCode(); code != exitTemporary || said.String() != "ampcio: ended by you: this is not all; nothing was changed\n" {
		t.Errorf("exit %d: %s", code, &said)
	}
	eventually(t, 10*time.Second, "the daemon has ended it too", func() bool {
		return strings.Contains(logOf(t, r), `msg="asked for by an operator, and not done to the end" verb=dead-letters-export`)
	})
	down(t, r)

	for _, v := range []struct {
		name string
		do   verb
		left int
	}{{"drop", dropDeadVerb, many - deadPortion}, {"replay", replayDeadVerb, many - 2*deadPortion}} {
		h := stoppedHouseOf(t, r)
		ctx, gone := context.WithCancel(t.Context())
		err := v.do(ctx, h, json.RawMessage(`{"all":true}`), &leaves{away: gone})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", v.name, err)
		}
		if err := h.close(); err != nil {
			t.Fatal(err)
		}
		y := only(t, statsOfFiles(t, r))
		if y.Kept.Count != uint64(v.left) || !y.Books.Balanced {
			t.Errorf("%s: %d are left, want %d: %+v", v.name, y.Kept.Count, v.left, y.Books)
		}
	}
	contains(t, did(t, r, "dead-letters", "replay", "--all", "--yes"), "500 dead letters replayed\n")
	r.Sandbox.SetFaults(sandbox.Faults{})
	up(t, r)
	if y := only(t, drained(t, r)); y.Totals.Delivered != many-deadPortion || y.Totals.Discarded != deadPortion || y.Totals.Dead != 0 || !y.Books.Balanced {
		t.Errorf("%+v %+v", y.Books, y.Totals)
	}
	down(t, r)
}
