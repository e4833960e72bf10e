package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ampcio/mapping"
)

// A pair is a test of a mapping: NAME.in.json has events, NAME.out.json what becomes of
// them. The format is that of mapping/testdata, but that the configuration is the file's.

// pairInput is a NAME.in.json in its long form. Else it is what explain reads.
type pairInput struct {
	Story   string      `json:"story"`
	Project string      `json:"project"` // needed where there are several
	Events  []pairEvent `json:"events"`
}

type pairEvent struct {
	Note string `json:"note"`
	// Received is when it comes; else it is its client_upload_time, or its own time.
	Received *time.Time      `json:"received"`
	Event    json.RawMessage `json:"event"`
	Refused  *string         `json:"refused"` // Customer.io refuses this event's identify, naming this field
}

// pairOutcome is what became of one event, in NAME.out.json. What the file leaves out is
// not checked; of requests and user_properties_after it is all or nothing.
type pairOutcome struct {
	Event     string                  `json:"event"`
	Duplicate bool                    `json:"duplicate"` // an event with its insert_id came before: it is not stored again
	After     json.RawMessage         `json:"user_properties_after"`
	Syncs     map[string]*pairVerdict `json:"syncs"`
}

type pairVerdict struct {
	Verdict    string             `json:"verdict"` // sent | filtered | dead
	Reason     string             `json:"reason"`
	NoEvent    string             `json:"no_event_because"`
	NoIdentify string             `json:"no_identify_because"`
	Requests   *[]json.RawMessage `json:"requests"` // their bodies
}

// timeOfNoTime is when an event comes that says nothing about time.
var timeOfNoTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// expect checks, or writes, the pairs of a folder.
func expect(c *cli.Context, g *generation, syncs []string) error {
	dir := c.String("expect")
	names, err := filepath.Glob(filepath.Join(dir, "*.in.json"))
	if err != nil {
		return exit(exitUsage, fmt.Errorf("--expect %s: %w", dir, err))
	}
	if len(names) == 0 {
		if _, err := os.Stat(dir); err != nil {
			return exit(exitData, err)
		}
		return exit(exitData, fmt.Errorf("%s has no NAME.in.json: write an event into one, and add --update", dir))
	}
	out := c.App.Writer
	failed := 0
	for _, in := range names {
		name := strings.TrimSuffix(filepath.Base(in), ".in.json")
		difference, err := expectPair(c.Context, g, syncs, c.String("project"), in, c.Bool("update"))
		switch {
		case c.Context.Err() != nil:
			return exit(exitTemporary, errEndedByOperator)
		case err != nil:
			failed++
			fmt.Fprintf(out, "FAIL  %s\n      %v\n", name, err)
		case difference != "" && !c.Bool("update"):
			failed++
			fmt.Fprintf(out, "FAIL  %s\n%s", name, difference)
		case difference != "":
			fmt.Fprintf(out, "wrote %s\n", strings.TrimSuffix(in, ".in.json")+".out.json")
		default:
			fmt.Fprintf(out, "ok    %s\n", name)
		}
	}
	if failed > 0 {
		return exit(exitFailed, fmt.Errorf("%d of %s not as expected (- expected, + what comes out). If that is meant: add --update", failed, counted(uint64(len(names)), "pair is", "pairs are")))
	}
	return nil
}

// expectPair plays a pair and gives what differs from its outcome, "" when nothing does;
// with update that is written.
func expectPair(ctx context.Context, g *generation, syncs []string, project, in string, update bool) (difference string, err error) {
	text, err := os.ReadFile(in)
	if err != nil {
		return "", err
	}
	p, err := readPair(text)
	if err != nil {
		return "", err
	}
	if project != "" {
		p.Project = project
	}
	got, err := p.play(ctx, g, syncs)
	if err != nil {
		return "", err
	}
	path := strings.TrimSuffix(in, ".in.json") + ".out.json"
	stored, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !update:
		return "", fmt.Errorf("there is no %s yet: --update writes it; then read it", filepath.Base(path))
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	var want []pairOutcome
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(stored))
		d.DisallowUnknownFields()
		if err := d.Decode(&want); err != nil && !update {
			return "", fmt.Errorf("%s: %w", filepath.Base(path), err)
		}
	}
	whole := renderPair(got)
	if update {
		if bytes.Equal(stored, whole) {
			return "", nil
		}
		return "new", os.WriteFile(path, whole, 0o644)
	}
	for i := range want {
		for name := range want[i].Syncs {
			if _, there := g.cfg.Sync[name]; !there {
				return "", fmt.Errorf("%s: %w", filepath.Base(path), noSuchSync(name, g.cfg.Sync.Names()))
			}
		}
		want[i].keepOnly(syncs)
		if i < len(got) {
			got[i].leaveOut(&want[i])
		}
	}
	return differing(renderPair(want), renderPair(got)), nil
}

