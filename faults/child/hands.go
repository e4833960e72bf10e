package child

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// handsWork is the work of a process that does others, one after the other.
const handsWork = "hands"

func init() { Register(handsWork, serveHands) }

// task is what hands are asked to do.
type task struct {
	Work string
	Args []string
}

// done is what they answer.
type done struct{ Error string }

// Hands is a process that does one work after the other, as long as nothing kills it: to start a process of this program
// costs more than most of what is done in one. It is for one goroutine.
type Hands struct {
	cmd   *exec.Cmd // nil = the next work starts one
	in    *json.Encoder
	out   *json.Decoder
	said  *output
	works int
}

// mostWorks are done by one process: what a broken file has left mapped does not pile up.
const mostWorks = 100

// ErrWork is of a work that ended by an error of its own, which its process has survived.
var ErrWork = errors.New("the work ended by an error")

// ErrKilled is of a work whose process was killed because it should be.
var ErrKilled = errors.New("the process was killed")

// Do does a work, as a process of Command would do it. Closing stop ends its process with SIGKILL. A work that takes longer
// than hangs ends too, and the error has its goroutines. began, unless it is nil, is told of the process before.
func (h *Hands) Do(stop <-chan struct{}, hangs time.Duration, began func(pid int), work string, args ...string) error {
	if h.works >= mostWorks {
		h.Retire()
	}
	if h.cmd == nil {
		if err := h.start(); err != nil {
			return err
		}
	}
	h.works++
	if began != nil {
		began(h.cmd.Process.Pid)
	}
	in, out, said := h.in, h.out, h.said
	var d done
	answered := make(chan error, 1)
	go func() {
		err := in.Encode(task{work, args})
		if err == nil {
			err = out.Decode(&d)
		}
		answered <- err
	}()
	limit := time.NewTimer(hangs)
	defer limit.Stop()
	select {
	case err := <-answered:
		if err != nil { // it has gone in the middle of it
			state := h.Retire()
			return fmt.Errorf("the process ended (%v): %s", state, said.bytes())
		}
	case <-stop:
		h.Retire()
		<-answered
		return ErrKilled
	case <-limit.C:
		_ = h.cmd.Process.Signal(syscall.SIGQUIT) // it says where it is; or it has gone just now
		<-answered
		h.Retire()
		return fmt.Errorf("it hangs since %s:\n%s", hangs, said.bytes())
	}
	if d.Error != "" {
		return fmt.Errorf("%w: %s", ErrWork, d.Error)
	}
	return nil
}

func (h *Hands) start() error {
	said := &output{}
	cmd := Command(handsWork)
	// The signals with which Go stops a goroutine are, to one that waits for the lossy disk, a request more each.
	cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = said
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	*h = Hands{cmd: cmd, in: json.NewEncoder(in), out: json.NewDecoder(out), said: said}
	return nil
}

// Retire ends the process, if there is one; the next work has a new one.
func (h *Hands) Retire() *os.ProcessState {
	if h.cmd == nil {
		return nil
	}
	cmd := h.cmd
	h.cmd = nil
	_ = cmd.Process.Kill() // it may be gone already
	_ = cmd.Wait()         // says that it was killed
	return cmd.ProcessState
}

// serveHands does what standard input asks for, until it ends.
func serveHands([]string) error {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var t task
		if err := in.Decode(&t); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		f := works[t.Work]
		if f == nil {
			return fmt.Errorf("there is no work called %q", t.Work)
		}
		var d done
		if err := f(t.Args); err != nil {
			d.Error = err.Error()
		}
		if err := out.Encode(d); err != nil {
			return err
		}
	}
}

// output keeps the end of what a process says.
type output struct {
	mu   sync.Mutex
	kept []byte
}

func (o *output) Write(b []byte) (int, error) {
	const most = 64 << 10
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kept = append(o.kept, b...)
	o.kept = o.kept[max(0, len(o.kept)-most):]
	return len(b), nil
}

func (o *output) bytes() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.TrimSpace(o.kept)
}
