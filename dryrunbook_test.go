package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/queue"
)

// bookOf is a book in a folder of its own, that takes what a delivery would send.
func bookOf(t *testing.T, fileBytes int64, spare func() int64) *dryRunBook {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(dryRunFolder(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	return &dryRunBook{path: dryRunPath(dir, "s", 0), region: "eu", now: time.Now, log: slog.New(slog.DiscardHandler), fileBytes: fileBytes, spare: spare,
		counts: newDryRunCounts("s", time.Now())}
}

// asks lets the book take n requests of one event each, by a real delivery.
func asks(t *testing.T, b *dryRunBook, n int) {
	t.Helper()
	dir := t.TempDir()
	l, err := queue.Open(queue.Options{Dir: dir, RotateBytes: 64 << 20, RotateAfter: time.Hour, InFlightBytes: 1 << 20, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	c, err := queue.OpenConsumer(l, queue.ConsumerOptions{Name: "s", Project: "app", Enabled: true, WindowBytes: 1 << 20, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	rules, err := mapping.Compile(mapping.Spec{Identifier: "user_id", SendEvents: true, Select: []mapping.SelectSpec{{Event: []string{"*"}}}})
	if err != nil {
		t.Fatal(err)
	}
	s := delivery.New(c, rules, delivery.Options{Name: "s", Region: "eu", BatchOperations: 1, RequestsPerSecond: 10_000, Transport: b})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 3)
	for _, run := range []func(context.Context) error{l.Run, c.Run, s.Run} {
		go func() { ended <- run(ctx) }()
	}
	if err := l.Append(ctx, plainEvents(n)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "all is taken", func() bool {
		st, err := c.Stats()
		return err == nil && st.Books.Delivered == uint64(n)
	})
	stop()
	for range 3 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// plainEvents is a batch of so many events of one user.
type plainEvents int

func (n plainEvents) Size() int       { return int(n) * 300 }
func (n plainEvents) Project() string { return "app" }
func (n plainEvents) Resolve(w *queue.Writer) error {
	for i := range int(n) {
		r := mapping.Record{UserID: "anna", Time: 1_000_000, Properties: []byte("{}"), Raw: []byte(`{"event_type":"Visit"}`)}
		r.ID[0] = byte(i)
		w.Put(queue.Record{Project: "app", Lane: "anna", Received: time.Date(2026, 11, 25, 13+i%2, 0, 0, 0, time.UTC).UnixMilli(), ID: r.ID, Body: r.AppendBody(nil)})
	}
	return nil
}

func roomy() int64 { return 1 << 40 }

func linesIn(t *testing.T, b *dryRunBook) (files, lines int, bytes int64) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(filepath.Dir(b.path), "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > 0 && text[len(text)-1] != '\n' {
			t.Errorf("%s ends in the middle of a line", p)
		}
		files, lines, bytes = files+1, lines+strings.Count(string(text), "\n"), max(bytes, int64(len(text)))
	}
	return files, lines, bytes
}

// However much would be sent, the files stay within their bounds, and the counts are of all.
func TestDryRunBookIsBounded(t *testing.T) {
	b := bookOf(t, 2_000, roomy)
	asks(t, b, 200)
	files, lines, largest := linesIn(t, b)
	if files != dryRunFiles+1 || largest > 2_000 || lines < 15 || lines > 40 {
		t.Errorf("%d files, %d lines, the largest has %d bytes", files, lines, largest)
	}
	c := b.shown()
	if c.Events != 200 || c.Requests != 200 || c.LeftOut != 0 || c.Hours["2026-11-25T13"]["event Visit"] != 100 || c.Hours["2026-11-25T14"]["event Visit"] != 100 {
		t.Errorf("%+v", c)
	}
	rows := c.rows(true, false, time.Date(2026, 11, 25, 14, 30, 0, 0, time.UTC))
	if len(rows) != 1 || rows[0] != (dryRunRow{Hour: "2026-11-25T14:00:00Z", Action: "event", Count: 100}) {
		t.Errorf("%+v", rows)
	}
	b.close()
	stored, err := readDryRunCounts(filepath.Dir(filepath.Dir(b.path)), "s")
	if err != nil || stored == nil || stored.Events != 200 {
		t.Errorf("%+v, %v", stored, err)
	}
}

// A disk without space to spare: full files go first, then lines are left out and counted;
// and it goes on when there is space. Nothing waits for any of that.
func TestDryRunBookOnAFullDisk(t *testing.T) {
	b := bookOf(t, 2_000, roomy)
	now := time.Now()
	b.now = func() time.Time { now = now.Add(time.Second); return now } // so that it looks each time
	asks(t, b, 50)
	b.spare = func() int64 { return 10 }
	asks(t, b, 20)
	files, before, _ := linesIn(t, b)
	if c := b.shown(); files != 1 || c.LeftOut != 20 || c.Events != 70 {
		t.Errorf("%d files, %+v", files, c)
	}
	b.spare = roomy
	asks(t, b, 3)
	if _, after, _ := linesIn(t, b); after != before+3 && after < 3 {
		t.Errorf("%d lines, then %d", before, after)
	}

	// The folder is gone, or is none.
	b.close()
	if err := os.RemoveAll(filepath.Dir(b.path)); err != nil {
		t.Fatal(err)
	}
	asks(t, b, 5)
	b.save()
	if c := b.shown(); c.LeftOut != 25 || c.Events != 78 {
		t.Errorf("%+v", c)
	}
}

// What a crash has left of a line is taken off, however long the rest is.
func TestDryRunBookAfterACrash(t *testing.T) {
	b := bookOf(t, 1<<30, roomy)
	text := strings.Repeat(strings.Repeat("x", 70_000)+"\n", 3) + strings.Repeat("y", 150_000)
	if err := os.WriteFile(b.path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	asks(t, b, 2)
	if _, lines, bytes := linesIn(t, b); lines != 5 || bytes > 3*70_001+2_000 {
		t.Errorf("%d lines, %d bytes", lines, bytes)
	}
}

// Many names in an hour do not make the counts grow without end, nor do many hours.
func TestDryRunCountsAreBounded(t *testing.T) {
	c := newDryRunCounts("s", time.Now())
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 400 {
		line := dryRunLine{}
		for j := range 3 * dryRunNames / (1 + 2*min(i, 1)) {
			if i > 0 && j > 2 {
				break
			}
			line.Operations = append(line.Operations, dryRunOperation{Action: "event", Name: fmt.Sprint(j), Received: at.Add(time.Duration(i) * time.Hour)})
		}
		if c.add(&line); i == 0 {
			names := c.Hours["2026-01-01T00"]
			if len(names) != dryRunNames+1 || names["event "+dryRunOthers] != 2*dryRunNames {
				t.Errorf("%d names, %d others", len(names), names["event "+dryRunOthers])
			}
		}
	}
	if len(c.Hours) != dryRunHours || c.Hours["2026-01-01T00"] != nil {
		t.Errorf("%d hours", len(c.Hours))
	}
}

// Whoever asks for something else than a batch is told the region, and nothing is written.
func TestDryRunBookKnowsTheRegion(t *testing.T) {
	b := bookOf(t, 1<<20, roomy)
	resp, err := b.RoundTrip(httptest.NewRequest(http.MethodGet, "https://track-eu.customer.io/api/v1/accounts/region", nil))
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	account, err := delivery.CheckAccount(t.Context(), delivery.Options{Region: "eu", Transport: b})
	if err != nil || account.Region != "eu" || b.shown().Requests != 0 {
		t.Errorf("%+v, %v", account, err)
	}
}
