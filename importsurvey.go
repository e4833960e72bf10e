package main

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"slices"
	"time"

	"ampcio/archive"
	"ampcio/config"
	"ampcio/delivery"
)

// importSurvey is what is in archives, found before anything is taken.
type importSurvey struct {
	Lines      uint64            `json:"lines"`
	Events     uint64            `json:"events"`
	Users      uint64            `json:"users"` // about, above some 100,000
	From       *time.Time        `json:"from,omitempty"`
	To         *time.Time        `json:"to,omitempty"`
	NoInsertID uint64            `json:"without_insert_id"` // known by uuid, or by the place in the archive
	NoSnapshot uint64            `json:"without_user_properties"`
	Days       map[string]uint64 `json:"days"` // UTC
	Types      map[string]uint64 `json:"event_types"`
	Bad        uint64            `json:"bad_lines"`
	BadReasons map[string]uint64 `json:"bad_reasons"`
	Late       []lateEvents      `json:"late"`

	parts []surveyedPart
	ages  map[time.Duration]uint64 // late_after → events that are older
	users *distinct
}

type surveyedPart struct {
	part   *archive.Part
	digest [16]byte
	lines  uint64
}

// lateEvents are events that are too old for a sync to start campaigns with.
type lateEvents struct {
	Sync   string          `json:"sync"`
	After  config.Duration `json:"late_after"`
	Policy string          `json:"late_policy"`
	Events uint64          `json:"events"`
	DryRun bool            `json:"dry_run,omitempty"` // of the sync: it sends none of them, young or old
}

// mostTypes bounds how many names are counted apart: Amplitude has 2,000 in a project.
const mostTypes = 5000

// lookThrough looks through archives. bad is told of each line that cannot be taken.
func lookThrough(set *archive.Set, lateAfters []time.Duration, now time.Time, step func(lines uint64) error, bad func(at, why string)) (*importSurvey, error) {
	v := &importSurvey{Days: map[string]uint64{}, Types: map[string]uint64{}, BadReasons: map[string]uint64{}, Late: []lateEvents{},
		ages: map[time.Duration]uint64{}, users: newDistinct()}
	oldest, newest := int64(0), int64(0)
	for _, p := range set.Parts() {
		digest, lines, err := p.Look(func(l *archive.Line) error {
			v.Lines++
			ev, why := importedEvent(l.Text)
			if why != "" {
				v.Bad++
				if len(v.BadReasons) < mostTypes || v.BadReasons[why] > 0 {
					v.BadReasons[why]++
				}
				bad(l.At(), why)
				return step(1)
			}
			v.Events++
			if ev.UserID != "" {
				v.users.add("u" + ev.UserID)
			} else {
				v.users.add("d" + ev.DeviceID)
			}
			if oldest == 0 || ev.Time < oldest {
				oldest = ev.Time
			}
			newest = max(newest, ev.Time)
			at := time.UnixMilli(ev.Time).UTC()
			v.Days[at.Format(time.DateOnly)]++
			if len(v.Types) < mostTypes || v.Types[ev.Type] > 0 {
				v.Types[ev.Type]++
			}
			if ev.InsertID == "" {
				v.NoInsertID++
			}
			if !ev.Snapshot {
				v.NoSnapshot++
			}
			for _, after := range lateAfters {
				if now.Sub(at) > after {
					v.ages[after]++
				}
			}
			return step(1)
		})
		if err != nil {
			return nil, err
		}
		v.parts = append(v.parts, surveyedPart{p, digest, lines})
	}
	if v.Events > 0 {
		from, to := time.UnixMilli(oldest).UTC(), time.UnixMilli(newest).UTC()
		v.From, v.To = &from, &to
	}
	v.Users = v.users.count()
	return v, nil
}

// lateAfters are the ages from which on the project's syncs call an event late, and the one
// from which on Customer.io starts no campaigns.
func lateAfters(cfg *config.Config, project string) []time.Duration {
	ages := []time.Duration{campaigns}
	for _, name := range cfg.Sync.Names() {
		if s := cfg.Sync[name]; s.Project == project && s.Enabled {
			ages = append(ages, time.Duration(s.Delivery.LateAfter))
		}
	}
	slices.Sort(ages)
	return slices.Compact(ages)
}

// campaigns is how old an event may be to start campaigns in Customer.io.
const campaigns = 72 * time.Hour

// judgeLate notes what each sync would do with the events that are too old for it.
func (v *importSurvey) judgeLate(cfg *config.Config, project string) {
	for _, name := range cfg.Sync.Names() {
		s := cfg.Sync[name]
		if s.Project != project || !s.Enabled {
			continue
		}
		v.Late = append(v.Late, lateEvents{name, s.Delivery.LateAfter, s.Delivery.LatePolicy, v.ages[time.Duration(s.Delivery.LateAfter)], s.DryRun})
	}
}

