package mapping

import (
	"bytes"
	"fmt"
	"slices"
)

// Why goes with a Decision: how Map, or NoIdentifier, has come to it, step by step. It is worked out by Explain alone, so
// that Map, which every record passes, need not keep account of its steps.
type Why struct {
	Identifier []byte // the value that the identifier path led to, as JSON; nil = absent
	// Rules are the select rules in order, up to the one that decided; none when none was asked (events_off, identify,
	// group_identify).
	Rules []RuleWhy
	// EventProperties are what could have been sent with the event, when a rule sends it.
	EventProperties []PropertyWhy
	// Attributes are what could have been sent of the user; none when that was not asked (users_off,
	// skip_user_properties_sync, no identifier, past_properties).
	Attributes []PropertyWhy
}

// RuleWhy is one select rule's part in a decision.
type RuleWhy struct {
	Event   bool // one of its names is the event's
	Where   []WhereWhy
	Decides bool // it is the first of which everything holds
	Drops   bool // its action
}

// WhereWhy is one line of a rule's where. It is worked out also where another line, or the event's name, has settled
// the matter.
type WhereWhy struct {
	Found   []byte // the value that the path led to, as JSON; nil = absent
	Matches bool
}

// PropertyWhy is one property, and whether it is sent.
type PropertyWhy struct {
	Of   string // event | user | field (a built-in)
	Name string
	As   string // the name it is sent by; "" when it is not chosen
	Why  string // see below
}

// Of a property that is not sent: not_chosen, excluded, reserved (a * does not choose it), null, and name_taken (another
// has that name). Of one that is sent with an event: sent. Of an attribute:
const (
	whySent      = "sent"
	whyNotChosen = "not_chosen"
	whyExcluded  = "excluded"
	whyReserved  = "reserved"
	whyNull      = "null"
	whyNameTaken = "name_taken"

	whyNew     = "new"     // this identifier has not been sent it before
	whyChanged = "changed" // it was sent another value
	whySame    = "same"    // it has this value already
	whyRefused = "refused" // Customer.io has refused this value: not sent again until it changes
	whyUnsure  = "unsure"  // it was in an identify that was refused for another's sake
	whyCleared = "cleared" // it was sent before, and is gone
	whyKept    = "kept"    // it was sent before, and is gone; on_unset = "keep"
	whyIsClear = "clear"   // it was cleared before

	// And for one of Customer.io's limits: attribute_name_too_long, attribute_value_too_long, too_many_attributes.
)

// Changes says whether an attribute alone makes Map send an identify.
func (p *PropertyWhy) Changes() bool {
	switch p.Why {
	case whyNew, whyChanged, whyUnsure, whyCleared:
		return true
	}
	return false
}

// Explain tells how the decision about a record comes about. earlier is as for Map. It agrees with Map, and with
// NoIdentifier where the record has no identifier.
func (r *Rules) Explain(record *Record, earlier []byte) (Why, error) {
	var v view
	if err := v.open(record); err != nil {
		return Why{}, fmt.Errorf("read the stored event: %w", err)
	}
	w := Why{Identifier: shown(v.at(r.identifier))}
	rule := r.explainRules(&v, &w)
	_, none := r.Identifier(record)
	if rule != nil && (none == "" || r.sendsAs(record, none)) {
		w.EventProperties = r.events.explain(&v, rule)
	}
	if none == "" && r.users.send && !v.skipSync && !record.Past {
		w.Attributes = r.users.explain(&v, earlier)
	}
	return w, nil
}

// shown is a value as JSON, nil when it is absent.
func shown(v value) []byte {
	if v.kind == absent {
		return nil
	}
	return v.appendJSON(nil)
}

func (r *Rules) explainRules(v *view, w *Why) *selectRule {
	if !r.events.send || string(v.event) == "$identify" || string(v.event) == "$groupidentify" {
		return nil
	}
	other := otherName(v.event)
	for i := range r.selects {
		rule := &r.selects[i]
		one := RuleWhy{
			Event: matchesAny(rule.events, v.event) || other != "" && matchesAny(rule.events, []byte(other)),
			Drops: rule.drop,
		}
		one.Decides = one.Event
		for j := range rule.where {
			c := &rule.where[j]
			line := WhereWhy{Found: shown(v.at(c.path)), Matches: c.matches(v)}
			one.Decides = one.Decides && line.Matches
			one.Where = append(one.Where, line)
		}
		w.Rules = append(w.Rules, one)
		switch {
		case one.Decides && one.Drops:
			return nil
		case one.Decides:
			return rule
		}
	}
	return nil
}

// why says why a property is not chosen; "" when it is.
func (c *chooser) why(name []byte) string {
	switch {
	case c.chooses(name):
		return ""
	case !c.mentions(name):
		return whyNotChosen
	case c.exclude[string(name)] || matchesAny(c.excluded, name):
		return whyExcluded
	}
	return whyReserved
}

