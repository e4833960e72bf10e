package mapping

import (
	"bytes"
	"slices"
)

// Names that mean something to Customer.io. A * never chooses them; a rule that names one, in a list or as the key of a
// rename, is consent.

// reservedInEvents override a campaign's To, From and Reply-To when they stand in event data.
func reservedInEvents(name []byte) bool {
	switch string(name) {
	case "recipient", "from_address", "reply_to":
		return true
	}
	return false
}

// reservedForPeople are identifiers, instructions and attributes that Customer.io keeps itself. So is everything that
// begins with cio_.
func reservedForPeople(name []byte) bool {
	switch string(name) {
	case "id", "email", "phone", "anonymous_id", "created_at", "_timestamp", "_update",
		"unsubscribed", "_created_in_customerio_at", "timezone", "timezone_valid",
		"mobile_ad_id", "email_sha256", "mobile_ad_id_sha256",
		"recipient", "from_address", "reply_to":
		return true
	}
	return bytes.HasPrefix(name, []byte("cio_"))
}

// chooser is a list of property names and * globs with its exclusions and new names.
type chooser struct {
	names    map[string]bool
	globs    []glob
	exclude  map[string]bool
	excluded []glob
	rename   map[string][]byte // new names, quoted
	reserved func(name []byte) bool
	builtins []string // the names that are built-in properties of a user too; a * chooses none of these
}

func newChooser(names, exclude []string, rename map[string]string, reserved func([]byte) bool) chooser {
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
	// Looking into an empty map costs as much as comparing two names.
	chosen := len(c.names) > 0 && c.names[string(name)]
	if !chosen && matchesAny(c.globs, name) {
		chosen = !c.reserved(name)
		if !chosen && len(c.rename) > 0 {
			_, chosen = c.rename[string(name)]
		}
	}
	return chosen && (len(c.exclude) == 0 || !c.exclude[string(name)]) && !matchesAny(c.excluded, name)
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
