package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/rehearsal"
)

// FuzzOwnFiles reads the small files of the storage folder: door.json, acknowledged.json, the counts of a dry run and its
// lines, and the key of the hashes. What is damaged counts as none, or is told; what counts can be worked with.
func FuzzOwnFiles(f *testing.F) {
	f.Add([]byte(`{"requests":5,"events":3,"duplicates":1,"refused":[{"reason":"invalid_json","count":2,"last":"2026-11-23T12:00:00Z","last_address":"203.0.113.9"}],"last_seen":{"app":"2026-11-23T12:00:00Z"},"last_request":null}`))
	f.Add([]byte(`{"version":1,"syncs":{"demo":{"by":"ann","since":"2026-11-23T12:00:00Z","until":"2026-11-24T12:00:00Z"}}}`))
	f.Add([]byte(`{"schema":1,"sync":"demo","hours":{"2026-11-25T14":{"event Order Completed":3,"identify":2},"2026-11-25T15":null}}`))
	f.Add([]byte(`{"time":"2026-11-25T14:00:00Z","operations":[{"action":"event","user":"u:ann"}],"count":1,"bytes":20,"body":{"batch":[{"type":"person"}]}}`))
	f.Add(bytes.Repeat([]byte{7}, hashKeyBytes))
	dir := f.TempDir()
	counts := dryRunCountsPath(dryRunPath(dir, "demo", 0))
	if err := os.MkdirAll(filepath.Dir(counts), 0o700); err != nil {
		f.Fatal(err)
	}
	now := time.Date(2026, 11, 25, 14, 30, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, path := range []string{filepath.Join(dir, doorBook), filepath.Join(dir, ackFile), counts, filepath.Join(dir, hashKeyFile)} {
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := readDoorBook(dir); err != nil {
			t.Fatal(err)
		}
		if a, err := readAcknowledgements(dir); err == nil {
			a.Syncs["another"] = admin.Acknowledged{}
		}
		if c, err := readDryRunCounts(dir, "demo"); err != nil {
			t.Fatal(err)
		} else if c != nil {
			c.add(&dryRunLine{Time: now, Operations: []dryRunOperation{{Action: "event", Name: "E", Received: now}}})
			c.rows(true, true, now)
			c.clone()
		}
		if key, err := openUserHash(dir); err == nil && len(key) != hashKeyBytes {
			t.Fatalf("a key of %d bytes", len(key))
		}
		_, _ = readInputs(text, "ann")
		_, _ = readPair(text)
	})
}

// FuzzErasure takes a person out of lines of a dry run's file, whatever they hold: nothing stays of a line that cannot be
// read, of others stay what is not the person's, and the line is one again.
func FuzzErasure(f *testing.F) {
	f.Add([]byte(`{"time":"2026-11-25T14:00:00Z","operations":[{"action":"event","user":"u:ann","seq":3},{"action":"event","user":"u:bob","seq":4}],"count":2,"bytes":20,"body":{"batch":[{"n":1},{"n":2}]}}` + "\n"))
	f.Add([]byte(`{"operations":[{"action":"event","seq":3}],"body":{"batch":[{}]}}`))
	f.Add([]byte(`{"operations":[{"action":"event","user":"u:ann","seq":3},{"action":"x","user":"u:bob"}],"body":{"batch":[{}]}}`))
	f.Add([]byte(`{"operations":[{"action":"event","user":"u:ann"`))
	f.Add([]byte(`{"operations":null,"body":{"batch":[]}}`))
	e := &dryRunErasure{users: map[string]bool{"u:ann": true}, upTo: 10}
	f.Fuzz(func(t *testing.T, text []byte) {
		rest, n, err := e.rest(text)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			if !bytes.Equal(rest, text) {
				t.Fatalf("nothing is taken, and the line is another: %q", rest)
			}
			return
		}
		if rest == nil {
			return
		}
		var line struct {
			dryRunLine
			Body struct{ Batch []json.RawMessage }
		}
		if err := json.Unmarshal(rest, &line); err != nil || len(line.Operations) != len(line.Body.Batch) || len(line.Operations) == 0 {
			t.Fatalf("%q of %q: %v", rest, text, err)
		}
		for i := range line.Operations {
			if e.takes(&line.Operations[i]) {
				t.Fatalf("what is the person's stays: %q", rest)
			}
		}
		if _, n, err := e.rest(rest); n != 0 || err != nil {
			t.Fatalf("taken once more, %d go: %q, %v", n, rest, err)
		}
	})
}

// FuzzAsked asks each verb, in a house that is stopped, whatever may come: what is no JSON is refused, and nothing that
// is asked ends the process.
func FuzzAsked(f *testing.F) {
	names := slices.Sorted(maps.Keys(verbs)) // so that a seed of the corpus asks the same verb each time
	for i := range names {
		f.Add(uint(i), []byte(`{"sync":"demo"}`))
	}
	for _, asked := range []string{``, `null`, `[]`, `{"sync":1}`, `{"sync":"x\u0000"}`, `{"sync":"demo"} {"sync":"demo"}`, `{"sync":"demo"}x`,
		`{"syncs":["demo"]}`, `{"project":"app","part":"00112233445566778899aabbccddeeff","lines":["e30="],"from":1}`, `{"project":"app","flush":true}`, `{"config":"x","dry_run":true}`, `{"user":"ann","dry_run":true}`, `{"user":"ann"}`, `{"ids":["01ARZ3NDEKTSV4RRFFQ69G5FAV","x"]}`, `{"sequence":18446744073709551615,"sync":"demo"}`} {
		f.Add(uint(len(asked)), []byte(asked))
	}
	r := rehearse(f, rehearsal.Settings{})
	cfg, err := config.Load(r.ConfigPath, config.Environment{})
	if err != nil {
		f.Fatal(err)
	}
	if err := os.MkdirAll(cfg.Storage.Dir, 0o700); err != nil {
		f.Fatal(err)
	}
	o := &operator{cfg: cfg, say: io.Discard}
	f.Fuzz(func(t *testing.T, n uint, asked []byte) {
		name := names[n%uint(len(names))]
		err := doStopped(context.Background(), o, name, asked, func(line []byte) error { return nil })
		if !json.Valid(asked) && err == nil {
			t.Fatalf("%s %q is done", name, asked)
		}
	})
}
