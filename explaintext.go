package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/text"
)

// write prints an explanation for people: a word, and what belongs to it, a line each.
func (e *explanation) write(w io.Writer, color bool) {
	p := explainPrinter{w: w, color: color}
	if e.Forgotten {
		p.pair("", "stored as", "record %d, received %s (project %s)", e.Sequence, e.Received.Format(time.RFC3339), e.Project)
		p.notes(e.Notes)
		return
	}
	p.pair("", "event", "%s", p.paint(text.Bold, e.Event))
	switch e.From {
	case "log":
		p.pair("", "stored as", "record %d", e.Sequence)
	case "dead_letter":
		p.pair("", "stored as", "record %d, a dead letter", e.Sequence)
	}
	if e.StandIn {
		p.pair("", "id", "%s (a stand-in: without an insert_id it is made when the event is stored)", e.ULID)
	} else if e.ULID != "" {
		p.pair("", "id", "%s", e.ULID)
	}
	var who []string
	if e.UserID != "" {
		who = append(who, "user "+e.UserID)
	}
	if e.DeviceID != "" {
		who = append(who, "device "+e.DeviceID)
	}
	if len(who) == 0 {
		who = []string{"nobody"}
	}
	p.pair("", "of", "%s (project %s)", strings.Join(who, ", "), e.Project)
	if e.Lane != "" {
		p.pair("", "lane", "%s", e.Lane)
	}
	p.pair("", "received", "%s", e.Received.Format(time.RFC3339))
	if !e.Time.IsZero() {
		p.pair("", "happened", "%s", e.Time.Format(time.RFC3339))
	}
	before := string(e.Before)
	if e.Before == nil {
		before = "(not kept)"
	}
	p.pair("", "before", "%s", before)
	after := string(e.After)
	switch {
	case e.Partial:
		after += " (of a very large set: what rules name)"
	case e.Before != nil && bytes.Equal(e.Before, e.After):
		after = "the same"
	}
	p.pair("", "after", "%s", after)
	p.notes(e.Notes)
	for i := range e.Syncs {
		p.sync(&e.Syncs[i])
	}
}

type explainPrinter struct {
	w     io.Writer
	color bool
}

func (p *explainPrinter) paint(c text.Color, s string) string {
	if !p.color {
		return s
	}
	return c.EscapeSeq() + s + text.Reset.EscapeSeq()
}

func (p *explainPrinter) notes(notes []string) {
	for _, n := range notes {
		p.pair("", "note", "%s", p.paint(text.FgYellow, n))
	}
}

// pair writes a word, and behind it, always at the same place, what there is to say.
func (p *explainPrinter) pair(indent, word, format string, args ...any) {
	line := fmt.Sprintf("%s%-10s %s", indent, word, fmt.Sprintf(format, args...))
	fmt.Fprintln(p.w, strings.TrimRight(line, " "))
}

// words says what the reasons of mapping and delivery mean, in half a sentence.
var words = map[string]string{
	"events_off":                "events.send = false",
	"identify":                  "$identify is no event, only a user update",
	"group_identify":            "$groupidentify is no event",
	"not_selected":              "no select rule matches",
	"dropped_by_rule":           "the first rule that matches says drop",
	"users_off":                 "users.send = false",
	"unchanged":                 "nothing that is chosen has changed since it was last sent",
	"skip_user_properties_sync": "the event asks to leave the user alone",
	"past_properties":           "it says what was known when it happened; what is newer stands (an import, or a late event of the webhook)",
	"no_identifier":             "the identifier's value is absent",
	"identifier_not_text":       "the identifier's value is neither text nor a number",
	"identifier_too_long":       "the identifier's value has more than 150 bytes",
	"identifier_blank":          "the identifier's value is blank",
	"late":                      "it is older than delivery.late_after",
	"operation_too_large":       "it is larger than Customer.io takes",

	"sent":       "sent",
	"not_chosen": "not chosen",
	"excluded":   "not sent: exclude names it",
	"reserved":   "not sent: its name is reserved, and * does not choose it",
	"null":       "not sent: it is null",
	"name_taken": "not sent: another has this name",
	"new":        "new",
	"changed":    "changed",
	"same":       "the same as last sent",
	"refused":    "Customer.io has refused this value: not sent until it changes",
	"unsure":     "sent again: it was in an update that was refused",
	"cleared":    `gone: sent as ""`,
	"kept":       `gone, and kept: on_unset = "keep"`,
	"clear":      "gone, and cleared before",
}

func worded(reason string) string {
	if w := words[reason]; w != "" && w != reason {
		return reason + ": " + w
	}
	return reason
}

