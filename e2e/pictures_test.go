package e2e

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// The pictures of the README: a quarter of an hour of a small shop, with an outage of three
// minutes in it; and then somebody revokes the key. They are made by
//
//	AMPCIO_E2E_PICTURES=../docs/img ./run -run Pictures -timeout 30m
func TestPictures(t *testing.T) {
	folder := os.Getenv("AMPCIO_E2E_PICTURES")
	if folder == "" {
		t.Skip("AMPCIO_E2E_PICTURES names no folder")
	}
	const slow = "requests_per_second = 3\nbatch_operations = 30\n" // so that one can see it drain
	h := newHouse(t, houseSync{name: "production", fault: "latency=40ms,jitter=30ms", limits: slow}, houseSync{name: "staging", fault: "latency=40ms,jitter=30ms", events: "Order *"})
	begin := time.Now()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	outage := false
	traffic := func(until time.Duration) {
		for now := range tick.C {
			since := now.Sub(begin)
			if since >= until {
				return
			}
			if since > 5*time.Minute && !outage {
				outage = true
				h.fault("production", "outage=180s")
			}
			minutes := since.Minutes()
			n := 22 + 6*math.Sin(minutes*0.9) + 3*math.Sin(minutes*5.3) + rand.Float64()*5
			var events []event
			for range int(n) {
				events = append(events, shopEvent())
				if rand.IntN(12) == 0 {
					events = append(events, event{Type: "Debug Heartbeat", User: "user-00001"})
				}
			}
			h.send(events...)
		}
	}
	traffic(14*time.Minute + 20*time.Second)
	b := openTab(t, h.page)
	traffic(14*time.Minute + 45*time.Second)
	b.says("#headline", "All is well.")
	b.says("#rates-legend", "in ")
	save := func(name string, width, height int64, scheme string) {
		b.look(width, height, scheme)
		b.settled()
		b.do(chromedp.Sleep(time.Second))
		b.fine()
		png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
		if err == nil {
			err = os.WriteFile(filepath.Join(folder, name), png, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(png) > 150_000 {
			t.Errorf("%s has %d bytes", name, len(png))
		}
	}
	save("status.png", 1440, 1180, "light")

	address := strings.TrimPrefix(h.control["production"], "http://")
	h.sandbox["production"].end(t, os.Interrupt)
	h.sandbox["production"] = start(t, "sandbox", "--listen", address, "--site-id", "site", "--api-key", "another", "--region", "eu", "--environment-id", "131207")
	traffic(time.Since(begin) + 45*time.Second)
	b.says("#headline", "production is blocked.")
	save("status-blocked.png", 390, 844, "dark")
}
