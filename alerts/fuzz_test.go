package alerts

import "testing"

// FuzzAlertsFile reads the file of the alerts: what is damaged counts as none, and what counts can be worked with and
// written again.
func FuzzAlertsFile(f *testing.F) {
	s := state{Format: Format, Known: map[string]*known{key("sync_blocked", "demo"): {Kind: "sync_blocked", Of: "demo", Firing: true, Times: 2}}}
	f.Add(s.encode())
	f.Add([]byte(`{"format":1,"known":{"a":null}}`))
	f.Add([]byte(`{"format":1,"known":{},"outbox":[{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, problem := decode(b)
		if problem != "" && len(s.Known) > 0 {
			t.Fatalf("%q, and yet %+v", problem, s)
		}
		again, problem := decode(s.encode())
		if s.Format != 0 && (problem != "" || len(again.Known) > len(s.Known)) {
			t.Fatalf("%+v, again %+v: %s", s, again, problem)
		}
	})
}
