// Package mapping turns Amplitude's events into Customer.io's operations. It is pure: the same record, rules and memory
// of what was sent give the same operations, today and after a restart; it knows no clock, network, log or chance.
//
// One event passes through it twice. When it arrives, ParseEvent reads it and ApplyOperations works out the user's
// properties after it; that makes a Record, which is stored. When it is delivered, Rules.Identifier finds the person and
// Rules.Map decides what Customer.io is told. Rules are applied at delivery, so a corrected rule also serves what waits.
//
// Values keep their types and digits from end to end unless a rule says otherwise.
package mapping

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Spec is what one sync's configuration says about mapping; DESIGN.md explains the keys. Empty strings stand for the
// defaults: IdentifierKind "auto", PageViews "event", UserPropertyValues "json", OnUnset "clear", Action "send", Anonymous "filter", AnonymousAPI "v1".
type Spec struct {
	Identifier, IdentifierKind string
	Select                     []SelectSpec

	SendEvents                                                      bool
	EventProperties, EventUserProperties, EventFields, EventExclude []string
	EventRename                                                     map[string]string
	PageViews, UserPropertyValues                                   string

	SendUsers                   bool
	UserProperties, UserExclude []string
	UserRename, UserConvert     map[string]string
	OnUnset                     string

	Anonymous, AnonymousAPI string // "filter" and "v1"
}

// SelectSpec is one rule of the list of which the first that matches decides.
type SelectSpec struct {
	Event        []string
	Where        []WhereSpec
	Action, Name string
	Properties   []string
}

// SpecError is one mistake in a Spec. Path is the key as the configuration calls it, relative to the sync, lists counted
// from 0: "select[2].where[1].op".
type SpecError struct{ Path, Message string }

func (e *SpecError) Error() string { return e.Path + ": " + e.Message }

// Rules are a compiled Spec. They do not change and may be used by many goroutines at once.
type Rules struct {
	identifier     path
	identifierKind string
	selects        []selectRule
	events         eventRules
	users          userRules
	anonymous      string // filter, send or dead_letter
	anonymousByV2  bool
	types          *fewTexts // of events
}

type selectRule struct {
	events     []glob
	where      []condition
	drop       bool
	name       string
	properties chooser
}

// Compile checks a Spec. The error joins all mistakes, each a *SpecError, in the order of the keys.
func Compile(spec Spec) (*Rules, error) {
	c := compiler{}
	r := &Rules{types: new(fewTexts)}
	var message string
	if spec.Identifier == "" {
		c.fail("identifier", `is required: the path of the value by which Customer.io knows a person, such as "user_id" or "user.email"`)
	} else if r.identifier, message = parsePath(spec.Identifier); message != "" {
		c.fail("identifier", message)
	}
	r.identifierKind = c.oneOf("identifier_kind", spec.IdentifierKind, "auto", "email", "id", "cio_id")
	r.anonymous = c.oneOf("anonymous", spec.Anonymous, "filter", "send", "dead_letter")
	r.anonymousByV2 = c.oneOf("anonymous_api", spec.AnonymousAPI, "v1", "v2") == "v2"
	r.selects = c.selects(spec)

	c.names("events.properties", spec.EventProperties)
	c.names("events.user_properties", spec.EventUserProperties)
	c.names("events.exclude", spec.EventExclude)
	c.renames("events.rename", spec.EventRename, spec.EventProperties, spec.EventUserProperties)
	choose := func(names []string) chooser {
		return newChooser(names, spec.EventExclude, spec.EventRename, reservedInEvents)
	}
	r.events = eventRules{
		send:       spec.SendEvents,
		properties: choose(spec.EventProperties),
		user:       choose(spec.EventUserProperties),
		fields:     c.fields(spec),
		pageViews:  c.oneOf("events.page_views", spec.PageViews, "event", "page") == "page",
		asText:     c.oneOf("events.user_property_values", spec.UserPropertyValues, "json", "string") == "string",
	}
	for i := range r.selects {
		r.selects[i].properties = choose(spec.Select[i].Properties)
	}

	c.names("users.properties", spec.UserProperties)
	c.names("users.exclude", spec.UserExclude)
	c.renames("users.rename", spec.UserRename, spec.UserProperties)
	r.users = userRules{
		send:    spec.SendUsers,
		chooser: newChooser(spec.UserProperties, spec.UserExclude, spec.UserRename, reservedForPeople),
		sources: make(map[string][]string),
		toUnix:  c.converts(spec.UserConvert),
		asText:  r.events.asText,
		keep:    c.oneOf("users.on_unset", spec.OnUnset, "clear", "keep") == "keep",
		devices: r.anonymous == "send",
	}
	for from, to := range spec.UserRename {
		r.users.sources[to] = append(r.users.sources[to], bareName(from))
	}
	if len(c.mistakes) > 0 {
		return nil, errors.Join(c.mistakes...)
	}
	return r, nil
}

// compiler collects mistakes.
type compiler struct{ mistakes []error }

func (c *compiler) fail(path, message string) {
	c.mistakes = append(c.mistakes, &SpecError{path, message})
}

// oneOf checks a key that takes one of some words; the first is the default.
func (c *compiler) oneOf(path, got string, words ...string) string {
	if got == "" {
		return words[0]
	}
	if !slices.Contains(words, got) {
		if near := nearest(got, words); near != "" {
			c.fail(path, fmt.Sprintf("%q is not known: did you mean %q?", got, near))
		} else {
			c.fail(path, fmt.Sprintf("%q is not known: use one of %s", got, strings.Join(words, ", ")))
		}
	}
	return got
}

