package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"ampcio/admin"
	"ampcio/config"
)

// operator has verbs done, by whom it finds.
type operator struct {
	cfg     *config.Config // with mistakes in the file only where the storage and the socket are
	broken  error          // what is wrong with the file: a daemon can be asked all the same
	warned  bool           // of broken
	socket  string         // of the daemon
	say     io.Writer      // stderr
	stopped bool           // no daemon did the last one
	onlyAsk bool           // at socket: of the files nothing is known
}

// newOperator reads the configuration that the command line names. A daemon that runs
// does so by what it has read, and is in force: mistakes in the file hold nobody up who
// only wants to ask it.
func newOperator(c *cli.Context) (*operator, error) {
	cfg, err := readConfig(c, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err // another file was meant, and so another daemon, perhaps
	}
	o := &operator{cfg: cfg, broken: err, say: c.App.ErrWriter}
	if err != nil {
		o.cfg = config.WithMistakes(c.String("config"))
	}
	o.socket = socketPath(o.cfg)
	return o, nil
}

// warn says once that the file has mistakes, although a daemon has answered.
func (o *operator) warn() {
	if o.broken == nil || o.warned {
		return
	}
	o.warned = true
	fmt.Fprintf(o.say, "warning: %v\nwarning: asked was the ampcio that runs, at %s; it could not be started again with that file\n", o.broken, o.socket)
}

// do has one verb done, and calls each for every line that it tells. Where no daemon
// runs it does it itself.
func (o *operator) do(ctx context.Context, name string, in any, each func(line []byte) error) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	err = o.ask(ctx, name, body, each)
	if o.stopped = notRunning(err); o.stopped && o.onlyAsk {
		err = exit(exitUnavailable, fmt.Errorf("no ampcio answers at %s", o.socket))
	} else if o.stopped && o.broken == nil {
		err = doStopped(ctx, o, name, body, each)
	} else if o.stopped {
		err = o.broken
	}
	if err != nil && ctx.Err() != nil {
		return exit(exitTemporary, errEndedByOperator)
	}
	return err
}

var errEndedByOperator = errors.New("ended by you")

// ask has a verb done by the daemon, as askDaemon does.
func (o *operator) ask(ctx context.Context, name string, body []byte, each func(line []byte) error) error {
	err := askDaemon(ctx, o.socket, name, body, func(line []byte) error {
		o.warn()
		return each(line)
	})
	if err != nil && !notRunning(err) {
		o.warn()
	}
	return err
}

// answerWithin is how long the daemon has to begin its answer.
const answerWithin = 10 * time.Second

// notAnswered says why a daemon that is there has not answered, and what to do.
func notAnswered(socket string, err error) error {
	if timeout, is := errors.AsType[net.Error](err); is && timeout.Timeout() {
		return fmt.Errorf("the daemon does not answer within %d s: journalctl -u ampcio, then systemctl restart ampcio (nothing that was accepted is lost)", answerWithin/time.Second)
	}
	return permitted(socket, err)
}

// askDaemon has a verb done by the daemon. Of its errors, notRunning ones are those of
// a daemon that is not there.
func askDaemon(ctx context.Context, socket, name string, body []byte, each func(line []byte) error) error {
	client := admin.Client(socket)
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://admin/do/"+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		if notRunning(err) {
			return err
		}
		return exit(exitUnavailable, notAnswered(socket, fmt.Errorf("ask the daemon: %w", err)))
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") != "application/x-ndjson" {
		return exit(exitUnavailable, fmt.Errorf("ask the daemon: it answers %s: the ampcio that runs is another version; restart it with this one", resp.Status))
	}
	r := bufio.NewReader(resp.Body)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil {
			return exit(exitUnavailable, fmt.Errorf("the daemon has gone in the middle of its answer: %w", err))
		}
		if bytes.HasPrefix(line, failureBegins) {
			var f failure
			if err := json.Unmarshal(line, &f); err != nil {
				return exit(exitUnavailable, fmt.Errorf("read the daemon's answer: %w", err))
			}
			return exit(f.Code, errors.New(f.Error))
		}
		if err := each(line); err != nil {
			return err
		}
	}
}

// notRunning says that an error of asking at the admin socket means that no daemon is
// there: no socket, or one that a killed process has left.
func notRunning(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" &&
		(errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOTDIR))
}

// permitted says who may ask at the socket when the error is that the caller may not.
func permitted(socket string, err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	group := "its group"
	for path := socket; ; path = filepath.Dir(path) {
		st, statErr := os.Stat(path)
		if statErr == nil {
			if sys, ok := st.Sys().(*syscall.Stat_t); ok {
				group = groupName(sys.Gid)
			}
			break
		}
		if path == filepath.Dir(path) {
			break
		}
	}
	return fmt.Errorf("%w: you need to be in the group of the socket %s, which is %s (usermod -aG GROUP USER, then log in again), or root", err, socket, group)
}

func groupName(gid uint32) string {
	id := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}
