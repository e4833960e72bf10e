package alerts

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata anew")

// What is posted, as it is read on a phone and by a machine: testdata/messages.txt.
func TestMessagesAsTheyAreRead(t *testing.T) {
	now := time.Date(2026, 11, 26, 11, 53, 0, 0, time.UTC)
	at := func(d time.Duration) time.Time { return now.Add(-d) }
	until := at(5 * time.Minute)
	wrong := Told{Of: "production", Level: Critical, Since: at(72 * time.Minute), What: "Customer.io does not accept the Site ID and API key (http_401); 18,204 events wait, and nothing is lost",
		Do: "check site_id and the Track API key; then: systemctl restart ampcio", Numbers: map[string]int64{"pending": 18204}}
	staging := wrong
	staging.Of = "staging"
	over := wrong
	over.Until, over.Do = &until, ""
	var many []Told
	for i := range 12 {
		w := wrong
		w.Of = fmt.Sprintf("sync-%d", i)
		many = append(many, w)
	}
	hostile := wrong
	hostile.What = "it says <!channel> & <https://evil.example|click> *bold*"
	disk := Told{Level: Critical, Since: at(24 * time.Hour), What: "new events are refused: 20 GiB used of storage.max_bytes 20 GiB; SDKs keep them for a while, and try again", Do: "raise storage.max_bytes, then: ampcio reload"}
	var all bytes.Buffer
	for _, m := range []Message{
		{Event: Began, Kind: "blocked", Level: Critical, Troubles: []Told{wrong}},
		{Event: Began, Kind: "blocked", Level: Critical, Troubles: []Told{wrong, staging}},
		{Event: Began, Kind: "blocked", Level: Critical, Troubles: many},
		{Event: Still, Kind: "disk", Level: Critical, Troubles: []Told{disk}},
		{Event: Worse, Kind: "disk", Level: Critical, Troubles: []Told{disk}},
		{Event: Over, Kind: "blocked", Level: Critical, Troubles: []Told{over}, Firing: []Ref{{"disk", "", Critical}, {"age", "staging", Warning}}},
		{Event: Began, Kind: "blocked", Level: Critical, At: at(2 * time.Hour), Troubles: []Told{hostile}, Earlier: &Earlier{12, at(50 * time.Hour), at(3 * time.Hour)}},
		{Event: Test, Kind: "test", Level: Warning, Troubles: []Told{{Level: Warning, What: "Somebody ran ampcio alerts test."}}},
	} {
		m.ID = "01M8AKM69GRZV68ZQSBDYD8P0E"
		if m.At.IsZero() {
			m.At = now
		}
		o := Options{Instance: "vm-1", Version: "1.5.0", URL: "https://hooks.slack.com/x", Format: Auto}
		fmt.Fprintf(&all, "%s\n\n", m.text(o.Instance, now))
		if slack := string(m.body(&o, now)); strings.Contains(slack, "evil") {
			fmt.Fprintf(&all, "to Slack:\n%s\n\n", slack)
			if strings.Contains(slack, "<!channel>") || strings.Contains(slack, `\u003c!channel`) {
				t.Errorf("Slack would call everybody: %s", slack)
			}
		}
		if m.Event == Over {
			o.Format = JSON
			var pretty bytes.Buffer
			if err := json.Indent(&pretty, m.body(&o, now), "", "  "); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&all, "as JSON:\n%s\n\n", &pretty)
		}
	}
	path := filepath.Join("testdata", "messages.txt")
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, all.Bytes(), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, all.Bytes()) {
		t.Errorf("other than %s:\n%s", path, &all)
	}
}
