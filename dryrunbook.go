package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ampcio/delivery"
)

// How much a dry run may write: a file of that many bytes, and so many full ones. They
// are gone after dryRunKeep, since they hold what users did.
const (
	dryRunFileBytes = 64 << 20
	dryRunFiles     = 4
	dryRunKeep      = 14 * 24 * time.Hour
	// dryRunSpare is how much of the disk is left to others beside storage.min_free: else
	// a dry run could make new events refused.
	dryRunSpare = dryRunFileBytes
)

// dryRunBook stands where Customer.io would: it writes down each request of one sync,
// counts it, and says that it went well. Nothing that may happen to its files stops
// anything: a line that cannot be written is left out, and counted. Safe for concurrent
// use.
type dryRunBook struct {
	path      string // of the file that is written to
	region    string
	hash      userHash // nil = there is none to be had
	now       func() time.Time
	log       *slog.Logger
	fileBytes int64
	spare     func() (bytes int64) // that may be written

	mu      sync.Mutex
	file    *os.File
	size    int64
	room    int64 // what may be written until the disk is looked at again
	looked  time.Time
	grieved time.Time // when it was last said that lines are left out
	counts  *dryRunCounts
	line    []byte
}

// dryRunPath is the file of a sync's requests; the full ones before it have a number
// before the ending, 1 being the newest.
func dryRunPath(storage, sync string, number int) string {
	name := sync + ".jsonl"
	if number > 0 {
		name = fmt.Sprintf("%s.%d.jsonl", sync, number)
	}
	return filepath.Join(dryRunFolder(storage), name)
}

// freeBeyond gives what the disk of a folder has free beyond some bytes.
func freeBeyond(dir string, bytes func() int64) func() int64 {
	return func() int64 {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return 0
		}
		return int64(st.Bavail)*int64(st.Bsize) - bytes()
	}
}

// dryRunLine is what the file has of a request; behind these members stands "body", the
// request's body as it would be sent.
type dryRunLine struct {
	Time       time.Time         `json:"time"`
	Sync       string            `json:"sync"`
	Method     string            `json:"method"`
	Path       string            `json:"path"`
	Bytes      int               `json:"bytes"` // of the body
	Count      int               `json:"operations_count"`
	Operations []dryRunOperation `json:"operations"`
}

// dryRunOperation is one of a request's operations, in their order.
type dryRunOperation struct {
	Action   string    `json:"action"`         // identify | event | page | screen
	Name     string    `json:"name,omitempty"` // as Customer.io would get it
	ID       string    `json:"id,omitempty"`   // the ULID of the event
	User     string    `json:"user,omitempty"` // a hash, as in every list of this installation
	Sequence uint64    `json:"seq"`            // for ampcio explain --seq
	Received time.Time `json:"received"`
	Bytes    int       `json:"bytes"`
}

// RoundTrip implements http.RoundTripper.
func (b *dryRunBook) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		body, err = io.ReadAll(r.Body)
		if err = errors.Join(err, r.Body.Close()); err != nil {
			return nil, err
		}
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	answer := "{}"
	if r.Method == http.MethodGet { // for the account's region: it is what the configuration says
		answer = fmt.Sprintf(`{"region":%q,"environment_id":0}`, b.region)
	} else if operations := delivery.Origins(r.Context()); len(operations) > 0 {
		b.take(r, operations, body)
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}}, ContentLength: int64(len(answer)), Body: io.NopCloser(strings.NewReader(answer)),
	}, nil
}

