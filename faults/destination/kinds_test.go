package destination

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"ampcio/sandbox"
)

// Each kind says how it fails, once, and in words that the sandbox knows: one that does nothing would always be green.
func TestKindsAreWaysToFail(t *testing.T) {
	names := map[string]bool{}
	for _, k := range kinds {
		ways := 0
		for _, is := range []bool{k.front != nil, k.faults != "", k.dns} {
			if is {
				ways++
			}
		}
		if ways != 1 || names[k.name] {
			t.Errorf("%q fails in %d ways; named before: %t", k.name, ways, names[k.name])
		}
		names[k.name] = true
		f, err := sandbox.ParseFaults(strings.ReplaceAll(k.faults, "SHARE", "60%"))
		if err != nil || k.faults != "" && f.String() == "" {
			t.Errorf("%q: %q, %v", k.name, f, err)
		}
	}
}

// Of the answers that come too late, one was processed before its client went and one after: both were processed.
func TestTooLateIsProcessed(t *testing.T) {
	for _, before := range []bool{true, false} {
		s := sandbox.New(sandbox.Options{})
		var always shape
		for seed := range uint64(100) { // one that strikes each time
			rng := rand.New(rand.NewPCG(seed, 0))
			if always = processedLate(before)(rng); rand.New(rand.NewPCG(seed, 0)).IntN(2) != 0 {
				break
			}
		}
		// The client gives up when the whole request has come, however slow that was.
		ctx, giveUp := context.WithCancel(t.Context())
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			giveUp()
			always.does(w, r, s)
		}))
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+"/api/v2/batch", strings.NewReader(
			`{"batch":[{"type":"person","action":"event","identifiers":{"id":"a"},"name":"n","timestamp":1790000000}]}`))
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth("site", "key")
		if resp, err := http.DefaultClient.Do(r); err == nil {
			t.Errorf("before %t: it was answered in time: %d", before, resp.StatusCode)
			resp.Body.Close()
		}
		server.Close() // waits for the handler
		if n := s.Report().Events.Accepted; n != 1 {
			t.Errorf("before %t: %d events were processed", before, n)
		}
	}
}