func (c *compiler) selects(spec Spec) []selectRule {
	if len(spec.Select) == 0 && spec.SendEvents {
		c.fail("select", `is required while events.send is on: say which events are sent; for all of them event = ["*"]`)
	}
	sends := false
	rules := make([]selectRule, len(spec.Select))
	for i, s := range spec.Select {
		path := fmt.Sprintf("select[%d]", i)
		rule := &rules[i]
		if len(s.Event) == 0 {
			c.fail(path+".event", `is required: names of events, * standing for any text; for all events ["*"]`)
		}
		for j, pattern := range s.Event {
			switch pattern {
			case "":
				c.fail(fmt.Sprintf("%s.event[%d]", path, j), "is empty")
			case "$identify", "$groupidentify":
				c.fail(fmt.Sprintf("%s.event[%d]", path, j), quote(pattern)+" is never an event: the user properties it changes are sent by what users.properties names")
			}
			rule.events = append(rule.events, newGlob(pattern))
		}
		for j, w := range s.Where {
			rule.where = append(rule.where, compileWhere(w, func(key, message string) {
				c.fail(fmt.Sprintf("%s.where[%d].%s", path, j, key), message)
			}))
		}
		rule.drop = c.oneOf(path+".action", s.Action, "send", "drop") == "drop"
		sends = sends || !rule.drop
		rule.name = s.Name
		if s.Name != "" && isBlank([]byte(s.Name)) {
			c.fail(path+".name", "is blank")
		}
		if len(s.Name) > maxEventName {
			c.fail(path+".name", fmt.Sprintf("has %d bytes; Customer.io takes names of up to %d", len(s.Name), maxEventName))
		}
		c.names(path+".properties", s.Properties)
	}
	if len(spec.Select) > 0 && !sends && spec.SendEvents {
		c.fail("select", `has no rule with action = "send", so no event would ever be sent; for all others add event = ["*"] as the last rule`)
	}
	return rules
}

// names checks a list of bare property names and globs.
func (c *compiler) names(path string, names []string) {
	for i, name := range names {
		c.bare(fmt.Sprintf("%s[%d]", path, i), name)
	}
}

// bare checks one name; it reports whether it may stand there.
func (c *compiler) bare(at, name string) bool {
	scope, rest, dotted := strings.Cut(name, ".")
	switch {
	case name == "":
		c.fail(at, "is empty")
	case dotted && rest != "" && (scope == "user" || scope == "event") && !isGlob(name) && bareName(name) == name:
		c.fail(at, fmt.Sprintf("%q is a path; bare property names belong here: did you mean %q? (A property that is really called so is %q here)",
			name, rest, scope+"."+name))
	default:
		return true
	}
	return false
}

// bareName is the property that a name in a list means: itself, but for user.user.x and the like, which are paths to one
// whose name looks like a path.
func bareName(name string) string {
	looksLikePath := func(s string) (rest string, ok bool) {
		if rest, ok = strings.CutPrefix(s, "user."); !ok {
			rest, ok = strings.CutPrefix(s, "event.")
		}
		return rest, ok && rest != ""
	}
	if rest, ok := looksLikePath(name); ok && !isGlob(name) {
		if _, ok := looksLikePath(rest); ok {
			return rest
		}
	}
	return name
}

// renames checks new names. chosen are the lists they apply to.
func (c *compiler) renames(path string, rename map[string]string, chosen ...[]string) {
	taken := make(map[string]string)
	for _, from := range slices.Sorted(maps.Keys(rename)) {
		to := rename[from]
		at := path + "." + from
		if !c.bare(at, from) {
			continue
		}
		_, movesOn := rename[to]
		switch {
		case isGlob(from):
			c.fail(at, "takes whole names: * has no meaning here")
		case to == "":
			c.fail(at, "needs a new name; to leave a property out use exclude")
		case len(to) > maxAttributeName:
			c.fail(at, fmt.Sprintf("the new name has %d bytes; Customer.io takes names of up to %d", len(to), maxAttributeName))
		case taken[to] != "":
			c.fail(at, fmt.Sprintf("%q already is the new name of %q", to, taken[to]))
		case to != from && !movesOn && slices.ContainsFunc(chosen, func(list []string) bool { return slices.Contains(list, to) }):
			c.fail(at, fmt.Sprintf("%q is itself chosen, so two properties would have one name", to))
		}
		taken[to] = from
	}
}

func (c *compiler) converts(convert map[string]string) map[string]bool {
	toUnix := make(map[string]bool)
	for _, name := range slices.Sorted(maps.Keys(convert)) {
		at := "users.convert." + name
		switch {
		case !c.bare(at, name):
		case isGlob(name):
			c.fail(at, "takes whole names: * has no meaning here")
		case convert[name] != "unix":
			c.fail(at, fmt.Sprintf(`%q is not a conversion: the one there is is "unix" (dates and milliseconds to unix seconds)`, convert[name]))
		}
		toUnix[bareName(name)] = true
	}
	return toUnix
}

func (c *compiler) fields(spec Spec) []field {
	var fields []field
	for i, name := range spec.EventFields {
		if !slices.Contains(builtins, name) {
			at := fmt.Sprintf("events.fields[%d]", i)
			if near := nearest(name, builtins); near != "" {
				c.fail(at, fmt.Sprintf("%q is not a built-in: did you mean %q?", name, near))
			} else {
				c.fail(at, fmt.Sprintf("%q is not a built-in: event properties go into events.properties; built-ins are %s", name, strings.Join(builtins, ", ")))
			}
			continue
		}
		sentAs := name
		if to := spec.EventRename[name]; to != "" {
			sentAs = to
		}
		if slices.Contains(spec.EventExclude, name) {
			continue
		}
		fields = append(fields, field{name, appendQuoted(nil, sentAs)})
	}
	return fields
}
