package mapping

import (
	"bytes"
	"fmt"
	"sync"
	"unicode/utf8"
)

// The user property operations, in the order in which Amplitude applies those of one event (analytics-core and the Swift
// SDK; the comment there says it mirrors the ingestion server).
type operation int

const (
	opClearAll operation = iota
	opUnset
	opSet
	opSetOnce
	opAdd
	opAppend
	opPrepend
	opPreInsert
	opPostInsert
	opRemove
	operationCount
)

// operationOf returns the operation that a quoted member name of user_properties stands for, or -1: a plain property.
func operationOf(quoted []byte) operation {
	if len(quoted) < 2 || quoted[1] != '$' {
		return -1
	}
	switch string(quoted[2 : len(quoted)-1]) {
	case "clearAll":
		return opClearAll
	case "unset":
		return opUnset
	case "set":
		return opSet
	case "setOnce":
		return opSetOnce
	case "add":
		return opAdd
	case "append":
		return opAppend
	case "prepend":
		return opPrepend
	case "preInsert":
		return opPreInsert
	case "postInsert":
		return opPostInsert
	case "remove":
		return opRemove
	}
	return -1
}

// ApplyOperations returns a user's properties after an event. properties are those before it, a JSON object or nil;
// userProperties is the event's user_properties, nil when it had none. The result is a compact JSON object: properties
// itself when nothing changed ("{}" for nil), else appended to dst, which may be nil. Properties keep their place, new ones
// go to the end.
//
// Operations are applied whatever the event's type. Where Amplitude documents nothing, this is what happens:
//
//   - Plain names beside operations are set last, so they win.
//   - A member whose name begins with $ and is no operation is a plain property.
//   - null is no value: $set or a plain name with null removes the property, $setOnce with null does nothing, and so do
//     the list operations. Nulls inside lists and objects stay.
//   - $clearAll clears whatever its value ("-", {"-":null}, true), except null.
//   - An operation whose argument is not an object does nothing.
//   - $add takes numbers and texts that are numbers ("5"), on both sides, and stores a number; anything else leaves the
//     property as it is. Sums are exact (2^53+1 plus 1, 0.1 plus 0.2).
//   - For the five list operations a value that is not a list is a list of that one value, on both sides; when nothing
//     is added or removed the property stays exactly as it is.
//   - $preInsert and $postInsert compare values by type and worth: 1 is 1.0 but not "1". A value named twice goes in once.
//   - $remove may leave an empty list; the property then is [].
//   - Amplitude lets a list grow to 10,000 characters and truncates it there. So the values that stand behind these in the
//     list's JSON are left out, each as a whole; a list that is longer already, by $set, grows no more.
func ApplyOperations(dst, properties, userProperties []byte) ([]byte, error) {
	if len(properties) == 0 {
		properties = []byte("{}")
	}
	if len(userProperties) == 0 || isNull(userProperties) {
		return properties, nil
	}
	if after, ok := setFew(dst, properties, userProperties); ok {
		return after, nil
	}
	var arguments [operationCount][]byte
	plain := false
	w := walkObject(userProperties)
	for w.next() {
		if op := operationOf(w.name); op >= 0 {
			arguments[op] = w.value
		} else {
			plain = true
		}
	}
	if w.bad {
		return nil, fmt.Errorf("user_properties: %w", errNotObject)
	}
	set := propertySets.Get().(*propertySet)
	defer set.release()
	if err := set.load(properties); err != nil {
		return nil, err
	}
	if argument := arguments[opClearAll]; argument != nil && !isNull(argument) {
		set.clear()
	}
	for op := opUnset; op < operationCount; op++ {
		if argument := arguments[op]; len(argument) > 0 && argument[0] == '{' {
			for w := walkObject(argument); w.next(); {
				set.apply(op, w.name, w.value)
			}
		}
	}
	if plain {
		for w := walkObject(userProperties); w.next(); {
			if operationOf(w.name) < 0 {
				set.apply(opSet, w.name, w.value)
			}
		}
	}
	return set.result(dst, properties), nil
}

// fewSet is how many properties are set the short way.
const fewSet = 16

// setFew is ApplyOperations for the usual event, which sets some properties and does nothing else: one walk over what
// there is. ok is false where that is not enough; then nothing has happened.
func setFew(dst, properties, userProperties []byte) (after []byte, ok bool) {
	var few [fewSet]property
	set, ok := onlySet(few[:0], userProperties)
	if !ok {
		return nil, false
	}
	out := append(dst, '{')
	w := walkObject(properties)
	for w.next() {
		if !asItIs(&w) {
			return nil, false
		}
		value := w.value
		for i := range set {
			if p := &set[i]; p.value != nil && bytes.Equal(p.name, w.name) {
				value, p.value = p.value, nil
				break
			}
		}
		out = append(append(append(appendComma(out), w.name...), ':'), value...)
	}
	if w.bad {
		return nil, false
	}
	for _, p := range set {
		if p.value != nil {
			out = append(append(append(appendComma(out), p.name...), ':'), p.value...)
		}
	}
	out = append(out, '}')
	if after = out[len(dst):]; bytes.Equal(after, properties) {
		return properties, true
	}
	return after, true
}

