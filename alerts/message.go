package alerts

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"ampcio/logbook"
)

// What a message tells.
const (
	Began = "firing"
	Worse = "worse"
	Still = "still"
	Over  = "over"
	Test  = "test"
)

// Message is one thing to be told, decided and not yet posted.
type Message struct {
	ID       string    `json:"id"` // a ULID; a repeat of the same message carries the same
	At       time.Time `json:"at"` // when it was decided
	Event    string    `json:"event"`
	Kind     string    `json:"kind"`
	Level    string    `json:"level"` // the worst of its troubles
	Troubles []Told    `json:"troubles"`
	Firing   []Ref     `json:"firing"` // what was firing behind it, the worst first, mostRefs at most
	Earlier  *Earlier  `json:"earlier"`
}

// Told is a trouble in a message.
type Told struct {
	Of      string           `json:"of"`
	Level   string           `json:"level"`
	Since   time.Time        `json:"since"`
	Until   *time.Time       `json:"until"` // null while it lasts
	What    string           `json:"what"`
	Do      string           `json:"do"`
	Numbers map[string]int64 `json:"numbers"`
}

// Ref names a trouble.
type Ref struct {
	Kind  string `json:"kind"`
	Of    string `json:"of"`
	Level string `json:"level"`
}

const mostRefs = 30

// Earlier stands for messages that were not posted, since too many waited or the other
// side did not take them.
type Earlier struct {
	Count int       `json:"count"`
	From  time.Time `json:"from"`
	To    time.Time `json:"to"`
}

const diskFull = "the disk is full, and new events are refused"

// titles of what is wrong, and of its end, by kind. The words of a kind that is not here
// are its own.
var titles = map[string][2]string{
	"blocked":      {"delivery is blocked", "delivery is no longer blocked"},
	"age":          {"events wait too long", "events no longer wait too long"},
	"late":         {"events are about to be late", "events are no longer about to be late"},
	"disk":         {"the disk is filling", "the disk has room again"},
	"damaged":      {"a part of the log is damaged", "nothing of the log is damaged any more"},
	"discarding":   {"the oldest events are discarded", "no more events are discarded"},
	"dead_letters": {"events are refused for good", "no more events are refused for good"},
	"no_traffic":   {"no requests come in", "requests come in again"},
	"books":        {"the books do not balance", "the books balance again"},
	"checkpoint":   {"no checkpoint can be written", "checkpoints are written again"},
	"stuck":        {"ampcio is stuck", "ampcio is no longer stuck"},
	"certificate":  {"the certificate needs you", "the certificate is good again"},
	"test":         {"this is a test", "this is a test"},
}

// Title is what is wrong, or is no longer, in some words that are always the same.
func (m *Message) Title() string {
	t, known := titles[m.Kind]
	if !known {
		t = [2]string{m.Kind, m.Kind + ": over"}
	}
	title := t[0]
	if m.Event == Over {
		title = t[1]
	}
	if m.Kind == "disk" && m.Event != Over && m.Level == Critical {
		title = diskFull
	}
	return title
}

