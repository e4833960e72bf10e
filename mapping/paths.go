package mapping

import (
	"bytes"
	"slices"
	"strings"
)

// path is where a value is read from: a property of the event or of the user by its literal name, or a built-in.
type path struct {
	kind pathKind
	name []byte // the property, or the built-in's name
}

type pathKind uint8

const (
	pathBuiltin pathKind = iota
	pathEvent
	pathUser
)

// builtins is the closed list of names that are not properties.
var builtins = []string{
	"user_id", "device_id", "event_type", "platform", "os", "device", "country", "region", "city", "language",
	"app_version", "library", "session_id", "price", "quantity", "revenue", "currency", "productId", "revenueType", "insert_id",
	"os_name", "os_version", "device_brand", "device_manufacturer", "device_model", "carrier", "dma", "start_version", "paying",
}

// ofUser are the built-ins that are properties of the user: they stay when an event says nothing of them.
var ofUser = map[string]bool{
	"platform": true, "os": true, "os_name": true, "os_version": true,
	"device": true, "device_brand": true, "device_manufacturer": true, "device_model": true, "carrier": true,
	"country": true, "region": true, "city": true, "dma": true,
	"language": true, "app_version": true, "start_version": true, "paying": true,
}

// parsePath returns a message for people when text is no path.
func parsePath(text string) (path, string) {
	scope, name, dotted := strings.Cut(text, ".")
	switch {
	case text == "":
		return path{}, `is empty: write "user.NAME", "event.NAME", or a built-in such as "user_id"`
	case dotted && name != "" && scope == "user":
		return path{pathUser, []byte(name)}, ""
	case dotted && name != "" && scope == "event":
		return path{pathEvent, []byte(name)}, ""
	case slices.Contains(builtins, text):
		return path{pathBuiltin, []byte(text)}, ""
	case dotted && name != "" && strings.HasPrefix(strings.ToLower(scope), "user"):
		return path{}, quote(text) + ` is not a path: did you mean "user.` + name + `"?`
	case dotted && name != "" && strings.HasPrefix(strings.ToLower(scope), "event"):
		return path{}, quote(text) + ` is not a path: did you mean "event.` + name + `"?`
	case (scope == "user" || scope == "event") && name == "":
		return path{}, quote(text) + ` is not a path: write "` + scope + `.NAME" with the property's name`
	}
	if near := nearest(text, builtins); near != "" {
		return path{}, quote(text) + " is not a path: did you mean " + quote(near) + "?"
	}
	return path{}, quote(text) + ` is not a path: did you mean "user.` + text + `"? A path is user.NAME, event.NAME, or one of ` +
		strings.Join(builtins, ", ")
}

func quote(s string) string { return `"` + s + `"` }

// nearest returns the known word that is one or two slips of the finger away, "" when there is none.
func nearest(word string, known []string) string {
	best, slips := "", 3
	if len(word) < 5 {
		slips = 2
	}
	for _, k := range known {
		if d := distance(strings.ToLower(word), strings.ToLower(k)); d < slips {
			best, slips = k, d
		}
	}
	return best
}

// distance counts the letters to add, drop or change to make b from a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// valueKind is what a path led to. A JSON null is absent but for its name.
type valueKind uint8

const (
	absent valueKind = iota
	null
	text
	number
	boolean
	list
	object
)

// value is what a path led to: raw JSON, or for text also its characters.
type value struct {
	kind valueKind
	text []byte // of text: decoded
	raw  []byte // JSON; nil for a text that we put together ourselves
}

func valueOf(raw []byte) value {
	if len(raw) == 0 {
		return value{}
	}
	switch raw[0] {
	case '"':
		return value{text, plainText(raw), raw}
	case '{':
		return value{object, nil, raw}
	case '[':
		return value{list, nil, raw}
	case 't', 'f':
		return value{boolean, nil, raw}
	case 'n':
		return value{null, nil, raw}
	}
	return value{number, nil, raw}
}

func textValue(s string) value {
	if s == "" {
		return value{}
	}
	return value{kind: text, text: []byte(s)}
}

func (v value) isSet() bool { return v.kind != absent && v.kind != null }

func (v value) appendJSON(dst []byte) []byte {
	if v.raw == nil {
		return appendQuoted(dst, v.text)
	}
	return appendCompact(dst, v.raw)
}

// at reads a path.
func (v *view) at(p path) value {
	switch p.kind {
	case pathEvent:
		return valueOf(member(v.field(fieldEventProperties), p.name))
	case pathUser:
		return v.ofUser(p.name)
	}
	return v.builtin(string(p.name))
}

// ofUser reads a user property: the one that somebody has named so, else the built-in of that name.
func (v *view) ofUser(name []byte) value {
	own := valueOf(member(v.userProperties, name))
	if !own.isSet() && ofUser[string(name)] {
		if known := v.builtin(string(name)); known.isSet() {
			return known
		}
	}
	return own
}

