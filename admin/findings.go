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
	s.judgeHouse(t, func(h Health) { all = append(all, Finding{"", h}) })
	for i := range s.Syncs {
		y := &s.Syncs[i]
		y.judge(s, t, func(h Health) { all = append(all, Finding{y.Name, h}) })
	}
	return all
}
