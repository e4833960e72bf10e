package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
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

// FuzzAsked asks each verb, in a house that is stopped, whatever may come: what is no JSON is refused, and nothing that
// is asked ends the process.
func FuzzAsked(f *testing.F) {
	// Those that wait, go to the network, or read files that are named.
	left := map[string]bool{"send-test": true, "reload": true, "alerts-test": true, "import": true, "drain": true, "backup": true, "check-pending": true}
	var names []string
	for name := range verbs {
		if !left[name] {
			names = append(names, name)
		}
	}
	for i := range names {
		f.Add(uint(i), []byte(`{"sync":"demo"}`))
	}
	for _, asked := range []string{``, `null`, `[]`, `{"sync":1}`, `{"sync":"x\u0000"}`, `{"user":"ann"}`, `{"ids":["01ARZ3NDEKTSV4RRFFQ69G5FAV","x"]}`, `{"sequence":18446744073709551615,"sync":"demo"}`} {
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
		var any json.RawMessage
		if notJSON := json.NewDecoder(bytes.NewReader(asked)).Decode(&any); notJSON != nil && err == nil {
			t.Fatalf("%s %q is done", name, asked)
		}
	})
}
