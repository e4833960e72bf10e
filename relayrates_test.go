package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ampcio/recordings"
	"ampcio/rehearsal"
)

// How fast events come in with and without a relay, and how fast a relay sends a backlog.
// AMPCIO_TEST_RELAY says how many events; without it there is nothing to measure.
func TestRelayRates(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("AMPCIO_TEST_RELAY"))
	if n == 0 {
		t.Skip("AMPCIO_TEST_RELAY is not set")
	}
	var requests, events, bytes atomic.Int64
	amplitude := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		requests.Add(1)
		events.Add(int64(strings.Count(string(body), `"event_type"`)))
		bytes.Add(int64(len(body)))
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"code":200}`)
	}))
	defer amplitude.Close()

	round := 0
	load := func(r *rehearsal.Rehearsal) float64 {
		round++
		const senders, run = 8, 100
		began := time.Now()
		var sending sync.WaitGroup
		for sender := range senders {
			sending.Go(func() {
				for i := sender; i < n/run; i += senders {
					var b strings.Builder
					fmt.Fprintf(&b, `{"api_key":%q,"events":[`, recordings.Key)
					for k := range run {
						if k > 0 {
							b.WriteByte(',')
						}
						user := (i*run + k) % 10_000
						fmt.Fprintf(&b, `{"event_type":"Order Completed","user_id":"user-%d","device_id":"device-%d","insert_id":"%d-%d-%d","time":%d,"platform":"Web","ip":"$remote","event_properties":{"seq":%d,"total":19.9,"currency":"EUR","path":"/checkout/thanks"},"library":"amplitude-ts/2.45.0"}`,
							user, user, round, i, k, began.UnixMilli(), i)
					}
					b.WriteString("]}")
					if err := r.Post(t.Context(), "/2/httpapi", nil, []byte(b.String())); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		sending.Wait()
		return float64(n) / time.Since(began).Seconds()
	}
	without, with := rehearse(t, rehearsal.Settings{}), rehearse(t, rehearsal.Settings{})
	edit(t, without, "[sync.demo]\n", "[sync.demo]\nenabled = false\n") // nothing is sent to anybody
	withoutSyncs(t, with)
	edit(t, with, `relay = "off"`, fmt.Sprintf("relay = \"eu\"\nrelay_endpoint = %q", amplitude.URL))

	up(t, without)
	up(t, with)
	load(without) // the machine's caches are warm
	for range 2 {
		t.Logf("ingest without a relay: %.0f events/s", load(without))
		before := time.Now()
		rate := load(with)
		if _, err := with.Drained(within(t, 10*time.Minute)); err != nil {
			t.Fatal(err)
		}
		t.Logf("ingest with a relay: %.0f events/s; %.1f s until the last was relayed too", rate, time.Since(before).Seconds())
	}
	run0(t, "sync", "pause", "relay.app", "--config", with.ConfigPath)
	t.Logf("ingest with a relay that is paused: %.0f events/s", load(with))
	requests.Store(0)
	events.Store(0)
	bytes.Store(0)
	began := time.Now()
	run0(t, "sync", "resume", "relay.app", "--config", with.ConfigPath)
	if _, err := with.Drained(within(t, 10*time.Minute)); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	if events.Load() < int64(n) {
		t.Errorf("%d of %d events were relayed", events.Load(), n)
	}
	t.Logf("a backlog of %d events is relayed in %.1f s: %.0f events/s, %.1f MB/s, %d requests of %d bytes", n, took.Seconds(),
		float64(n)/took.Seconds(), float64(bytes.Load())/1e6/took.Seconds(), requests.Load(), bytes.Load()/max(requests.Load(), 1))
	down(t, with)
	down(t, without)
}