// keepOnly drops syncs that are not wanted this time.
func (o *pairOutcome) keepOnly(syncs []string) {
	for name := range o.Syncs {
		if !slices.Contains(syncs, name) {
			delete(o.Syncs, name)
		}
	}
}

// leaveOut drops what is not expected to be anything.
func (o *pairOutcome) leaveOut(want *pairOutcome) {
	if want.Event == "" {
		o.Event = ""
	}
	if !want.Duplicate && want.Syncs == nil {
		o.Duplicate = false
	}
	if want.After == nil {
		o.After = nil
	}
	for name, got := range o.Syncs {
		w := want.Syncs[name]
		if w == nil {
			delete(o.Syncs, name)
			continue
		}
		for _, f := range []struct{ want, got *string }{
			{&w.Verdict, &got.Verdict}, {&w.Reason, &got.Reason}, {&w.NoEvent, &got.NoEvent}, {&w.NoIdentify, &got.NoIdentify},
		} {
			if *f.want == "" && (w.Verdict == "" || w.Verdict == got.Verdict) { // else it is of interest why
				*f.got = ""
			}
		}
		if w.Requests == nil {
			got.Requests = nil
		}
	}
}

// readPair reads both forms.
func readPair(text []byte) (p pairInput, err error) {
	var shape struct {
		Events []struct {
			Event *json.RawMessage `json:"event"`
			Type  *json.RawMessage `json:"event_type"`
		} `json:"events"`
	}
	if json.Unmarshal(text, &shape) == nil && len(shape.Events) > 0 && shape.Events[0].Event != nil && shape.Events[0].Type == nil {
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&p); err != nil {
			return p, fmt.Errorf("it is no pair: %w", err)
		}
		return p, nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	for d.More() {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return p, fmt.Errorf("it is not valid JSON: %w", err)
		}
		p.Events = append(p.Events, pairEvent{Event: raw})
	}
	if len(p.Events) == 0 {
		return p, errors.New("it has no events")
	}
	return p, nil
}

