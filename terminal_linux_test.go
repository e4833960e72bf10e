package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// At a terminal a question is asked, and only a yes is one.
func TestDeadLettersDropAsks(t *testing.T) {
	t.Parallel()
	r := refused(t)
	for _, test := range []struct {
		says string
		code int
		left int
	}{{"n\n", exitFailed, 5}, {"\n", exitFailed, 5}, {"y\n", 0, 0}} {
		c := ampcio("dead-letters", "drop", "--all", "--config", r.ConfigPath)
		said, err := atTerminal(t, c, "Drop 5 dead letters? [y/N] ", test.says)
		var exited *exec.ExitError
		if err != nil && !errors.As(err, &exited) {
			t.Fatal(err)
		}
		if code := c.ProcessState.ExitCode(); code != test.code {
			t.Errorf("%q: exit %d, want %d: %s", test.says, code, test.code, said)
		}
		if test.code != 0 {
			contains(t, said, "nothing was changed")
		}
		if left := len(listed(t, r)); left != test.left {
			t.Errorf("%q: %d are left", test.says, left)
		}
	}
	down(t, r)
}

// terminal opens a pseudo terminal: what a person holds, and what a program writes to.
func terminal(t *testing.T) (keyboard, screen *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminal: %v", err)
	}
	number, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		keyboard.Close()
		t.Fatal(err)
	}
	if screen, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		keyboard.Close()
		t.Skipf("no terminal: %v", err)
	}
	return keyboard, screen
}

// atTerminal runs a command at a terminal of its own: when it has asked, it is answered.
// It gives what stood on the terminal, and how the command ended.
func atTerminal(t *testing.T, c *exec.Cmd, question, answer string) (string, error) {
	t.Helper()
	keyboard, screen := terminal(t)
	defer keyboard.Close()
	c.Stdin, c.Stdout, c.Stderr = screen, screen, screen
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err := c.Start()
	screen.Close()
	if err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(20*time.Second, func() { c.Process.Kill() })
	defer late.Stop()
	var said strings.Builder
	buf, asked := make([]byte, 4096), false
	for {
		n, err := keyboard.Read(buf)
		said.Write(buf[:n])
		if !asked && strings.Contains(said.String(), question) {
			asked = true
			if _, err := io.WriteString(keyboard, answer); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil { // the other end is closed: the command has ended
			break
		}
	}
	if !asked {
		t.Errorf("%q was not asked:\n%s", question, said.String())
	}
	return said.String(), c.Wait()
}