func (b *dryRunBook) take(r *http.Request, operations []delivery.Origin, body []byte) {
	line := dryRunLine{
		Time: b.now().UTC().Truncate(time.Millisecond), Sync: b.counts.Sync, Method: r.Method, Path: r.URL.Path, Bytes: len(body), Count: len(operations),
		Operations: make([]dryRunOperation, len(operations)),
	}
	for i, o := range operations {
		op := dryRunOperation{Action: o.Action, Sequence: o.Sequence, Received: o.Received.UTC(), Bytes: len(o.Body)}
		_ = json.Unmarshal(o.Body, &struct { // it is ours
			Name *string `json:"name"`
			ID   *string `json:"id"`
		}{&op.Name, &op.ID})
		if b.hash != nil {
			op.User = b.hash.of(o.User)
		}
		line.Operations[i] = op
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts.add(&line)
	var err error
	if b.line, err = appendDryRunLine(b.line[:0], &line, body); err == nil {
		err = b.write()
	}
	if err != nil {
		b.leaveOut(err)
	}
}

// appendDryRunLine is a line as it stands in the file: the body is the request's, byte for
// byte.
func appendDryRunLine(dst []byte, line *dryRunLine, body []byte) ([]byte, error) {
	var head bytes.Buffer
	if err := tell(&head, line); err != nil {
		return dst, err
	}
	dst = append(dst, head.Bytes()[:head.Len()-len("}\n")]...)
	return append(append(append(dst, dryRunBody...), body...), "}\n"...), nil
}

const dryRunBody = `,"body":`

var errNoSpareDisk = errors.New("the disk has no space to spare")

// write adds b.line to the file, whole or not at all. The caller holds b.mu, as for all
// below.
func (b *dryRunBook) write() error {
	n := int64(len(b.line))
	if b.file != nil && b.size+n > b.fileBytes {
		if err := b.rotate(); err != nil {
			return err
		}
	}
	if b.file == nil {
		if err := b.open(); err != nil {
			return err
		}
	}
	if !b.roomFor(n) {
		return errNoSpareDisk
	}
	written, err := b.file.Write(b.line)
	if err != nil {
		if written > 0 {
			err = errors.Join(err, b.file.Truncate(b.size))
		}
		return err
	}
	b.size, b.room = b.size+n, b.room-n
	return nil
}

// roomFor says whether n bytes may be written. Full files make room first.
func (b *dryRunBook) roomFor(n int64) bool {
	if now := b.now(); n > b.room || now.Sub(b.looked) >= time.Second {
		b.looked = now
		b.room = min(b.spare(), 16<<20)
		for i := dryRunFiles; i > 0 && b.room < n; i-- {
			if os.Remove(b.numbered(i)) == nil {
				b.room = min(b.spare(), 16<<20)
			}
		}
	}
	return n <= b.room
}

func (b *dryRunBook) numbered(i int) string {
	return fmt.Sprintf("%s.%d.jsonl", strings.TrimSuffix(b.path, ".jsonl"), i)
}

// open opens the file; half a line that a crash has left is taken off.
func (b *dryRunBook) open() error {
	f, err := os.OpenFile(b.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	size, err := wholeLines(f)
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	b.file, b.size = f, size
	return nil
}

// wholeLines is the size of a file up to its last line break.
func wholeLines(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	block := make([]byte, 64<<10)
	for end := st.Size(); end > 0; {
		begin := max(0, end-int64(len(block)))
		part := block[:end-begin]
		if _, err := f.ReadAt(part, begin); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
			return begin + int64(i) + 1, nil
		}
		end = begin
	}
	return 0, nil
}

// rotate numbers the full file, and gives up the oldest.
func (b *dryRunBook) rotate() error {
	err := b.file.Close()
	b.file = nil
	if err := os.Remove(b.numbered(dryRunFiles)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for i := dryRunFiles; i > 1; i-- {
		if err := os.Rename(b.numbered(i-1), b.numbered(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return errors.Join(err, os.Rename(b.path, b.numbered(1)))
}

// leaveOut counts a line that is not in the file, and says so once a minute.
func (b *dryRunBook) leaveOut(err error) {
	b.counts.LeftOut++
	if now := b.now(); now.Sub(b.grieved) >= time.Minute {
		b.grieved = now
		b.log.Warn("the dry run goes on, but not all of its requests are written to its file", "sync", b.counts.Sync, "left_out", b.counts.LeftOut, "error", err)
	}
}

// save writes the counts, if there are new ones.
func (b *dryRunBook) save() {
	b.mu.Lock()
	text, path := b.counts.changes(), dryRunCountsPath(b.path)
	b.mu.Unlock()
	if text == nil {
		return
	}
	err := os.WriteFile(path+".new", text, 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		b.mu.Lock()
		b.counts.changed = true
		b.mu.Unlock()
		b.log.Debug("the counts of a dry run were not written", "error", err)
	}
}

// shown are the counts as they are now.
func (b *dryRunBook) shown() dryRunCounts {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts.clone()
}

// close ends the book; its delivery has ended.
func (b *dryRunBook) close() {
	b.save()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file != nil {
		b.file.Close() // what was written is there; nobody depends on it
		b.file = nil
	}
}