// print tells what is there, and what would be done with it.
func (v *importSurvey) print(w io.Writer, project string, state bool) {
	fmt.Fprintf(w, "%s in %s: %s of about %s", counted(v.Lines, "line", "lines"), counted(uint64(len(v.parts)), "part", "parts"), events(v.Events), counted(v.Users, "user", "users"))
	if v.From != nil {
		fmt.Fprintf(w, ", from %s to %s", v.From.Format("2006-01-02 15:04"), v.To.Format("2006-01-02 15:04 UTC"))
	}
	fmt.Fprintln(w)
	printCounts(w, "by day", byTime(v.Days))
	printCounts(w, "by event", byCount(v.Types, 20))
	if v.NoInsertID > 0 {
		fmt.Fprintf(w, "without $insert_id and uuid: %s; their place in the archive identifies them\n", many(v.NoInsertID))
	}
	if state {
		if v.NoSnapshot > 0 {
			fmt.Fprintf(w, "without user_properties: %s; these only say whose a device is\n", many(v.NoSnapshot))
		}
		fmt.Fprintf(w, "project %s would know the properties of these users and whose their devices are; nothing is delivered\n", project)
	} else {
		young := v.Events - v.ages[campaigns]
		fmt.Fprintf(w, "less than 72 h old, so that they may start campaigns: %s\n", many(young))
		none := true
		for _, l := range v.Late {
			if l.DryRun {
				fmt.Fprintf(w, "sync %s is in a dry run: it sends none of these, and does not when that has ended either\n", l.Sync)
				continue
			}
			none = false
			what := map[string]string{
				delivery.LateDeliver:    "and are delivered all the same (late_policy = \"deliver\")",
				delivery.LateFilter:     "and are filtered (late_policy = \"filter\")",
				delivery.LateDeadLetter: "and become dead letters (late_policy = \"dead_letter\")",
			}[l.Policy]
			fmt.Fprintf(w, "sync %s: of what its rules select, %s are older than late_after = %q %s\n", l.Sync, many(l.Events), l.After, what)
		}
		if none {
			fmt.Fprintf(w, "no enabled sync takes the events of project %s: they would go nowhere\n", project)
		}
	}
	if v.Bad > 0 {
		fmt.Fprintf(w, "%s cannot be taken and are left out:\n", counted(v.Bad, "line", "lines"))
		for _, r := range byCount(v.BadReasons, 10) {
			fmt.Fprintf(w, "  %s: %s\n", clipText(r.name, 100), many(r.n))
		}
	}
}

type count struct {
	name string
	n    uint64
}

// byTime sums days up to months when there are many.
func byTime(days map[string]uint64) (rows []count) {
	if len(days) > 31 {
		months := map[string]uint64{}
		for day, n := range days {
			months[day[:min(7, len(day))]] += n
		}
		days = months
	}
	for _, name := range slices.Sorted(maps.Keys(days)) {
		rows = append(rows, count{name, days[name]})
	}
	return rows
}

// byCount gives the most frequent ones, and the rest as one.
func byCount(counts map[string]uint64, most int) (rows []count) {
	for name, n := range counts {
		rows = append(rows, count{name, n})
	}
	slices.SortFunc(rows, func(a, b count) int { return cmp.Or(cmp.Compare(b.n, a.n), cmp.Compare(a.name, b.name)) })
	if len(rows) <= most {
		return rows
	}
	rest := uint64(0)
	for _, r := range rows[most:] {
		rest += r.n
	}
	return append(rows[:most:most], count{fmt.Sprintf("and %d more", len(rows)-most), rest})
}

func printCounts(w io.Writer, title string, rows []count) {
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(w, "%s:\n", title)
	for _, r := range rows {
		fmt.Fprintf(w, "  %-40s %12s\n", clipText(r.name, 40), many(r.n))
	}
}

// distinct counts different texts in little memory: exactly up to some 100,000, then by a sample of their hashes.
type distinct struct {
	seed  maphash.Seed
	mask  uint64 // only hashes without these bits are kept: half of them for each
	kept  map[uint64]struct{}
	shift int
}

const mostKept = 200_000

func newDistinct() *distinct {
	return &distinct{seed: maphash.MakeSeed(), kept: map[uint64]struct{}{}}
}

func (d *distinct) add(text string) {
	h := maphash.String(d.seed, text)
	if h&d.mask != 0 {
		return
	}
	d.kept[h] = struct{}{}
	for len(d.kept) > mostKept {
		d.mask = d.mask<<1 | 1
		d.shift++
		maps.DeleteFunc(d.kept, func(h uint64, _ struct{}) bool { return h&d.mask != 0 })
	}
}

func (d *distinct) count() uint64 { return uint64(len(d.kept)) << d.shift }
