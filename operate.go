package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
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