// names are whom it is about, "production, staging and 8 more"; "" = the whole house.
func (m *Message) names() string {
	var names []string
	for _, t := range m.Troubles {
		if t.Of != "" {
			names = append(names, t.Of)
		}
	}
	const most = 5
	if len(names) > most+1 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// summary is the message in one line.
func (m *Message) summary(instance string) string {
	tag := map[string]string{Began: strings.ToUpper(m.Level), Worse: strings.ToUpper(m.Level) + ", worse than before",
		Still: "STILL " + strings.ToUpper(m.Level), Over: "OVER", Test: "TEST"}[m.Event]
	line := fmt.Sprintf("[%s] ampcio on %s: %s", tag, instance, m.Title())
	if names := m.names(); names != "" {
		line += ": " + names
	}
	return line
}

// mostLines is how many troubles a text tells one by one.
const mostLines = 10

// text is the message as a person reads it, at the time when it is posted.
func (m *Message) text(instance string, now time.Time) string {
	var b strings.Builder
	fmt.Fprintln(&b, m.summary(instance))
	if e := m.Earlier; e != nil {
		messages := "earlier messages"
		if e.Count == 1 {
			messages = "earlier message"
		}
		fmt.Fprintf(&b, "%d %s could not be posted (%s to %s)\n", e.Count, messages, clock(e.From, now), clock(e.To, now))
	}
	var do []string
	for i, t := range m.Troubles {
		if t.Do != "" && !slices.Contains(do, t.Do) {
			do = append(do, t.Do)
		}
		if i >= mostLines {
			continue
		}
		of := ""
		if t.Of != "" && len(m.Troubles) > 1 {
			of = t.Of + ": "
		}
		switch {
		case m.Event == Test:
			fmt.Fprintln(&b, t.What)
		case t.Until != nil:
			fmt.Fprintf(&b, "- %sit lasted %s, from %s to %s. It was: %s\n", of, logbook.Short(t.Until.Sub(t.Since)), clock(t.Since, now), clock(*t.Until, now), t.What)
		default:
			fmt.Fprintf(&b, "- %s%s (since %s, for %s)\n", of, t.What, clock(t.Since, now), logbook.Short(m.At.Sub(t.Since)))
		}
	}
	if more := len(m.Troubles) - mostLines; more > 0 {
		fmt.Fprintf(&b, "- and %d more\n", more)
	}
	for _, d := range do[:min(len(do), mostLines)] {
		fmt.Fprintf(&b, "to do: %s\n", d)
	}
	if late := now.Sub(m.At); late > 2*time.Minute {
		fmt.Fprintf(&b, "(told %s late: it could not be posted before)\n", logbook.Short(late))
	}
	if m.Event == Over || m.Earlier != nil {
		var others []string
		for _, f := range m.Firing {
			what := f.Kind
			if f.Of != "" {
				what += " " + f.Of
			}
			others = append(others, what)
		}
		if len(others) > mostLines {
			others = append(others[:mostLines], fmt.Sprintf("and %d more", len(others)-mostLines))
		}
		if len(others) > 0 {
			fmt.Fprintf(&b, "still wrong: %s\n", strings.Join(others, ", "))
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// clock is a time as people read it: with its date when that is not today's.
func clock(t, now time.Time) string {
	t, now = t.UTC(), now.UTC()
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format("15:04 UTC")
	}
	return t.Format("2006-01-02 15:04 UTC")
}

// payload is what is posted as JSON, whoever takes it. Members may be added.
type payload struct {
	Schema   int    `json:"schema"`
	Instance string `json:"instance"`
	Version  string `json:"version"`
	Summary  string `json:"summary"`
	Text     string `json:"text"` // as a person reads it; what chat servers show
	Message
}

// Formats of what is posted.
const (
	Auto  = "auto"
	JSON  = "json"
	Slack = "slack"
)

// formatOf is the format of an address: Slack's own where it is theirs.
func formatOf(format, address string) string {
	if format != Auto && format != "" {
		return format
	}
	if u, err := url.Parse(address); err == nil && (u.Hostname() == "hooks.slack.com" || u.Hostname() == "hooks.slack-gov.com") {
		return Slack
	}
	return JSON
}

// slackEscape is all that Slack asks for; so nothing in a text can call a channel or
// hide an address behind words.
var slackEscape = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// body is what is posted.
func (m *Message) body(o *Options, now time.Time) []byte {
	text := m.text(o.Instance, now)
	var v any = payload{Schema: 1, Instance: o.Instance, Version: o.Version, Summary: m.summary(o.Instance), Text: text, Message: *m}
	if formatOf(o.Format, o.URL) == Slack {
		v = struct {
			Text string `json:"text"`
		}{slackEscape.Replace(text)}
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // there is nothing in it that JSON does not know
	}
	return b
}

// Line is the message in one line, for whoever knows which installation is meant.
func (m *Message) Line() string {
	line := m.Event + " " + m.Level + ": " + m.Title()
	if names := m.names(); names != "" {
		line += ": " + names
	}
	return line
}
