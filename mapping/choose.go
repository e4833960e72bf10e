package mapping

import (
	"slices"
	"strings"
)

// Names that mean something to Customer.io. A * never chooses them; a rule that names one, in a list or as the key of a
// rename, is consent.

// reservedInEvents override a campaign's To, From and Reply-To when they stand in event data.
var reservedInEvents = map[string]bool{"recipient": true, "from_address": true, "reply_to": true}

// reservedForPeople are identifiers, instructions and attributes that Customer.io keeps itself. So is everything that
// begins with cio_.
var reservedForPeople = map[string]bool{
	"id": true, "email": true, "phone": true, "anonymous_id": true, "created_at": true, "_timestamp": true, "_update": true,
	"unsubscribed": true, "_created_in_customerio_at": true, "timezone": true, "timezone_valid": true,
	"mobile_ad_id": true, "email_sha256": true, "mobile_ad_id_sha256": true,
	"recipient": true, "from_address": true, "reply_to": true,
}

func isReservedForPeople(name string) bool {
	return reservedForPeople[name] || strings.HasPrefix(name, "cio_")
}

// chooser is a list of property names and * globs with its exclusions and new names.
type chooser struct {
	names    map[string]bool
	globs    []glob
	exclude  map[string]bool
	excluded []glob
	rename   map[string][]byte // new names, quoted
	reserved func(name string) bool
	builtins []string // the names that are built-in properties of a user too; a * chooses none of these
}

func newChooser(names, exclude []string, rename map[string]string, reserved func(string) bool) chooser {
	c := chooser{rename: make(map[string][]byte, len(rename)), reserved: reserved}
	c.names, c.globs = split(names)
	c.exclude, c.excluded = split(exclude)
	for from, to := range rename {
		c.rename[bareName(from)] = appendQuoted(nil, to)
	}
	for _, name := range names {
		if ofUser[name] && c.chooses([]byte(name)) && !slices.Contains(c.builtins, name) {
			c.builtins = append(c.builtins, name)
		}
	}
	return c
}

// eachBuiltin gives the built-in properties of a user that are chosen and have a value, where the user has no property
// that somebody has named so.
func (c *chooser) eachBuiltin(v *view, each func(name, quoted, raw []byte)) {
	for _, name := range c.builtins {
		n := []byte(name)
		if valueOf(member(v.userProperties, n)).isSet() {
			continue
		}
		if known := v.builtin(name); known.isSet() {
			each(n, c.newName(n, appendQuoted(nil, name)), known.appendJSON(nil))
		}
	}
}

func split(patterns []string) (names map[string]bool, globs []glob) {
	names = make(map[string]bool)
	for _, p := range patterns {
		if isGlob(p) {
			globs = append(globs, newGlob(p))
		} else {
			names[bareName(p)] = true
		}
	}
	return names, globs
}

func (c *chooser) isEmpty() bool { return len(c.names) == 0 && len(c.globs) == 0 }

// chooses decides one property by its name, as it comes from the device.
func (c *chooser) chooses(name []byte) bool {
	chosen := c.names[string(name)]
	if !chosen && matchesAny(c.globs, name) {
		_, renamed := c.rename[string(name)]
		chosen = renamed || !c.reserved(string(name))
	}
	return chosen && !c.exclude[string(name)] && !matchesAny(c.excluded, name)
}

// mentions reports whether the list names a property, whatever is excluded or reserved.
func (c *chooser) mentions(name []byte) bool {
	return c.names[string(name)] || matchesAny(c.globs, name)
}

// newName returns the quoted name under which a property is sent. quoted is its name as it stands in the JSON.
func (c *chooser) newName(name, quoted []byte) []byte {
	if len(c.rename) > 0 {
		if to, ok := c.rename[string(name)]; ok {
			return to
		}
	}
	return canonicalName(quoted)
}

func matchesAny(globs []glob, name []byte) bool {
	for _, g := range globs {
		if g.matches(name) {
			return true
		}
	}
	return false
}