func (p *explainPrinter) sync(w *syncWhy) {
	verdict, c := w.Verdict, text.FgYellow
	switch w.Verdict {
	case "sent":
		c = text.FgGreen
	case "dead":
		c = text.FgRed
	}
	if w.Reason != "" {
		verdict += " (" + w.Reason + ")"
	}
	state := map[string]string{"disabled": "; the sync is disabled, so this is what would be", "dry_run": "; it is in a dry run, so this is what would be"}[w.State]
	fmt.Fprintf(p.w, "\nsync %s: %s%s\n", p.paint(text.Bold, w.Sync), p.paint(c, verdict), state)
	const in, deeper, deepest = "  ", "    ", "        "
	identifier := fmt.Sprintf("%s = %s", w.Identifier.Path, w.Identifier.Value)
	if w.Identifier.Kind != "" {
		identifier += fmt.Sprintf(" -> %s %q", w.Identifier.Kind, w.Identifier.As)
	} else if w.Identifier.Why != "" {
		identifier += " -> " + worded(w.Identifier.Why)
	}
	p.pair(in, "person", "%s", identifier)
	if len(w.Rules) > 0 {
		p.pair(in, "rules", "")
	}
	for _, r := range w.Rules {
		says := "its event is another"
		switch {
		case r.Decides:
			says = p.paint(text.FgGreen, "decides")
		case r.Named:
			says = "not all of where holds"
		}
		fmt.Fprintf(p.w, "%s%d. %s %s: %s\n", deeper, r.Rule, r.Action, quotedList(r.Event), says)
		for _, line := range r.Where {
			says, c := "yes", text.FgGreen
			if !line.Matches {
				says, c = "no", text.FgRed
			}
			value := ""
			if line.Value != nil {
				if v, err := json.Marshal(line.Value); err == nil {
					value = " " + string(v)
				}
			}
			is := "is absent"
			if string(line.Found) != "null" {
				is = "is " + string(line.Found)
			}
			fmt.Fprintf(p.w, "%s%-4s%s %s%s   (it %s)\n", deepest, p.paint(c, says)+strings.Repeat(" ", 3-len(says)), line.Path, line.Op, value, is)
		}
	}
	if w.NoEvent != "" {
		p.pair(in, "event", "not sent: %s", worded(w.NoEvent))
	} else if w.Verdict != "" {
		p.pair(in, "event", "sent")
	}
	p.properties(w.Properties, true)
	switch {
	case w.NoIdentify == "unchanged" && w.LastSent == "something":
		p.pair(in, "update", "identify not sent: nothing has changed since")
	case w.NoIdentify != "":
		p.pair(in, "update", "not sent: %s", worded(w.NoIdentify))
	case w.LastSent == "never":
		p.pair(in, "update", "identify sent, as if first seen: nothing is known to have been sent to this person")
	default:
		p.pair(in, "update", "identify sent: something has changed since")
	}
	p.properties(w.Attributes, false)
	for _, o := range w.Operations {
		line := fmt.Sprintf("%s, %s bytes", o.Action, humanize.Comma(int64(o.Bytes)))
		if o.Refused != "" {
			line += p.paint(text.FgRed, fmt.Sprintf(": refused without being sent, %s (%s)", o.Refused, o.Detail))
		}
		p.pair(in, "operation", "%s", line)
	}
	for _, r := range w.Requests {
		p.pair(in, "request", "%s %s, %s bytes", r.Method, r.URL, humanize.Comma(int64(r.Bytes)))
		fmt.Fprintf(p.w, "%s%s\n", deeper, r.Body)
	}
}

// properties writes a line for each. Of an event, what is not chosen of the user goes
// without saying.
func (p *explainPrinter) properties(list []propertyWhy, ofEvent bool) {
	if ofEvent {
		list = slices.DeleteFunc(slices.Clone(list), func(o propertyWhy) bool { return o.Of == "user" && o.Why == "not_chosen" })
	}
	width := 0
	names := make([]string, len(list))
	for i, o := range list {
		names[i] = o.Name
		if o.Name == "" {
			names[i] = o.As
		} else if o.As != "" && o.As != o.Name {
			names[i] += " -> " + o.As
		}
		switch {
		case o.Of == "field":
			names[i] += " (built-in)"
		case o.Of == "user" && ofEvent:
			names[i] += " (of the user)"
		}
		width = max(width, min(len(names[i]), 28))
	}
	for i, o := range list {
		says := o.Why
		if words[says] != "" {
			says = words[says]
		}
		fmt.Fprintf(p.w, "    %-*s  %s\n", width, names[i], says)
	}
}

func quotedList(names []string) string {
	var b strings.Builder
	for i, n := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", n)
	}
	return b.String()
}
