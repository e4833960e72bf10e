package mapping

import (
	"fmt"
	"strings"
	"testing"
)

// oddNames are names that properties and events may have.
var oddNames = []string{
	"a.b", "a..b", ".", "a b", " a ", `say "hi"`, `back\slash`, "it's", "tab\there", "new\nline", "😀", "e\u0301", "日本語", "\u2028", "<b>&amp;", "$set", "user.email", "event.total",
	"user", "event", "user.", "attributes.plan", "a/b", "a[0]", "{}", "null", "0", "-", "__proto__", "É", "é", "\u0000", "a,b", "a:b", "#", "=", "%s", "\u200b",
}

// A property of any name is chosen, renamed, excluded and found by a path, and reaches Customer.io under its name.
func TestNamesOfProperties(t *testing.T) {
	for _, name := range oddNames {
		t.Run(fmt.Sprintf("%q", name), func(t *testing.T) {
			listed := name
			if strings.HasPrefix(name, "user.e") || strings.HasPrefix(name, "event.t") {
				listed = "user." + name
			}
			object := "{" + quotedText(name) + `:"v","other":"w"}`
			for what, change := range map[string]func(*Spec) string{
				"by its name": func(s *Spec) string {
					s.EventProperties, s.UserProperties = []string{listed}, []string{listed}
					return name
				},
				"by *": func(s *Spec) string {
					s.EventExclude, s.UserExclude = []string{"other"}, []string{"other"}
					return name
				},
				"renamed": func(s *Spec) string {
					s.EventProperties, s.UserProperties = []string{listed}, []string{listed}
					s.EventRename, s.UserRename = map[string]string{listed: "new 😀.name"}, map[string]string{listed: "new 😀.name"}
					return "new 😀.name"
				},
				"another one renamed to it": func(s *Spec) string {
					s.EventExclude, s.UserExclude = []string{listed}, []string{listed}
					s.EventRename, s.UserRename = map[string]string{"other": name}, map[string]string{"other": name}
					return name
				},
				"only where it is there": func(s *Spec) string {
					s.EventProperties, s.UserProperties = []string{listed}, []string{listed}
					s.Select = []SelectSpec{{Event: []string{name}, Where: []WhereSpec{{"event." + name, "is", "v"}, {"user." + name, "is", "v"}}}}
					return name
				},
			} {
				rules := compiled(t, func(s *Spec) { name = change(s) })
				want := "v"
				if what == "another one renamed to it" {
					want = "w"
				}
				r := eventOf("u", "", "A", object)
				r.Raw = []byte(`{"event_type":` + quotedText(listedBack(listed)) + `,"event_properties":` + object + `}`)
				r.Properties = []byte(object)
				d := mapped(t, rules, r, nil)
				if len(d.Operations) != 2 {
					t.Fatalf("%s: %+v", what, d)
				}
				for _, op := range d.Operations {
					attributes := member(op.Body, []byte("attributes"))
					if got := string(valueOf(member(attributes, []byte(name))).text); got != want || strings.Count(string(attributes), `:"`) != 1 {
						t.Errorf("%s: the %s has %s", what, op.Action, attributes)
					}
				}
				name = listedBack(listed)
			}
		})
	}
}

func listedBack(listed string) string { return bareName(listed) }

// The names that mean something to Customer.io are chosen by those who name them, and by no *.
func TestReservedNames(t *testing.T) {
	people := []string{"id", "email", "phone", "cio_id", "cio_subscription_preferences", "cio_relationships", "anonymous_id", "created_at", "_timestamp", "_update",
		"unsubscribed", "_created_in_customerio_at", "timezone", "recipient", "from_address", "reply_to"}
	events := []string{"recipient", "from_address", "reply_to"}
	for _, test := range []struct {
		name   string
		change func(s *Spec, name string)
		sent   string // under which name; "" = not
	}{
		{"*", func(s *Spec, name string) {}, ""},
		{"a glob that fits", func(s *Spec, name string) {
			s.EventProperties, s.UserProperties = []string{name[:1] + "*"}, []string{name[:1] + "*"}
		}, ""},
		{"* of a rule", func(s *Spec, name string) {
			s.EventProperties, s.UserProperties = nil, nil
			s.Select[0].Properties = []string{"*"}
		}, ""},
		{"* of the user's with events", func(s *Spec, name string) {
			s.EventProperties, s.EventUserProperties, s.UserProperties = nil, []string{"*"}, nil
		}, ""},
		{"named", func(s *Spec, name string) { s.EventProperties, s.UserProperties = []string{name}, []string{name} }, "itself"},
		{"named beside *", func(s *Spec, name string) {
			s.EventProperties, s.UserProperties = []string{"*", name}, []string{"*", name}
		}, "itself"},
		{"renamed", func(s *Spec, name string) {
			s.EventRename, s.UserRename = map[string]string{name: "x"}, map[string]string{name: "x"}
		}, "x"},
	} {
		for action, names := range map[string][]string{"identify": people, "event": events} {
			for _, name := range names {
				rules := compiled(t, func(s *Spec) { test.change(s, name) })
				object := `{` + quotedText(name) + `:"v","plain":1}`
				r := eventOf("u", "", "A", object)
				r.Properties = []byte(object)
				want := test.sent
				if want == "itself" {
					want = name
				}
				for _, op := range mapped(t, rules, r, nil).Operations {
					if op.Action != action {
						continue
					}
					attributes := member(op.Body, []byte("attributes"))
					if got := strings.Contains(string(attributes), `"v"`); got != (want != "") || got && member(attributes, []byte(want)) == nil {
						t.Errorf("%s: the %s of %s has %s", test.name, action, name, attributes)
					}
				}
			}
		}
	}
}

