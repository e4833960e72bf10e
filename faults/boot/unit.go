package boot

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// state is what systemd says of ampcio.service.
type state struct {
	active  string // "active running"
	pid     int    // in the machine; 0 = none
	serving int    // the process that answers, by this machine's number; 0 = none
	starts  int    // by itself, since it was last started by somebody
	result  string
}

func (m *machine) state(ctx context.Context) (state, error) {
	said, err := m.run(ctx, "systemctl", "show", "--property=ActiveState,SubState,MainPID,NRestarts,Result", "ampcio.service")
	if err != nil {
		return state{}, err
	}
	values := map[string]string{}
	for line := range strings.SplitSeq(said, "\n") {
		name, value, _ := strings.Cut(line, "=")
		values[name] = value
	}
	s := state{active: values["ActiveState"] + " " + values["SubState"], result: values["Result"], serving: m.serving()}
	if s.pid, err = strconv.Atoi(values["MainPID"]); err != nil {
		return s, err
	}
	s.starts, err = strconv.Atoi(values["NRestarts"])
	return s, err
}

// running is the state of a service that must run now.
func (m *machine) running(ctx context.Context) (state, error) {
	s, err := m.state(ctx)
	if err == nil && (s.active != "active running" || s.pid == 0 || s.serving == 0) {
		err = fmt.Errorf("ampcio.service is %s (%s), process %d", s.active, s.result, s.pid)
	}
	return s, err
}

// same says that the process of before still runs.
func (m *machine) same(before state) error {
	if now := m.serving(); now != before.serving {
		return fmt.Errorf("process %d serves instead of %d", now, before.serving)
	}
	return nil
}

// back waits for another process than that of before.
func (m *machine) back(ctx context.Context, before state) error {
	err := soon(ctx, "another process to serve", func() (bool, error) {
		now := m.serving()
		return now != 0 && now != before.serving, fmt.Errorf("process %d serves after %d", now, before.serving)
	})
	if err != nil {
		return err
	}
	return soon(ctx, "ampcio.service to run again", func() (bool, error) {
		_, err := m.running(ctx)
		return err == nil, err
	})
}

// journal is what the journal says of ampcio.service from some moment on.
type journal struct {
	m     *machine
	since time.Time
}

func (m *machine) journal() journal { return journal{m, time.Now()} }

// says waits until the journal has a text.
func (j journal) says(ctx context.Context, text string) error {
	since := fmt.Sprintf("--since=@%d.%06d", j.since.Unix(), j.since.Nanosecond()/1000)
	return soon(ctx, "the journal to say: "+text, func() (bool, error) {
		said, err := j.m.run(ctx, "journalctl", "--no-pager", "--quiet", "--output=cat", "--unit=ampcio.service", since)
		if err == nil {
			err = fmt.Errorf("it ends with:\n%s", said[max(0, len(said)-2000):])
		}
		return strings.Contains(said, text), err
	})
}