// onlySet gives what an event sets, when it does nothing else, and has no more than set has room for.
func onlySet(set []property, userProperties []byte) (_ []property, ok bool) {
	w := walkObject(userProperties)
	plain := true
	if w.next() && operationOf(w.name) == opSet && isObjectStart(w.value) {
		userProperties, plain = w.value, false
		if w.next() {
			return nil, false
		}
	}
	if w.bad {
		return nil, false
	}
	for w = walkObject(userProperties); w.next(); {
		if plain && operationOf(w.name) >= 0 || !asItIs(&w) || len(set) == cap(set) {
			return nil, false
		}
		for i := range set {
			if bytes.Equal(set[i].name, w.name) {
				return nil, false
			}
		}
		set = append(set, property{w.name, w.value})
	}
	return set, !w.bad
}

// asItIs says that a member can stand in a set of properties as it came.
func asItIs(w *walk) bool {
	return !isNull(w.value) && !hasSpace(w.value) && bytes.IndexByte(w.name, '\\') < 0
}

// TakeOver returns the properties of a user who logs in for the first time on a device whose anonymous properties are
// given: what own lacks comes from anonymous, what own has wins. The result is own itself when nothing was lacking.
func TakeOver(own, anonymous []byte) ([]byte, error) {
	if len(own) == 0 {
		own = []byte("{}")
	}
	if len(anonymous) == 0 {
		return own, nil
	}
	set := propertySets.Get().(*propertySet)
	defer set.release()
	if err := set.load(own); err != nil {
		return nil, err
	}
	w := walkObject(anonymous)
	for w.next() {
		set.apply(opSetOnce, w.name, w.value)
	}
	if w.bad {
		return nil, fmt.Errorf("anonymous properties: %w", errNotObject)
	}
	return set.result(nil, own), nil
}

// propertySet is a user's properties while they change.
type propertySet struct {
	list     []property
	searches int
	index    map[string]int // place in list by name; made only when many names are looked for in a long list
	out      []byte
}

type property struct {
	name  []byte // quoted, canonical
	value []byte // compact; nil = the property is absent
}

// indexAfter is how many searches, through how many properties, are cheaper than an index.
const indexAfter = 24

var propertySets = sync.Pool{New: func() any { return new(propertySet) }}

func (s *propertySet) release() {
	if cap(s.list) > 4096 || cap(s.out) > 256<<10 {
		return // one huge user must not set the pool's size
	}
	clear(s.list)
	s.list, s.searches, s.index, s.out = s.list[:0], 0, nil, s.out[:0]
	propertySets.Put(s)
}

func (s *propertySet) load(properties []byte) error {
	w := walkObject(properties)
	for w.next() {
		if !isNull(w.value) {
			s.list = append(s.list, property{canonicalName(w.name), compact(w.value)})
		}
	}
	if w.bad {
		return fmt.Errorf("properties: %w", errNotObject)
	}
	return nil
}

func (s *propertySet) find(name []byte) int {
	if s.index == nil {
		if s.searches++; s.searches > indexAfter && len(s.list) > indexAfter {
			s.index = make(map[string]int, 2*len(s.list))
			for i := range s.list {
				s.index[string(s.list[i].name)] = i
			}
		}
	}
	if s.index != nil {
		if i, ok := s.index[string(name)]; ok {
			return i
		}
		return -1
	}
	for i := range s.list {
		if bytes.Equal(s.list[i].name, name) {
			return i
		}
	}
	return -1
}

func (s *propertySet) put(at int, name, value []byte) {
	value = compact(value)
	if at >= 0 {
		s.list[at].value = value
		return
	}
	s.list = append(s.list, property{name, value})
	if s.index != nil {
		s.index[string(name)] = len(s.list) - 1
	}
}

func (s *propertySet) clear() {
	for i := range s.list {
		s.list[i].value = nil
	}
}

func (s *propertySet) apply(op operation, quoted, argument []byte) {
	name := canonicalName(quoted)
	at := s.find(name)
	var old []byte
	if at >= 0 {
		old = s.list[at].value
	}
	if op == opUnset || op == opSet && isNull(argument) {
		if at >= 0 {
			s.list[at].value = nil
		}
		return
	}
	if isNull(argument) {
		return
	}
	var value []byte
	switch op {
	case opSet:
		value = argument
	case opSetOnce:
		if old == nil {
			value = argument
		}
	case opAdd:
		value = add(old, argument)
	default:
		value = changeList(op, old, argument)
	}
	if value != nil {
		s.put(at, name, value)
	}
}

