package mapping

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// WhereSpec is one condition of a select rule. Value: nil, string, bool, int64, float64, or []any of those; a list means
// any of, and none of for the negative operators.
type WhereSpec struct {
	Path, Op string
	Value    any
}

// Amplitude's words. What each says of which kind of value is tabulated in testdata/where-operators.md; in short:
//
//   - null is absent; the negative operators are the plain negation of their positive ones, so they match what is absent;
//   - types are not mixed: "5" is not 5, "true" is not true;
//   - of a list, is, contains, glob match and regex match look at each element, and one is enough;
//   - <, <=, >, >= match single numbers only; numbers compare exactly;
//   - contains ignores case, everything else minds it; glob match must fit the whole text, regex match any part of it.
var operators = []string{
	"is", "is not", "contains", "does not contain", "<", "<=", ">", ">=", "glob match", "regex match", "is set", "is not set",
}

type condition struct {
	path    path
	op      string // the positive one
	negated bool
	want    []operand // any of
}

// operand is one value of a condition in the form its operator compares.
type operand struct {
	kind    valueKind
	text    string // lower case for contains
	number  decimal
	boolean byte // 't' or 'f'
	glob    glob
	regex   *regexp.Regexp
}

// compileWhere reports each mistake with the key it stands at: "path", "op" or "value".
func compileWhere(spec WhereSpec, report func(key, message string)) condition {
	c := condition{op: spec.Op}
	var message string
	if c.path, message = parsePath(spec.Path); message != "" {
		report("path", message)
	}
	switch spec.Op {
	case "is not":
		c.op, c.negated = "is", true
	case "does not contain":
		c.op, c.negated = "contains", true
	case "is not set":
		c.op, c.negated = "is set", true
	}
	if !slices.Contains(operators, spec.Op) {
		report("op", unknownOperator(spec.Op))
		return c
	}
	if c.op == "is set" {
		if spec.Value != nil {
			report("value", quote(spec.Op)+" takes no value: leave it out")
		}
		return c
	}
	values, isList := spec.Value.([]any)
	if !isList {
		values = []any{spec.Value}
	}
	if spec.Value == nil || len(values) == 0 {
		report("value", quote(spec.Op)+" needs a value, or a list of values that has at least one")
		return c
	}
	for _, v := range values {
		o, message := newOperand(c.op, spec.Op, v)
		if message != "" {
			report("value", message)
			continue
		}
		c.want = append(c.want, o)
	}
	return c
}

func unknownOperator(op string) string {
	meant := map[string]string{
		"=": "is", "==": "is", "equals": "is", "eq": "is", "in": "is", "!=": "is not", "<>": "is not", "not in": "is not",
		"isn't": "is not", "=<": "<=", "=>": ">=", "exists": "is set", "set": "is set", "not set": "is not set",
		"matches": "regex match", "regex": "regex match", "=~": "regex match", "glob": "glob match", "like": "glob match",
		"not contains": "does not contain", "doesn't contain": "does not contain",
	}
	near := meant[strings.ToLower(op)]
	if near == "" {
		near = nearest(strings.ReplaceAll(op, "_", " "), operators)
	}
	if near != "" {
		return fmt.Sprintf("%q is not an operator: did you mean %q?", op, near)
	}
	return fmt.Sprintf("%q is not an operator: use one of %s", op, strings.Join(operators, ", "))
}

