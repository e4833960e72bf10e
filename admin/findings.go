package admin

// Finding is one of the things that are wrong at one moment. A Health is the worst of
// them; who tells of each, and of its end, needs all.
type Finding struct {
	Of string // the sync; "" = the house
	Health
}

// Findings are all that is wrong by t, those of the house first, in no other order.
func (s *Snapshot) Findings(t Thresholds) []Finding {
	all := []Finding{}
	add := func(of string, found []finding) {
		for _, f := range found {
			all = append(all, Finding{of, Health{f.level, f.word, f.why}})
		}
	}
	add("", s.houseFindings(t))
	for i := range s.Syncs {
		add(s.Syncs[i].Name, s.Syncs[i].findings(s, t))
	}
	return all
}
