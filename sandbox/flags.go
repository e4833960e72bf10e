package sandbox

import (
	"fmt"
	"strconv"
)

// Flag is one option of a sandbox on a command line.
type Flag struct {
	Name, Usage string
	Bool        bool // takes no value
	Set         func(o *Options, value string) error
}

// Flags lists the options, in the order in which help should show them. Set is
// called only for those that were given.
func Flags() []Flag {
	text := func(field func(*Options) *string) func(*Options, string) error {
		return func(o *Options, v string) error { *field(o) = v; return nil }
	}
	number := func(field func(*Options) *int) func(*Options, string) error {
		return func(o *Options, v string) (err error) { *field(o), err = strconv.Atoi(v); return err }
	}
	word := func(field func(*Options) *string, words ...string) func(*Options, string) error {
		return func(o *Options, v string) error {
			for _, w := range words {
				if v == w {
					*field(o) = v
					return nil
				}
			}
			return fmt.Errorf("want one of %q, not %q", words, v)
		}
	}
	yes := func(field func(*Options) *bool) func(*Options, string) error {
		return func(o *Options, v string) (err error) {
			if *field(o) = true; v != "" {
				*field(o), err = strconv.ParseBool(v)
			}
			return err
		}
	}
	return []Flag{
		{Name: "site-id", Usage: "Site ID that is accepted", Set: text(func(o *Options) *string { return &o.SiteID })},
		{Name: "api-key", Usage: "Track API key that is accepted; without it any credentials are", Set: text(func(o *Options) *string { return &o.APIKey })},
		{Name: "region", Usage: "region of the workspace: us or eu", Set: word(func(o *Options) *string { return &o.Region }, "us", "eu")},
		{Name: "environment-id", Usage: "id of the workspace", Set: number(func(o *Options) *int { return &o.EnvironmentID })},
		{Name: "wrong-region", Usage: "be the host of the other region: redirect (301) or fail (401)", Set: word(func(o *Options) *string { return &o.WrongRegion }, "redirect", "fail")},
		{Name: "fault", Usage: "what goes wrong: " + FaultHelp, Set: func(o *Options, v string) error {
			f, err := ParseFaults(v)
			f.Outages = append(f.Outages, o.Faults.Outages...)
			o.Faults = f
			return err
		}},
		{Name: "outage", Usage: "outages since start, as 10s+5s,40s+5s:cut", Set: func(o *Options, v string) error {
			outages, err := ParseOutages(v)
			o.Faults.Outages = append(o.Faults.Outages, outages...)
			return err
		}},
		{Name: "seed", Usage: "seed of everything left to chance", Set: func(o *Options, v string) (err error) {
			o.Seed, err = strconv.ParseUint(v, 10, 64)
			return err
		}},
		{Name: "order-attribute", Usage: "event attribute that must rise for each person, e.g. seq", Set: text(func(o *Options) *string { return &o.OrderAttribute })},
		{Name: "order-first", Usage: "the first value of it that a person should have", Set: func(o *Options, v string) (err error) {
			o.OrderFirst, err = strconv.ParseInt(v, 10, 64)
			return err
		}},
		{Name: "check-overlap", Usage: "count requests about the same person at the same time", Bool: true, Set: yes(func(o *Options) *bool { return &o.CheckOverlap })},
		{Name: "max-kept-events", Usage: "events kept whole (default 1000000, -1 = none); the others are counted", Set: number(func(o *Options) *int { return &o.MaxKeptEvents })},
		{Name: "max-event-ids", Usage: "event ids remembered for dedupe (default all)", Set: number(func(o *Options) *int { return &o.MaxEventIDs })},
		{Name: "keep-empty", Usage: "store null and \"\" instead of clearing the attribute", Bool: true, Set: yes(func(o *Options) *bool { return &o.KeepEmpty })},
		{Name: "email-may-change", Usage: "allow changing the email of a person addressed by id", Bool: true, Set: yes(func(o *Options) *bool { return &o.EmailMayChange })},
	}
}