// Revenue as Amplitude works it out.
func TestRevenue(t *testing.T) {
	for _, test := range []struct{ name, event, want string }{
		{"none", `{"event_type":"A"}`, `{}`},
		{"price alone", `{"event_type":"A","price":9.99}`, `{"price":9.99,"revenue":9.99}`},
		{"price × quantity", `{"event_type":"A","price":0.1,"quantity":3}`, `{"price":0.1,"quantity":3,"revenue":0.3}`},
		{"price × quantity wins", `{"event_type":"A","price":10,"quantity":2,"revenue":99}`, `{"price":10,"quantity":2,"revenue":20}`},
		{"revenue alone", `{"event_type":"A","revenue":12.50,"quantity":3}`, `{"quantity":3,"revenue":12.50}`},
		{"a refund", `{"event_type":"A","price":-4.5,"quantity":2}`, `{"price":-4.5,"quantity":2,"revenue":-9}`},
		{"all of them", `{"event_type":"A","price":1,"productId":"p","revenueType":"t","currency":"EUR"}`,
			`{"price":1,"revenue":1,"productId":"p","revenueType":"t","currency":"EUR"}`},
		{"as Swift calls them", `{"event_type":"A","price":1,"product_id":"p","revenue_type":"t"}`, `{"price":1,"revenue":1,"productId":"p","revenueType":"t"}`},
		{"null is absent", `{"event_type":"A","price":null,"quantity":null,"revenue":5,"currency":null}`, `{"revenue":5}`},
		{"revenue()", `{"event_type":"revenue_amount","event_properties":{"$price":3,"$quantity":2,"$productId":"p","$revenueType":"t","$currency":"USD"}}`,
			`{"price":3,"quantity":2,"revenue":6,"productId":"p","revenueType":"t","currency":"USD"}`},
		{"revenue(), and price × quantity wins", `{"event_type":"revenue_amount","event_properties":{"$price":3,"$quantity":2,"$revenue":100}}`, `{"price":3,"quantity":2,"revenue":6}`},
		{"revenue() of Go, only a revenue", `{"event_type":"revenue_amount","event_properties":{"$price":0,"$quantity":0,"$revenue":100}}`, `{"price":0,"quantity":0,"revenue":100}`},
		{"revenue() of Go, only a price", `{"event_type":"revenue_amount","event_properties":{"$price":4,"$quantity":0,"$revenue":0}}`, `{"price":4,"quantity":0,"revenue":4}`},
		{"the event's own come first", `{"event_type":"A","revenue":7,"event_properties":{"$price":3,"$quantity":2}}`, `{"price":3,"quantity":2,"revenue":7}`},
		{"long ago", `{"event_type":"revenue_amount","api_properties":{"price":2,"quantity":5,"productId":"p"}}`, `{"price":2,"quantity":5,"revenue":10,"productId":"p"}`},
	} {
		rules := compiled(t, func(s *Spec) {
			s.EventProperties, s.UserProperties = nil, nil
			s.EventFields = []string{"price", "quantity", "revenue", "productId", "revenueType", "currency"}
		})
		r := eventOf("u", "", "A", "{}")
		r.Raw = []byte(test.event)
		d := mapped(t, rules, r, nil)
		if got := string(member(d.Operations[len(d.Operations)-1].Body, []byte("attributes"))); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	// Either name selects it; and so for where.
	for _, names := range [][2]string{
		{"[Amplitude] Revenue", "revenue_amount"}, {"[Amplitude] Revenue (Verified)", "verified_revenue"}, {"[Amplitude] Revenue (Unverified)", "unverified_revenue"},
		{"[Amplitude] Start Session", "session_start"}, {"[Amplitude] End Session", "session_end"},
	} {
		for _, name := range []string{names[0], names[1], strings.ReplaceAll(names[0], "Amplitude", "Ampl*"), names[1][:len(names[1])-2] + "*"} {
			rules := compiled(t, func(s *Spec) {
				s.Select = []SelectSpec{{Event: []string{name}, Where: []WhereSpec{{"event_type", "glob match", name}}}}
			})
			for _, wire := range names {
				if d := mapped(t, rules, eventOf("u", "", wire, "{}"), nil); d.EventReason != "" {
					t.Errorf("%s does not select %s", name, wire)
				}
			}
			for _, wire := range []string{"verified", "revenue", "session"} {
				if d := mapped(t, rules, eventOf("u", "", wire, "{}"), nil); d.EventReason == "" {
					t.Errorf("%s selects %s", name, wire)
				}
			}
		}
	}
}