// builtin reads a built-in from the event as it came, and those that are the user's (ofUser) as they are after it:
//
//   - user_id and device_id are the record's, after linking;
//   - os is os_name and os_version with a space between, or the one that is there;
//   - device is device_model, else device_brand, else device_manufacturer;
//   - app_version is app_version, else version_name, as the mobile SDKs call it;
//   - library as an object (legacy SDKs) is name/version;
//   - a session_id of -1 is none;
//   - price, quantity, currency, productId, revenueType are the event's own fields, else those that the SDKs' revenue()
//     puts into event_properties ($price …) or, long ago, into api_properties;
//   - revenue is of the first of these three that has one. Of each it is price × quantity where there is a price
//     (Amplitude lets that win), else the stated revenue. A missing quantity counts as 1. In event_properties a price or
//     quantity of 0 is none while there is a $revenue: the Go SDK sends 0 for what was not set.
//
// An empty text is absent.
func (v *view) builtin(name string) value {
	switch name {
	case "user_id":
		return textValue(v.record.UserID)
	case "device_id":
		return textValue(v.record.DeviceID)
	case "event_type":
		return value{kind: text, text: v.event}
	case "os":
		return v.os()
	case "device":
		known := v.builtinsKnown()
		return firstFilled(known[builtinModel], known[builtinBrand], known[builtinManufacturer])
	case "library":
		return v.libraryText()
	case "session_id":
		if string(v.field(fieldSessionID)) == "-1" {
			return value{}
		}
		return filled(v.field(fieldSessionID))
	case "price":
		return v.sale(v.field(fieldPrice), "price")
	case "quantity":
		return v.sale(v.field(fieldQuantity), "quantity")
	case "currency":
		return v.sale(v.field(fieldCurrency), "currency")
	case "productId":
		if v.field(fieldProductID) == nil {
			return v.sale(v.field(fieldProductIDSwift), "productId")
		}
		return v.sale(v.field(fieldProductID), "productId")
	case "revenueType":
		if v.field(fieldRevenueType) == nil {
			return v.sale(v.field(fieldRevenueTypeSwift), "revenueType")
		}
		return v.sale(v.field(fieldRevenueType), "revenueType")
	case "revenue":
		return v.revenueValue()
	case "insert_id":
		return firstFilled(v.field(fieldInsertID), v.field(fieldUUID))
	}
	return valueOf(v.builtinsKnown()[builtinNumber([]byte(name))])
}

func (v *view) os() value {
	known := v.builtinsKnown()
	name, version := valueOf(known[builtinOSName]), valueOf(known[builtinOSVersion])
	switch {
	case name.kind != text:
		return version
	case version.kind != text:
		return name
	}
	return value{kind: text, text: bytes.Join([][]byte{name.text, version.text}, []byte(" "))}
}

func (v *view) libraryText() value {
	library := v.field(fieldLibrary)
	if len(library) == 0 || library[0] != '{' {
		return filled(library)
	}
	name, version := filled(member(library, []byte("name"))), filled(member(library, []byte("version")))
	if name.kind != text || version.kind != text {
		return name
	}
	return value{kind: text, text: bytes.Join([][]byte{name.text, version.text}, []byte("/"))}
}

func (v *view) sale(own []byte, name string) value {
	if own != nil {
		return filled(own)
	}
	if found := filled(member(v.field(fieldEventProperties), []byte("$"+name))); found.isSet() {
		return found
	}
	return filled(member(v.field(fieldAPIProperties), []byte(name)))
}

func (v *view) revenueValue() value {
	if earned := times(filled(v.field(fieldPrice)), filled(v.field(fieldQuantity))); earned.isSet() {
		return earned
	}
	if own := filled(v.field(fieldRevenue)); own.isSet() {
		return own
	}
	property := func(name string) value { return filled(member(v.field(fieldEventProperties), []byte(name))) }
	price, quantity, stated := property("$price"), property("$quantity"), property("$revenue")
	if isZero(quantity) {
		quantity = value{}
	}
	if earned := times(price, quantity); earned.isSet() && !(isZero(price) && stated.isSet()) {
		return earned
	}
	if stated.isSet() {
		return stated
	}
	property = func(name string) value { return filled(member(v.field(fieldAPIProperties), []byte(name))) }
	if earned := times(property("price"), property("quantity")); earned.isSet() {
		return earned
	}
	return property("revenue")
}

func isZero(v value) bool {
	if v.kind != number {
		return false
	}
	d, ok := parseDecimal(v.raw, nil)
	return ok && len(d.digits) == 0
}

// times is absent when there is no price.
func times(price, quantity value) value {
	if price.kind != number {
		return value{}
	}
	if quantity.kind != number {
		return price
	}
	product, ok := multiplyNumbers(price.raw, quantity.raw)
	if !ok {
		return value{}
	}
	return value{kind: number, raw: product}
}

// filled takes null and empty text for absent.
func filled(raw []byte) value {
	v := valueOf(raw)
	if v.kind == null || v.kind == text && len(v.text) == 0 {
		return value{}
	}
	return v
}

func firstFilled(raws ...[]byte) value {
	for _, raw := range raws {
		if v := filled(raw); v.isSet() {
			return v
		}
	}
	return value{}
}

// member returns the raw value of a member by its literal name; nil when it is not there or object is none.
func member(object, name []byte) []byte {
	if len(object) == 0 || object[0] != '{' {
		return nil
	}
	for w := walkObject(object); w.next(); {
		if bytes.Equal(w.nameText(), name) {
			return w.value
		}
	}
	return nil
}

// displayNames are the names under which Amplitude shows events that have another one on the wire and in its APIs
// (https://amplitude.com/docs/apis/analytics/dashboard-rest). Rules may use either.
var displayNames = map[string]string{
	"session_start":      "[Amplitude] Start Session",
	"session_end":        "[Amplitude] End Session",
	"revenue_amount":     "[Amplitude] Revenue",
	"verified_revenue":   "[Amplitude] Revenue (Verified)",
	"unverified_revenue": "[Amplitude] Revenue (Unverified)",
}

// revenueEvents have their money in event_properties.
var revenueEvents = []string{"revenue_amount", "verified_revenue", "unverified_revenue"}

var wireNames = func() map[string]string {
	m := make(map[string]string, len(displayNames))
	for wire, shown := range displayNames {
		m[shown] = wire
	}
	return m
}()

// otherName returns the second name of an event that has two, else "".
func otherName(event []byte) string {
	if shown, ok := displayNames[string(event)]; ok {
		return shown
	}
	return wireNames[string(event)]
}
