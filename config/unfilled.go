package config

import (
	"errors"
	"path/filepath"
	"strings"
)

// Missing is something that whoever installs has still to write.
type Missing struct {
	Table   string // under which table: project.app
	Header  string // how that is written where it is not in the file yet: [project.app]
	Text    string // the line: region = "us"
	Where   string // where its value is found
	KeyFile string // instead of a line: the file that holds the API key alone
	Line    int    // of the file, in whose place Text is written; 0 = none, it is added
}

// Where the values are that only Amplitude and Customer.io know.
const (
	inAmplitude  = "Amplitude: Settings > Projects > your project > API Key"
	inCustomerIO = "Customer.io: Settings > Account settings > API credentials > Track API keys"
	ofAccount    = `"us" or "eu"; Customer.io: Settings > Account settings`
	relayWhere   = `"us" or "eu": every event is passed on to your Amplitude project there`
	keyFileWhere = "the name of a file beside this one, see below"
	eventsWhere  = `which events to send, such as ["Signed Up", "Order *"]; ["*"] is every one`
)

const (
	keysText   = `amplitude_api_keys = ["YOUR AMPLITUDE API KEY"]`
	relayText  = `relay = "off"`
	regionText = `region = "us"`
	siteText   = `site_id = "YOUR SITE ID"`
	fileText   = `api_key_file = "customerio_api_key"`
	eventsText = `event = ["*"]`
)

// unfilled is check for what is not wrong, but not written yet.
func (c checker) unfilled(path string, missing []Missing, format string, args ...any) {
	before := len(c.errors)
	c.check(path, format, args...)
	if len(c.errors) == before {
		return
	}
	for i := range missing {
		if c.problems.places.line[strings.Trim(missing[i].Table, "[]")] == 0 && missing[i].KeyFile == "" {
			missing[i].Header = "[" + missing[i].Table + "]"
		}
	}
	c.errors[before].Missing = missing
}

// inPlaceOf gives each the line of what it replaces.
func (c checker) inPlaceOf(path string, m Missing) []Missing {
	m.Line = c.problems.places.line[path]
	return []Missing{m}
}

// keyFileOf is the file that the API key is to be written into, as root sees it.
func (c checker) keyFileOf(file string, credential bool) string {
	if credential {
		return filepath.Join(c.folder, filepath.Base(file)) // LoadCredential of the unit says so
	}
	return file
}

// Unfilled are the values that are still to be written, in the order of the file, each
// once. only says that nothing else is wrong.
func Unfilled(err error) (missing []Missing, only bool) {
	only = true
	said := map[Missing]bool{}
	var walk func(error)
	walk = func(err error) {
		if e, is := err.(*Error); is {
			only = only && len(e.Missing) > 0
			for _, m := range e.Missing {
				if !said[m] {
					said[m] = true
					missing = append(missing, m)
				}
			}
			return
		}
		if several, is := err.(interface{ Unwrap() []error }); is {
			for _, e := range several.Unwrap() {
				walk(e)
			}
			return
		}
		if inner := errors.Unwrap(err); inner != nil {
			walk(inner)
			return
		}
		only = false
	}
	walk(err)
	return missing, only && len(missing) > 0
}

// Blank is the error of a file in which nothing is written.
func Blank(path string, env Environment) error {
	_, err := parse(path, nil, 0o640, env)
	return err
}
