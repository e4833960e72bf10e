package scoreboard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"ampcio-faults/child"
)

// Job is one case, as it is told to the process that makes it.
type Job struct {
	Trial  string `json:"trial"`
	Seed   uint64 `json:"seed"`
	Left   int    `json:"left"`
	Dir    string `json:"dir"`
	Memory string `json:"memory"`
	Binary string `json:"binary"`
	Built  string `json:"built"`
}

// outcome is how a case ended.
type outcome struct {
	N     int    `json:"n"`
	Error string `json:"error"` // "" = no violation
}

// jobWork is the work of a process that makes one case.
const jobWork = "case"

// grace is what a case has, beyond its limit, to end by itself and take down what it has built.
const grace = 20 * time.Second

// Main says which trials a process that makes one case may be asked for. It is called before child.Main.
func Main(trials func() []Trial) {
	child.Register(jobWork, func(args []string) error {
		var j Job
		if err := json.Unmarshal([]byte(args[0]), &j); err != nil {
			return err
		}
		all := trials()
		i := slices.IndexFunc(all, func(t Trial) bool { return t.Name == j.Trial })
		if i < 0 {
			return fmt.Errorf("there is no trial %q", j.Trial)
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		n, err := j.here(ctx, &all[i], os.Stdout)
		o := outcome{N: n}
		if err != nil {
			o.Error = err.Error()
		}
		return json.NewEncoder(os.NewFile(3, "outcome")).Encode(o)
	})
}

// apart makes the case in a process of its own. There no other case forks: between fork and exec a child has all open
// files, and with them the locks of storage folders, so a folder that was closed would seem to be in use. And a panic or
// a memory fault anywhere in the product ends one case, not the board.
func (j Job) apart(ctx context.Context, limit time.Duration, out io.Writer) (n int, cpu time.Duration, err error) {
	text, err := json.Marshal(j)
	if err != nil {
		return 0, 0, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, 0, err
	}
	defer r.Close()
	var last tail
	cmd := child.Command(jobWork, string(text))
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, &last, []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us; it hears SIGTERM then
	cmd.WaitDelay = grace                                 // for what it left behind with its output
	if err := cmd.Start(); err != nil {
		return 0, 0, errors.Join(err, w.Close())
	}
	// What the case has started and left behind would hold the pipes open, and the machine busy.
	end := func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	hangs := time.AfterFunc(limit+grace, func() {
		_ = cmd.Process.Signal(syscall.SIGQUIT) // for its goroutines
		time.AfterFunc(grace, end)
	})
	defer hangs.Stop()
	ended := context.AfterFunc(ctx, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		time.AfterFunc(grace, end)
	})
	defer ended()
	if err := w.Close(); err != nil {
		return 0, 0, err
	}
	var o outcome
	told := json.NewDecoder(r).Decode(&o)
	err = cmd.Wait()
	end()
	cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime() // with what it has waited for
	switch {
	case told == nil && o.Error != "":
		return o.N, cpu, errors.New(o.Error)
	case told == nil && (err == nil || errors.Is(err, exec.ErrWaitDelay)): // something that it left behind still had its output
		return o.N, cpu, nil
	}
	return o.N, cpu, fmt.Errorf("the process of the case ended with %v, without a word of how the case did:\n%s", err, last.bytes())
}

// here makes the case in this process.
func (j Job) here(ctx context.Context, t *Trial, out io.Writer) (n int, err error) {
	c := Case{Seed: j.Seed, Rand: rand.New(rand.NewPCG(j.Seed, hash(t.Name))), Left: j.Left, Dir: j.Dir, Memory: j.Memory, Binary: j.Binary, Built: j.Built,
		note: func(s string) { fmt.Fprintf(out, "%s, seed %d: %s\n", t.Name, j.Seed, s) }}
	ctx, cancel := context.WithTimeoutCause(ctx, t.limit(), fmt.Errorf("the case took more than %s", t.limit()))
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			stack := make([]byte, 16<<10)
			err = fmt.Errorf("panic: %v\n%s", p, stack[:runtime.Stack(stack, false)])
		}
	}()
	return t.Case(ctx, &c)
}

// tail keeps the end of what is written.
type tail struct {
	mu   sync.Mutex
	kept []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	const most = 64 << 10
	t.kept = append(t.kept, b...)
	t.kept = t.kept[max(0, len(t.kept)-most):]
	return len(b), nil
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.TrimSpace(t.kept)
}
