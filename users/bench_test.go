package users

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"ampcio/mapping"
	"ampcio/queue"
)

// timed resolves arrivals in the committer and measures nothing but that.
type timed struct {
	b        *testing.B
	arrivals []*batch
}

func (t timed) Size() int { return 1 }

func (t timed) Resolve(w *queue.Writer) error {
	t.b.StartTimer()
	defer t.b.StopTimer()
	for _, a := range t.arrivals {
		if err := a.Resolve(w); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkResolve: events of 700 bytes, 100 a request, of 10,000 users with one device each.
func BenchmarkResolve(b *testing.B) {
	padding := strings.Repeat("x", 400)
	for _, c := range []struct {
		name, properties string
		insertIDs        bool
		users            int
	}{
		{"no operations", "", true, 10_000},
		{"no operations, no insert_id", "", false, 10_000},
		{"one user", "", true, 1},
		{"set", `{"$set":{"plan":"pro","seats":%d}}`, true, 10_000},
		{"add", `{"$add":{"logins":1}}`, true, 10_000},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.StopTimer()
			w := start(b, b.TempDir(), Options{})
			w.run()
			defer w.stop()
			b.ReportAllocs()
			n := 0
			event := func() mapping.Event {
				n++
				u := n % c.users
				ev := mapping.Event{Type: "Page Viewed", UserID: fmt.Sprintf("user-%08d@example.com", u), DeviceID: fmt.Sprintf("6f1c7c1e-95a3-4c5e-8e0f-%012d", u)}
				if c.insertIDs {
					ev.InsertID = fmt.Sprintf("0b6a7e2c-1d1a-4a1e-9a55-%012d", n)
				}
				raw := fmt.Sprintf(`{"event_type":"Page Viewed","user_id":%q,"device_id":%q,"insert_id":%q,"event_properties":{"p":%q}`, ev.UserID, ev.DeviceID, ev.InsertID, padding)
				if p := c.properties; p != "" {
					if strings.Contains(p, "%d") {
						p = fmt.Sprintf(p, n)
					}
					ev.UserProperties = []byte(p)
					raw += `,"user_properties":` + p
				}
				ev.Raw = []byte(raw + "}")
				return ev
			}
			batches := func(events int) (all []*batch) {
				for events > 0 {
					a := mapping.Arrival{Project: "app", Received: w.clock.now().UnixMilli(), Address: "192.0.2.1"}
					for range min(100, events) {
						a.Events = append(a.Events, event())
					}
					events -= len(a.Events)
					all = append(all, newBatch(w.store, a))
				}
				return all
			}
			warm := timed{b: b, arrivals: batches(2 * c.users)}
			if err := w.log.Append(context.Background(), warm); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			for done := 0; done < b.N; done += 10_000 {
				if err := w.log.Append(context.Background(), timed{b, batches(min(10_000, b.N-done))}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