// result appends the set to dst, or returns before when it says the same.
func (s *propertySet) result(dst, before []byte) []byte {
	out := append(s.out[:0], '{')
	for _, p := range s.list {
		if p.value == nil {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, p.name...), ':'), p.value...)
	}
	s.out = append(out, '}')
	if bytes.Equal(s.out, before) {
		return before
	}
	return append(dst, s.out...)[len(dst):]
}

// add returns nil when there is nothing to add, or nothing to add it to.
func add(old, argument []byte) []byte {
	if argument = asNumber(argument); argument == nil {
		return nil
	}
	if old == nil {
		old = []byte("0")
	} else if old = asNumber(old); old == nil {
		return nil
	}
	sum, _ := addNumbers(old, argument)
	return sum
}

// asNumber returns a number's JSON, also that of a text which is one, else nil.
func asNumber(value []byte) []byte {
	if len(value) == 0 {
		return nil
	}
	if value[0] == '"' {
		if value = plainText(value); !isNumber(value) {
			return nil
		}
		return value
	}
	if value[0] == '-' || isDigit(value[0]) {
		return value
	}
	return nil
}

// isNumber reports whether text follows JSON's grammar for numbers: no plus, no leading zeros.
func isNumber(text []byte) bool {
	digits := bytes.TrimPrefix(text, []byte("-"))
	if len(digits) == 0 || len(digits) > 1 && digits[0] == '0' && isDigit(digits[1]) {
		return false
	}
	_, ok := parseDecimal(text, nil)
	return ok
}

// changeList returns the list after one of the five list operations, nil when it stays as it is.
func changeList(op operation, old, argument []byte) []byte {
	var arriving [][]byte
	if op == opAppend || op == opPrepend {
		arriving = elements(argument)
	} else {
		arriving = distinct(elements(argument))
	}
	if len(arriving) == 0 {
		return nil
	}
	present := elements(old)
	var result [][]byte
	switch op {
	case opAppend:
		result = append(present, arriving...)
	case opPrepend:
		result = append(arriving, present...)
	case opRemove:
		if result = without(present, arriving); len(result) == len(present) {
			return nil
		}
	case opPreInsert, opPostInsert:
		if arriving = without(arriving, present); len(arriving) == 0 {
			return nil
		}
		if op == opPreInsert {
			result = append(arriving, present...)
		} else {
			result = append(present, arriving...)
		}
	}
	list := append(make([]byte, 0, len(old)+len(argument)+2), '[')
	for i, element := range result {
		if i > 0 {
			list = append(list, ',')
		}
		list = appendCompact(list, element)
	}
	list = append(list, ']')
	if op != opRemove && len(list) > maxList {
		return cutList(list, max(maxList, utf8.RuneCount(old)))
	}
	return list
}

// maxList is to how many characters of JSON the list operations let a list grow.
// https://amplitude.com/docs/faq/limits
const maxList = 10_000

// cutList keeps the first elements of a compact list, at most so many characters with the brackets; nil where that is none.
func cutList(list []byte, most int) []byte {
	characters, end := len("[]"), len("[")
	for w := walkList(list); w.next(); end = w.pos {
		if characters += utf8.RuneCount(list[end:w.pos]); characters > most { // with the comma before it
			break
		}
	}
	if end == len("[") {
		return nil
	}
	return append(list[:end], ']')
}

// elements of a list; a value that is none is its own only element, and nil has none.
func elements(value []byte) [][]byte {
	switch {
	case len(value) == 0:
		return nil
	case value[0] != '[':
		return [][]byte{value}
	}
	var all [][]byte
	for w := walkList(value); w.next(); {
		all = append(all, w.value)
	}
	return all
}

// distinct keeps the first of equal values.
func distinct(values [][]byte) [][]byte {
	if len(values) < 2 {
		return values
	}
	seen := make(map[string]bool, len(values))
	kept := values[:0]
	for _, v := range values {
		if key := string(appendEqualityKey(nil, v)); !seen[key] {
			seen[key] = true
			kept = append(kept, v)
		}
	}
	return kept
}

// without returns the values that equal none of the others.
func without(values, others [][]byte) [][]byte {
	if len(values) == 0 || len(others) == 0 {
		return values
	}
	named := make(map[string]bool, len(others))
	for _, o := range others {
		named[string(appendEqualityKey(nil, o))] = true
	}
	kept := make([][]byte, 0, len(values))
	for _, v := range values {
		if !named[string(appendEqualityKey(nil, v))] {
			kept = append(kept, v)
		}
	}
	return kept
}