func (e *eventRules) explain(v *view, rule *selectRule) (list []PropertyWhy) {
	taken := map[string]bool{}
	enter := func(of string, name, quoted []byte, why string) {
		p := PropertyWhy{Of: of, Name: string(name), Why: why}
		if why == "" {
			if p.As, p.Why = string(plainText(quoted)), whySent; taken[p.As] {
				p.Why = whyNameTaken
			}
			taken[p.As] = true
		}
		list = append(list, p)
	}
	if isObjectStart(v.field(fieldEventProperties)) {
		for w := walkObject(v.field(fieldEventProperties)); w.next(); {
			name := w.nameText()
			why := e.properties.why(name)
			if why != "" && rule.properties.chooses(name) {
				why = ""
			}
			enter("event", name, e.properties.newName(name, w.name), why)
		}
	}
	for _, f := range e.fields {
		if v.builtin(f.name).isSet() {
			enter("field", []byte(f.name), f.quoted, "")
		}
	}
	for w := walkObject(v.userProperties); !e.user.isEmpty() && w.next(); {
		name := w.nameText()
		why := e.user.why(name)
		if why == "" && isNull(w.value) {
			why = whyNull
		}
		enter("user", name, e.user.newName(name, w.name), why)
	}
	e.user.eachBuiltin(v, func(name, quoted, _ []byte) { enter("user", name, quoted, "") })
	return list
}

func (u *userRules) explain(v *view, earlier []byte) (list []PropertyWhy) {
	var before sent
	before.decode(earlier)
	beyond := u.beyond(v, earlier)
	there := map[string]bool{} // attributes
	enter := func(name, quoted, raw []byte, why string) {
		p := PropertyWhy{Of: "user", Name: string(name), Why: why}
		if p.Why == "" {
			attribute := plainText(quoted)
			p.As = string(attribute)
			was := before.find(attribute)
			switch same := was != nil && was.hash == hash(u.appendValue(nil, name, raw)); {
			case there[p.As]:
				p.Why = whyNameTaken
			case beyond[clipName(attribute)] != "":
				p.Why = beyond[clipName(attribute)]
			case was == nil:
				p.Why = whyNew
			case same && was.state == sentRefused:
				p.Why = whyRefused
			case same && was.state == sentUnsure:
				p.Why = whyUnsure
			case same && was.state == sentValue:
				p.Why = whySame
			default:
				p.Why = whyChanged
			}
			there[p.As] = true
		}
		list = append(list, p)
	}
	for w := walkObject(v.userProperties); w.next(); {
		name := w.nameText()
		why, quoted := u.chooser.why(name), u.chooser.newName(name, w.name)
		if why == "" && isNull(w.value) {
			why = whyNull
			if attribute := plainText(quoted); before.find(attribute) != nil {
				there[string(attribute)] = true
			}
		}
		enter(name, quoted, w.value, why)
	}
	u.chooser.eachBuiltin(v, func(name, quoted, raw []byte) { enter(name, quoted, raw, "") })
	clears := maxAttributes
	if device := u.newDevice(v.record, &before); device != "" {
		clears--
		p := PropertyWhy{Of: "field", Name: "device_id", As: kindAnonymous, Why: whyNew}
		if there[p.As] {
			p.Why = whyNameTaken
		}
		list = append(list, p)
	}
	if u.chooser.isEmpty() {
		return list
	}
	slices.SortStableFunc(before.attributes, func(a, b sentAttribute) int { return bytes.Compare(a.name, b.name) })
	for i := range before.attributes {
		was := &before.attributes[i]
		if there[string(was.name)] || was.isNote() || !u.chosenAs(was.name) || len(was.name) > maxAttributeName {
			continue
		}
		p := PropertyWhy{Of: "user", As: string(was.name), Why: whyCleared}
		switch {
		case was.state == sentCleared, was.hash == clearedHash && was.state != sentUnsure:
			p.Why = whyIsClear
		case u.keep:
			p.Why = whyKept
		default:
			if clears--; clears < 0 {
				p.Why = reasonTooMany // the next identify's
			}
		}
		list = append(list, p)
	}
	return list
}

// beyond are the attributes that an identify lacks for a limit, and which one. It asks what makes identifies, of a person
// as if nothing had been told of yet.
func (u *userRules) beyond(v *view, earlier []byte) map[string]string {
	s := scratches.Get().(*scratch)
	defer s.release()
	s.view = *v
	s.before.decode(earlier)
	for i := range s.before.attributes { // a value that was sent, or told of, is not told of again
		if a := &s.before.attributes[i]; a.state == sentValue || a.state == sentLeftOut {
			a.hash = ^a.hash
		}
	}
	values, clears, _, err := u.collect(s, maxAttributes, u.newDevice(v.record, &s.before))
	if err == nil && values+clears > maxAttributes && clears > 0 {
		s.after.reset()
		s.names.reset()
		s.leftOut = nil
		_, _, _, err = u.collect(s, max(0, maxAttributes-clears), u.newDevice(v.record, &s.before))
	}
	if err != nil {
		return nil
	}
	reasons := map[string]string{}
	for _, one := range s.leftOut {
		reasons[one.Name] = one.Reason
	}
	return reasons
}
