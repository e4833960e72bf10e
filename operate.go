package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"
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
	names() []string                      // of all ledgers, in the configuration or not, sorted
	consumer(name string) *queue.Consumer // nil = there is none
	delivery(name string) *delivery.Sync  // nil = it does not deliver
	rulesOf(name string) *mapping.Rules   // nil = it is not in the configuration
	recordLog() *queue.Log                // open
	userStore() *users.Store              // nil = it is not open
	operate(f func() error) error         // f alone changes what consumers and syncs there are
	// whileOpen calls f with a consumer that nobody closes meanwhile; nil = there is none.
	// It waits for no operation on other syncs.
	whileOpen(name string, f func(*queue.Consumer) error) error
	stopSync(context.Context, string) error // ends delivery and consumer; what is pending is held
	startSync(context.Context, string) error
}

func (d *daemon) running() bool           { return true }
func (d *daemon) recordLog() *queue.Log   { return d.records }
func (d *daemon) userStore() *users.Store { return d.users }

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
	mux := d.withMetrics(admin.SocketHandler(d))
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
	heard := &lastLine{w: out}
	err = do(ctx, d, in, heard)
	if err != nil && ctx.Err() != nil && r.Context().Err() == nil {
		err = exit(exitTemporary, errors.New("ampcio is stopping: do it again when it runs"))
	}
	level, failed := slog.LevelInfo, slog.LevelWarn
	if changesNothing(name, in) {
		level = slog.LevelDebug
	}
	if name == "reload" { // which says itself what came of it
		level, failed = slog.LevelDebug, slog.LevelDebug
	}
	if name == "import" { // some thousand lines at a time; its last call says itself what came of all
		level = slog.LevelDebug
	}
	attrs := append([]any{"verb", name}, asWords(in, heard.line)...)
	if err != nil {
		d.log.Log(ctx, failed, "asked for by an operator, and not done to the end", append(attrs, "error", err)...)
		tell(out, failure{err.Error(), codeOf(err)})
		return
	}
	d.log.Log(ctx, level, "done on an operator's word", attrs...)
}

// changesNothing says whether a verb only looks.
func changesNothing(name string, in json.RawMessage) bool {
	var asked struct {
		DryRun bool `json:"dry_run"`
	}
	_ = json.Unmarshal(in, &asked) // what is none of JSON has been refused
	return asked.DryRun || readsOnly[name] || name == "check-pending" || name == "sync-export" || name == "alerts-list"
}

// asWords are the attributes of a log line about a verb: which syncs were meant, and the
// numbers of the last thing that it told. There are never ids or events in it.
func asWords(in json.RawMessage, told []byte) (attrs []any) {
	var asked struct {
		Sync   string   `json:"sync"`
		Syncs  []string `json:"syncs"`
		Old    string   `json:"old"`
		New    string   `json:"new"`
		DryRun bool     `json:"dry_run"`
	}
	_ = json.Unmarshal(in, &asked)
	for _, word := range []struct{ name, value string }{
		{"sync", asked.Sync}, {"syncs", strings.Join(asked.Syncs, ", ")}, {"old", asked.Old}, {"new", asked.New},
	} {
		if word.value != "" {
			attrs = append(attrs, word.name, word.value)
		}
	}
	if asked.DryRun {
		attrs = append(attrs, "dry_run", true)
	}
	var numbers struct {
		Changed     *bool   `json:"changed"`
		Records     *uint64 `json:"records"`
		Done        *uint64 `json:"done"`
		Pending     *uint64 `json:"pending"`
		DeadLetters *uint64 `json:"dead_letters"`
	}
	if json.Unmarshal(told, &numbers) != nil {
		return attrs
	}
	if numbers.Changed != nil {
		attrs = append(attrs, "changed", *numbers.Changed)
	}
	for _, n := range []struct {
		name  string
		value *uint64
	}{{"records", numbers.Records}, {"done", numbers.Done}, {"pending", numbers.Pending}, {"dead_letters", numbers.DeadLetters}} {
		if n.value != nil {
			attrs = append(attrs, n.name, *n.value)
		}
	}
	return attrs
}

// lastLine remembers the line that was written last, of those that are short.
type lastLine struct {
	w    io.Writer
	line []byte
}

func (l *lastLine) Write(b []byte) (int, error) {
	if l.line = l.line[:0]; len(b) < 64<<10 {
		l.line = append(l.line, b...)
	}
	return l.w.Write(b)
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

// readInput reads what a verb was asked: one JSON value and nothing behind it, so that nothing is done of which somebody
// has asked for more, or for something else.
func readInput(in json.RawMessage, v any) error {
	d := json.NewDecoder(bytes.NewReader(in))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return exit(exitUsage, fmt.Errorf("read what is asked for: %w", err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return exit(exitUsage, fmt.Errorf("read what is asked for: there is something behind it, at byte %d", d.InputOffset()))
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
