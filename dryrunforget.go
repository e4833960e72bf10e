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
	"os"
	"path/filepath"
	"regexp"
	"time"

	"ampcio/queue"
	"ampcio/users"
)

// Dry runs have of a person who is forgotten what their trials know, as any ledger does,
// and the lines in their files. Of these the operations of the person are taken out, and
// a line that has no others goes whole. What was counted stays counted: it names nobody.

// dryRunErasure says which operations are taken out of the files of a dry run.
type dryRunErasure struct {
	users map[string]bool // hashes, as the lines have them
	upTo  uint64          // what is behind it is of somebody new
}

func (e *dryRunErasure) takes(o *dryRunOperation) bool {
	return o.Sequence <= e.upTo && (o.User == "" || e.users[o.User]) // who has no hash may be anybody
}

// mayTake says quickly whether it may take something of a line.
func (e *dryRunErasure) mayTake(line []byte) bool {
	head, _, _ := bytes.Cut(line, []byte(dryRunBody))
	if bytes.Count(head, []byte(`"action":`)) != bytes.Count(head, []byte(`"user":`)) {
		return true
	}
	for hash := range e.users {
		if bytes.Contains(head, []byte(hash)) {
			return true
		}
	}
	return false
}

// rest is a line without what is taken out of it; nil when nothing stays. n is how many
// operations are taken.
func (e *dryRunErasure) rest(text []byte) (rest []byte, n int, err error) {
	if !e.mayTake(text) {
		return text, 0, nil
	}
	var line struct {
		dryRunLine
		Body struct {
			Batch []json.RawMessage `json:"batch"`
		} `json:"body"`
	}
	if json.Unmarshal(text, &line) != nil || len(line.Operations) != len(line.Body.Batch) {
		return nil, 1, nil // half a line, or a damaged one: it may be of anybody
	}
	var kept []dryRunOperation
	body := []byte(`{"batch":[`)
	for i := range line.Operations {
		if e.takes(&line.Operations[i]) {
			n++
			continue
		}
		if len(kept) > 0 {
			body = append(body, ',')
		}
		kept, body = append(kept, line.Operations[i]), append(body, line.Body.Batch[i]...)
	}
	switch {
	case n == 0:
		return text, 0, nil
	case len(kept) == 0:
		return nil, n, nil
	}
	body = append(body, "]}"...)
	line.Operations, line.Count, line.Bytes = kept, len(kept), len(body)
	rest, err = appendDryRunLine(nil, &line.dryRunLine, body)
	return rest, n, err
}

// eraseFrom takes it out of a file, which nobody writes to. A file that cannot be written
// anew is deleted: nobody depends on it.
func (e *dryRunErasure) eraseFrom(path string) (n int, err error) {
	n, err = e.copy(path, io.Discard)
	if n == 0 && err == nil {
		return 0, nil
	}
	var st os.FileInfo
	if err == nil {
		st, err = os.Stat(path)
	}
	if err == nil {
		err = e.rewrite(path)
	}
	if err == nil {
		return n, os.Chtimes(path, time.Time{}, st.ModTime()) // by which it is deleted in time
	}
	if gone := errors.Join(os.RemoveAll(path+".new"), os.RemoveAll(path)); gone != nil {
		return 0, gone
	}
	return n, nil
}

func (e *dryRunErasure) rewrite(path string) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	_, err = e.copy(path, w)
	if err = errors.Join(err, w.Flush(), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// copy writes what stays of a file, and says how many operations do not.
func (e *dryRunErasure) copy(path string, to io.Writer) (n int, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewReaderSize(f, 1<<20); ; {
		text, end := lines.ReadBytes('\n')
		if len(text) > 0 {
			rest, taken, err := e.rest(text)
			n += taken
			if err == nil {
				_, err = to.Write(rest)
			}
			if err != nil {
				return n, err
			}
		}
		if errors.Is(end, io.EOF) {
			return n, nil
		}
		if end != nil {
			return n, end
		}
	}
}

// erase takes it out of a file of the book; what is written meanwhile waits.
func (b *dryRunBook) erase(e *dryRunErasure, path string) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file != nil && path == b.path {
		b.file.Close() // the next line opens it again
		b.file = nil
	}
	return e.eraseFrom(path)
}

var dryRunFileName = regexp.MustCompile(`^(.+?)(\.[0-9]+)?\.jsonl$`)

// forgetInDryRuns lets dry runs go of a person, in the ledgers of the trials and in the
// files: n operations.
func forgetInDryRuns(ctx context.Context, h house, t *queue.Tombstone) (n int, err error) {
	dir := h.config().Storage.Dir
	trials, err := queue.Trials(dir)
	if err != nil {
		return 0, err
	}
	for _, name := range trials {
		if err := forgetInTrial(ctx, h, name, t); err != nil {
			return 0, fmt.Errorf("dry run: %w", err)
		}
	}
	hash, err := openUserHash(dir)
	if err != nil {
		return 0, err
	}
	e := &dryRunErasure{users: map[string]bool{}, upTo: t.UpTo}
	for _, lane := range t.Unfinished.Lanes {
		userID, deviceID := users.OfLane(lane)
		for _, id := range []string{userID, deviceID} {
			if id != "" {
				e.users[hash.of(id)] = true
			}
		}
	}
	entries, err := os.ReadDir(dryRunFolder(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	for _, entry := range entries {
		of := dryRunFileName.FindStringSubmatch(entry.Name())
		if of == nil {
			continue
		}
		if y, configured := h.config().Sync[of[1]]; configured && y.Project != t.Project {
			continue
		}
		path := filepath.Join(dryRunFolder(dir), entry.Name())
		erase := e.eraseFrom
		if d, running := h.(*daemon); running {
			if b := d.book(trialOf(of[1])); b != nil {
				erase = func(path string) (int, error) { return b.erase(e, path) }
			}
		}
		taken, err := erase(path)
		if n += taken; err != nil {
			return n, err
		}
	}
	return n, nil
}

// forgetInTrial lets the ledger of a trial go of a person. One that cannot is deleted, if
// nobody has it open: the dry run begins anew then.
func forgetInTrial(ctx context.Context, h house, name string, t *queue.Tombstone) error {
	set := settingsOf(h.config(), name)
	if set != nil && set.project != t.Project {
		return nil
	}
	c, dir := h.consumer(name), h.config().Storage.Dir
	if c != nil {
		_, err := c.Forget(ctx, t.Unfinished.Sent)
		return err
	}
	if set == nil || h.running() {
		return queue.RemoveTrial(dir, name)
	}
	c, err := queue.OpenConsumer(h.recordLog(), queue.ConsumerOptions{Name: name, Project: set.project, Enabled: true, Trial: true, WindowBytes: windowBytes, Now: time.Now})
	if err == nil {
		_, err = c.Forget(ctx, t.Unfinished.Sent)
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		return queue.RemoveTrial(dir, name)
	}
	return nil
}

// removeDryRun deletes what a dry run of a sync has written, which is in none.
func removeDryRun(storage, sync string) error {
	path := dryRunPath(storage, sync, 0)
	errs := []error{os.RemoveAll(dryRunCountsPath(path)), os.RemoveAll(path)}
	for i := 1; i <= dryRunFiles; i++ {
		errs = append(errs, os.RemoveAll(dryRunPath(storage, sync, i)))
	}
	return errors.Join(errs...)
}
