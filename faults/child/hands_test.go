package child

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Register("pid", func(args []string) error { return fmt.Errorf("%s in %d", strings.Join(args, "+"), os.Getpid()) })
	Register("good", func([]string) error { return nil })
	Register("exits", func([]string) error { fmt.Fprintln(os.Stderr, "last words"); os.Exit(3); return nil })
	Register("waits", func([]string) error { time.Sleep(time.Hour); return nil }) // until it is killed
	Main()
	os.Exit(m.Run())
}

func TestHandsDoOneWorkAfterTheOther(t *testing.T) {
	var h Hands
	defer h.Retire()
	pids := 0
	say := func(work string, args ...string) error {
		return h.Do(nil, time.Minute, func(int) { pids++ }, work, args...)
	}
	first := say("pid", "a", "b c")
	if !errors.Is(first, ErrWork) || !strings.Contains(first.Error(), "a+b c in ") {
		t.Fatal(first)
	}
	if err := say("good"); err != nil {
		t.Fatal(err)
	}
	if again := say("pid", "a", "b c"); again.Error() != first.Error() {
		t.Errorf("another process: %v, %v", again, first)
	}
	if err := say("exits"); errors.Is(err, ErrWork) || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "last words") {
		t.Errorf("%v", err)
	}
	if after := say("pid", "a", "b c"); !errors.Is(after, ErrWork) || after.Error() == first.Error() {
		t.Errorf("the same process after its end: %v", after)
	}
	if pids != 5 {
		t.Errorf("told of %d", pids)
	}
}

func TestHandsAreKilledAndDoNotHang(t *testing.T) {
	var h Hands
	defer h.Retire()
	stop := make(chan struct{})
	if err := h.Do(stop, time.Minute, func(int) { close(stop) }, "waits"); err != ErrKilled {
		t.Errorf("%v", err)
	}
	if err := h.Do(nil, 50*time.Millisecond, nil, "waits"); err == nil || !strings.Contains(err.Error(), "it hangs") || !strings.Contains(err.Error(), "goroutine") {
		t.Errorf("%v", err)
	}
	if err := h.Do(nil, time.Minute, nil, "good"); err != nil {
		t.Error(err)
	}
}
