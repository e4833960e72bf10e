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

	"ampcio/admin"
	"ampcio/config"
	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/queue"
)

// A verb is something that an operator has done to an installation. While the daemon
// runs it is the daemon that does it, asked through the admin socket; else the process
// of the command line does, under the lock of the storage folder, with the same code.
// in is a JSON object; what the verb has to tell it writes to out as it goes, one JSON
// object a line, none of which begins with the member "error". ctx ends when the
// operator has gone: a verb then stops between two steps, each of which is whole.
type verb func(ctx context.Context, h house, in json.RawMessage, out io.Writer) error

// verbs are all that can be asked of POST /do/NAME.
var verbs = map[string]verb{
	"sync-pause":          pauseVerb,
	"sync-resume":         resumeVerb,
	"sync-retry":          retryVerb,
	"sync-rewind":         rewindVerb,
	"sync-rename":         renameVerb,
	"sync-remove":         removeVerb,
	"sync-adopt":          adoptVerb,
	"dead-letters-list":   listDeadVerb,
	"dead-letters-show":   showDeadVerb,
	"dead-letters-export": exportDeadVerb,
	"dead-letters-replay": replayDeadVerb,
	"dead-letters-drop":   dropDeadVerb,
}

// readsOnly are the verbs that need no ledger opened for writing: where no daemon
// runs they read the files as they are.
var readsOnly = map[string]bool{"dead-letters-list": true, "dead-letters-show": true, "dead-letters-export": true}

// house is an installation as a verb sees it: a daemon, or its files. All methods are
// safe for concurrent use.
type house interface {
	running() bool // a daemon: it delivers
	config() *config.Config
	names() []string                        // of all ledgers, in the configuration or not, sorted
	consumer(name string) *queue.Consumer   // nil = there is none
	delivery(name string) *delivery.Sync    // nil = it does not deliver
	rulesOf(name string) *mapping.Rules     // nil = it is not in the configuration
	recordLog() *queue.Log                  // open
	operate(f func() error) error           // f alone changes what consumers and syncs there are
	stopSync(context.Context, string) error // ends delivery and consumer; what is pending is held
	startSync(context.Context, string) error
}

func (d *daemon) running() bool         { return true }
func (d *daemon) recordLog() *queue.Log { return d.records }

// failure is the last line of a verb that failed.
type failure struct {
	Error string `json:"error"`
	Code  int    `json:"code"` // the exit code, as in sysexits.h
}

var failureBegins = []byte(`{"error":`)

// maxInput bounds the body of a verb: some million ids of dead letters.
const maxInput = 64 << 20

// operatorHandler answers on the admin socket: all that [admin.SocketHandler] shows,
// and the verbs.
func operatorHandler(d *daemon) http.Handler {
	mux := admin.SocketHandler(d)
	mux.HandleFunc("POST /do/{verb}", d.doVerb)
	return mux
}

// doVerb answers with the lines that the verb tells. The verb ends when whoever asked
// for it has gone, and when ampcio stops.
func (d *daemon) doVerb(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("verb")
	w.Header().Set("Content-Type", "application/x-ndjson")
	do, known := verbs[name]
	if !known {
		w.WriteHeader(http.StatusNotFound)
		tell(w, failure{fmt.Sprintf("the ampcio that runs is %s and has no %q: restart it with this version", version().version, name), exitUnavailable})
		return
	}
	in, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxInput))
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		tell(w, failure{"read the request: " + err.Error(), exitUsage})
		return
	}
	// A verb may take as long as it likes, and so may whoever reads what it tells.
	c := http.NewResponseController(w)
	out := flushed{w, c}
	if err := errors.Join(c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{}), c.Flush()); err != nil {
		tell(w, failure{err.Error(), exitFailed})
		return
	}
	ctx, cancel := d.runs.whileFlowing(r.Context())
	defer cancel()
	err = do(ctx, d, in, out)
	if err != nil && ctx.Err() != nil && r.Context().Err() == nil {
		err = exit(exitTemporary, errors.New("ampcio is stopping: do it again when it runs"))
	}
	if err != nil {
		d.log.Warn("asked for by an operator, and not done to the end", "verb", name, "error", err)
		tell(out, failure{err.Error(), codeOf(err)})
		return
	}
	d.log.Info("done on an operator's word", "verb", name)
}

// flushed lets each line go as it is written.
type flushed struct {
	w io.Writer
	c *http.ResponseController
}

func (f flushed) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if err == nil {
		err = f.c.Flush()
	}
	return n, err
}

// tell writes one line of a verb's answer.
func tell(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// readInput reads what a verb was asked.
func readInput(in json.RawMessage, v any) error {
	d := json.NewDecoder(bytes.NewReader(in))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return exit(exitUsage, fmt.Errorf("read what is asked for: %w", err))
	}
	return nil
}

func codeOf(err error) int {
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	return exitFailed
}

// operator has verbs done, by whom it finds.
type operator struct {
	cfg     *config.Config
	stopped bool // no daemon did the last one
}

// do has one verb done, and calls each for every line that it tells. Where no daemon
// runs it does it itself.
func (o *operator) do(ctx context.Context, name string, in any, each func(line []byte) error) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	err = askDaemon(ctx, socketPath(o.cfg), name, body, each)
	if o.stopped = notRunning(err); o.stopped {
		err = doStopped(ctx, o.cfg, name, body, each)
	}
	if err != nil && ctx.Err() != nil {
		return exit(exitTemporary, errEndedByOperator)
	}
	return err
}

var errEndedByOperator = errors.New("ended by you")

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
		return exit(exitUnavailable, fmt.Errorf("ask the daemon: %w", permitted(socket, err)))
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

// lines calls each for every line that is written to it.
type lines struct {
	each func(line []byte) error
	rest []byte
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return len(b), nil
		}
		line := l.rest[:i+1]
		l.rest = l.rest[i+1:]
		if err := l.each(line); err != nil {
			return len(b), err
		}
	}
}