// play lets the events come, one after the other, to an ampcio that knows nobody.
func (p *pairInput) play(ctx context.Context, g *generation, syncs []string) (outcomes []pairOutcome, err error) {
	m := newMemory()
	var received int64
	x := newExplainer(g, syncs, m)
	x.now = func() time.Time { return time.UnixMilli(received) }
	defer x.close()
	if p.Project != "" {
		if _, there := g.cfg.Project[p.Project]; !there {
			return nil, fmt.Errorf("there is no [project.%s]", p.Project)
		}
		x.syncs = slices.DeleteFunc(slices.Clone(syncs), func(s string) bool { return g.cfg.Sync[s].Project != p.Project })
	}
	for i, arrived := range p.Events {
		in, err := readInput1(arrived.Event, "")
		if err != nil {
			return nil, fmt.Errorf("event %d: it would be answered 400: %w", i, err)
		}
		received = receivedAt(&arrived, &in)
		err = x.input(ctx, in, received, func(e explanation) error {
			o := pairOutcome{Event: e.Event, Duplicate: e.Duplicate, After: e.After, Syncs: map[string]*pairVerdict{}}
			for _, y := range e.Syncs {
				bodies := []json.RawMessage{}
				for _, r := range y.Requests {
					bodies = append(bodies, r.Body)
				}
				o.Syncs[y.Sync] = &pairVerdict{y.Verdict, y.Reason, y.NoEvent, y.NoIdentify, &bodies}
				if arrived.Refused != nil {
					m.refuse(y.Sync, y.Identifier, *arrived.Refused)
				}
			}
			outcomes = append(outcomes, o)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", i, err)
		}
	}
	return outcomes, nil
}

// refuse lets Customer.io have refused the last identify of a person.
func (m *memory) refuse(sync string, id identifierWhy, field string) {
	who := identified{sync, mapping.Identifier{Kind: id.Kind, Value: id.As}.Key()}
	m.sent[who] = mapping.Refused(m.sent[who], field)
}

// receivedAt is when an event comes: the same at each run.
func receivedAt(e *pairEvent, in *input) int64 {
	switch {
	case e.Received != nil:
		return e.Received.UnixMilli()
	case in.Uploaded != 0:
		return in.Uploaded
	}
	for _, event := range in.Events {
		if event.Time != 0 {
			return event.Time
		}
	}
	return timeOfNoTime.UnixMilli()
}

// renderPair writes one member a line, and each operation on a line of its own, as it would
// be sent.
func renderPair(outcomes []pairOutcome) []byte {
	var b bytes.Buffer
	b.WriteString("[")
	for i := range outcomes {
		o := &outcomes[i]
		comma(&b, i)
		b.WriteString("\n  {")
		members := 0
		member(&b, "    ", "event", o.Event, o.Event != "", &members)
		member(&b, "    ", "duplicate", true, o.Duplicate, &members)
		member(&b, "    ", "user_properties_after", o.After, o.After != nil, &members)
		comma(&b, members)
		b.WriteString("\n    \"syncs\": {")
		for j, name := range sortedKeys(o.Syncs) {
			comma(&b, j)
			fmt.Fprintf(&b, "\n      %q: {", name)
			v, members := o.Syncs[name], 0
			member(&b, "        ", "verdict", v.Verdict, v.Verdict != "", &members)
			member(&b, "        ", "reason", v.Reason, v.Reason != "", &members)
			member(&b, "        ", "no_event_because", v.NoEvent, v.NoEvent != "", &members)
			member(&b, "        ", "no_identify_because", v.NoIdentify, v.NoIdentify != "", &members)
			if v.Requests != nil {
				comma(&b, members)
				b.WriteString("\n        \"requests\": [")
				for k, body := range *v.Requests {
					comma(&b, k)
					renderRequest(&b, body)
				}
				if len(*v.Requests) > 0 {
					b.WriteString("\n        ")
				}
				b.WriteString("]")
			}
			b.WriteString("\n      }")
		}
		if len(o.Syncs) > 0 {
			b.WriteString("\n    ")
		}
		b.WriteString("}\n  }")
	}
	b.WriteString("\n]\n")
	return b.Bytes()
}

func comma(b *bytes.Buffer, before int) {
	if before > 0 {
		b.WriteString(",")
	}
}

func member(b *bytes.Buffer, indent, name string, value any, there bool, members *int) {
	if !there {
		return
	}
	comma(b, *members)
	*members++
	fmt.Fprintf(b, "\n%s%q: %s", indent, name, compactJSON(value))
}

// compactJSON is a value as JSON in one line, digits and escapes as they are.
func compactJSON(value any) []byte {
	var b bytes.Buffer
	if err := tell(&b, value); err != nil {
		return []byte("null") // strings, and JSON that was read from JSON
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}

func renderRequest(b *bytes.Buffer, body json.RawMessage) {
	var request struct {
		Batch []json.RawMessage `json:"batch"`
	}
	if json.Unmarshal(body, &request) != nil || len(request.Batch) == 0 {
		fmt.Fprintf(b, "\n          %s", compactJSON(body))
		return
	}
	b.WriteString("\n          {\"batch\":[")
	for i, operation := range request.Batch {
		comma(b, i)
		fmt.Fprintf(b, "\n            %s", compactJSON(operation))
	}
	b.WriteString("\n          ]}")
}

// differing shows how b differs from a, by lines, with a little of what is around; "" when
// it does not.
func differing(a, b []byte) string {
	if bytes.Equal(a, b) {
		return ""
	}
	was, is := strings.Split(string(a), "\n"), strings.Split(string(b), "\n")
	type line struct{ sign, text string }
	var lines, end []line
	for len(was) > 0 && len(is) > 0 && was[0] == is[0] {
		lines = append(lines, line{" ", was[0]})
		was, is = was[1:], is[1:]
	}
	for len(was) > 0 && len(is) > 0 && was[len(was)-1] == is[len(is)-1] {
		end = append(end, line{" ", was[len(was)-1]})
		was, is = was[:len(was)-1], is[:len(is)-1]
	}
	slices.Reverse(end)
	if len(was)*len(is) > 4_000_000 { // the comparison below would take too much memory
		return fmt.Sprintf("      %d lines are expected where %d others come out\n", len(was), len(is))
	}
	// common[i][j] is the length of the longest common run of was[i:] and is[j:], gaps allowed.
	common := make([][]int, len(was)+1)
	for i := range common {
		common[i] = make([]int, len(is)+1)
	}
	for i := len(was) - 1; i >= 0; i-- {
		for j := len(is) - 1; j >= 0; j-- {
			if was[i] == is[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(was) || j < len(is) {
		switch {
		case i < len(was) && j < len(is) && was[i] == is[j]:
			lines = append(lines, line{" ", was[i]})
			i, j = i+1, j+1
		case j == len(is) || i < len(was) && common[i+1][j] >= common[i][j+1]:
			lines = append(lines, line{"-", was[i]})
			i++
		default:
			lines = append(lines, line{"+", is[j]})
			j++
		}
	}
	lines = append(lines, end...)
	const around = 2
	var out strings.Builder
	left := false
	for n, l := range lines {
		near := slices.ContainsFunc(lines[max(0, n-around):min(len(lines), n+around+1)], func(l line) bool { return l.sign != " " })
		switch {
		case near:
			fmt.Fprintf(&out, "      %s %s\n", l.sign, l.text)
			left = false
		case !left:
			out.WriteString("        …\n")
			left = true
		}
	}
	return out.String()
}
