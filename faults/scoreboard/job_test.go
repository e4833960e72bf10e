package scoreboard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"ampcio-faults/child"
)

// apartTrials are tried in processes of their own, each of which is this test binary.
func apartTrials() []Trial {
	return []Trial{
		{Name: "good", Unit: "tries", Full: 7, Case: func(_ context.Context, c *Case) (int, error) {
			c.Note("%d are left", c.Left)
			return c.Left, nil
		}},
		{Name: "broken", Full: 1, Case: func(context.Context, *Case) (int, error) { return 1, errors.New("an event is lost") }},
		{Name: "panic elsewhere", Full: 1, Case: func(ctx context.Context, _ *Case) (int, error) {
			go func() { panic("index out of range") }()
			<-ctx.Done()
			return 1, nil
		}},
		{Name: "killed", Full: 1, Case: func(context.Context, *Case) (int, error) {
			return 1, syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}},
		{Name: "too long", Full: 1, Limit: 10 * time.Millisecond, Case: func(ctx context.Context, _ *Case) (int, error) {
			<-ctx.Done()
			return 1, context.Cause(ctx)
		}},
		{Name: "leaves a child", Full: 1, Case: func(_ context.Context, c *Case) (int, error) {
			sleeper := exec.Command("sleep", "1000")
			if err := sleeper.Start(); err != nil {
				return 0, err
			}
			return 1, os.WriteFile(c.Binary, fmt.Append(nil, sleeper.Process.Pid), 0o600)
		}},
	}
}

func TestMain(m *testing.M) {
	Main(apartTrials)
	child.Main()
	os.Exit(m.Run())
}

func TestCasesApart(t *testing.T) {
	pid := t.TempDir() + "/pid"
	for _, test := range []struct {
		name string
		n    int
		says string
	}{
		{"good", 7, ""},
		{"broken", 1, "an event is lost"},
		{"panic elsewhere", 0, "index out of range"},
		{"killed", 0, "signal: killed"},
		{"too long", 1, "more than 10ms"},
		{"leaves a child", 1, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			b := Board{Trials: apartTrials(), Apart: true, Out: &out, Disk: t.TempDir(), Memory: t.TempDir(), Binary: pid}
			n, err := b.Replay(t.Context(), test.name, 5, 0)
			if n != test.n || (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("%d %v", n, err)
			}
			if test.name == "good" && out.String() != "good, seed 5: 7 are left\n" {
				t.Errorf("it noted %q", &out)
			}
		})
	}
	text, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	var left int
	if _, err := fmt.Sscan(string(text), &left); err != nil {
		t.Fatal(err)
	}
	// A process that was sent SIGKILL ends when it is next given a core, which may be later than the case's own end.
	for until := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", left))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("what a case left behind still runs: %s", stat)
		}
	}
}