func newOperand(op, as string, v any) (operand, string) {
	var o operand
	switch v := v.(type) {
	case string:
		o = operand{kind: text, text: v}
	case bool:
		o = operand{kind: boolean, boolean: strconv.FormatBool(v)[0]}
	case int64:
		o.kind = number
		o.number, _ = parseDecimal(strconv.AppendInt(nil, v, 10), nil)
	case float64:
		var ok bool
		o.kind = number
		if o.number, ok = parseDecimal(strconv.AppendFloat(nil, v, 'g', -1, 64), nil); !ok {
			return o, "must be a finite number"
		}
	default:
		return o, "must be a text, a number, true or false, or a list of these"
	}
	switch op {
	case "is":
		return o, ""
	case "<", "<=", ">", ">=":
		if o.kind != number {
			return o, quote(as) + " compares numbers: write the value without quotes"
		}
		return o, ""
	}
	if o.kind != text {
		return o, quote(as) + " looks into texts: put the value in quotes"
	}
	switch op {
	case "contains":
		o.text = strings.ToLower(o.text)
	case "glob match":
		o.glob = newGlob(o.text)
	case "regex match":
		var err error
		if o.regex, err = regexp.Compile(o.text); err != nil {
			return o, fmt.Sprintf("is not a regular expression (Go's RE2 syntax): %v", err)
		}
	}
	return o, ""
}

// matches decides the condition for one record.
func (c *condition) matches(v *view) bool {
	got := v.at(c.path)
	found := c.matchesValue(got)
	if !found && c.path.kind == pathBuiltin && string(c.path.name) == "event_type" {
		if other := otherName(got.text); other != "" {
			found = c.matchesValue(textValue(other))
		}
	}
	return found != c.negated
}

// matchesValue answers for the positive operator.
func (c *condition) matchesValue(got value) bool {
	switch {
	case c.op == "is set":
		return got.isSet()
	case got.kind == list && c.op[0] != '<' && c.op[0] != '>':
		for w := walkList(got.raw); w.next(); {
			if element := valueOf(w.value); element.kind != list && c.matchesSingle(element) {
				return true
			}
		}
		return false
	}
	return c.matchesSingle(got)
}

func (c *condition) matchesSingle(got value) bool {
	switch got.kind {
	case text:
		folded := got.text
		if c.op == "contains" {
			folded = bytes.ToLower(folded)
		}
		for i := range c.want {
			if c.want[i].kind == text && c.want[i].matchesText(c.op, folded) {
				return true
			}
		}
	case boolean:
		for i := range c.want {
			if c.op == "is" && c.want[i].kind == boolean && c.want[i].boolean == got.raw[0] {
				return true
			}
		}
	case number:
		var buf [40]byte
		n, ok := parseDecimal(got.raw, buf[:])
		for i := range c.want {
			if ok && c.want[i].kind == number && c.want[i].matchesNumber(c.op, n) {
				return true
			}
		}
	}
	return false
}

func (o *operand) matchesText(op string, got []byte) bool {
	switch op {
	case "is":
		return string(got) == o.text
	case "contains":
		return bytes.Contains(got, []byte(o.text))
	case "glob match":
		return o.glob.matches(got)
	case "regex match":
		return o.regex.Match(got)
	}
	return false
}

func (o *operand) matchesNumber(op string, got decimal) bool {
	order := got.compare(o.number)
	switch op {
	case "is":
		return order == 0
	case "<":
		return order < 0
	case "<=":
		return order <= 0
	case ">":
		return order > 0
	case ">=":
		return order >= 0
	}
	return false
}

// glob is a pattern in which only * is special: any text, none included. It minds case and fits the whole name.
type glob struct {
	parts [][]byte // between the stars
}

func newGlob(pattern string) glob {
	var g glob
	for _, part := range strings.Split(pattern, "*") {
		g.parts = append(g.parts, []byte(part))
	}
	return g
}

func isGlob(pattern string) bool { return strings.Contains(pattern, "*") }

// matches takes time in proportion to the text: after the fixed beginning and end, each part in between is taken at its
// first occurrence, which leaves the most for the others.
func (g glob) matches(name []byte) bool {
	first, last := g.parts[0], g.parts[len(g.parts)-1]
	if len(g.parts) == 1 {
		return bytes.Equal(name, first)
	}
	if len(name) < len(first)+len(last) || !bytes.HasPrefix(name, first) || !bytes.HasSuffix(name, last) {
		return false
	}
	name = name[len(first) : len(name)-len(last)]
	for _, part := range g.parts[1 : len(g.parts)-1] {
		i := bytes.Index(name, part)
		if i < 0 {
			return false
		}
		name = name[i+len(part):]
	}
	return true
}
