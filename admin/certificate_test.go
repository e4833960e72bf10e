package admin

import (
	"strings"
	"testing"
	"time"
)

// A certificate is worth a word when it ends soon, has ended, or when its files are wrong.
func TestCertificateIsTalkedOf(t *testing.T) {
	until := time.Date(2026, 12, 4, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name string
		c    *Certificate
		want []string // parts of one note each
	}{
		{"plain HTTP", nil, nil},
		{"far from its end", &Certificate{NotAfter: until, DaysLeft: 14}, nil},
		{"near its end", &Certificate{NotAfter: until, DaysLeft: 13}, []string{"expires on 2026-12-04, in 13 days: renew it"}},
		{"on its last day", &Certificate{NotAfter: until, DaysLeft: 0}, []string{"in 0 days"}},
		{"over", &Certificate{NotAfter: until, DaysLeft: -1}, []string{"HAS EXPIRED on 2026-12-04"}},
		{"not renewed well", &Certificate{NotAfter: until, DaysLeft: 20, Problem: "no pair"}, []string{"the old one stays in use (until 2026-12-04): no pair"}},
		{"not renewed well, near its end", &Certificate{NotAfter: until, DaysLeft: 2, Problem: "no pair"}, []string{"no pair", "in 2 days"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := Snapshot{Door: Door{Certificate: test.c}}
			s.Advise()
			if len(s.Notes) != len(test.want) {
				t.Fatalf("%q, want %q", s.Notes, test.want)
			}
			for i, want := range test.want {
				if !strings.Contains(s.Notes[i], want) {
					t.Errorf("%q, want %q", s.Notes[i], want)
				}
			}
		})
	}
}
