package mapping

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// thoroughly is ParseEvent without the Outliner.
func thoroughly(raw []byte) (Event, []Problem) {
	return new(Outliner).parseThoroughly(trimSpace(raw))
}

// outlineCases are events on the edges of what is JSON, and whether an Outliner reads them.
var outlineCases = []struct {
	name, event string
	read        bool
}{
	{"plain", benchmarkEvent, true},
	{"nothing in it", `{}`, true},
	{"space everywhere", " {\t\"event_type\" :\r\n\"a\" , \"event_properties\" : { } , \"x\" : [ ] , \"y\":[ 1 , 2 ] } ", true},
	{"all kinds of values", `{"event_type":"a","x":[true,false,null,0,-0,0.5,-1.25e-10,1E+5,"",{},[]]}`, true},
	{"umlauts", `{"event_type":"größer","öäü€😀":"Ünicode 😀 bis ans Ende €"}`, true},
	{"a literal replacement character", "{\"event_type\":\"\ufffd\"}", true},
	{"escapes", `{"event_type":"\"\\\/\b\f\n\r\t\u00fc\ud83d\ude00"}`, true},
	{"64 names", `{"event_type":"a",` + manyNames(63) + `}`, true},
	{"40 levels", `{"event_type":"a","x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`, true},

	{"65 names", `{"event_type":"a",` + manyNames(64) + `}`, false},
	{"an escaped name", `{"event_type":"a","\u0061":1}`, false},
	{"a name twice, once escaped", `{"event_type":"a","a":1,"\u0061":1}`, false},
	{"half a pair", `{"event_type":"\ud83d"}`, false},
	{"the other half", `{"event_type":"\ude00\ud83d"}`, false},
	{"a pair the wrong way round", `{"event_type":"\ude00\ud83d"}`, false},
	{"41 levels", `{"event_type":"a","x":` + strings.Repeat("[", 41) + strings.Repeat("]", 41) + `}`, false},
	{"41 levels of objects", `{"event_type":"a","x":` + strings.Repeat(`{"":`, 41) + "1" + strings.Repeat("}", 41) + `}`, false},
	{"a name twice", `{"event_type":"a","abc":1,"abc":2}`, false},
	{"a long name twice", `{"event_type":"a","a name of some length":1,"b":0,"a name of some length":2}`, false},
	{"a name twice further in", `{"event_type":"a","x":[{"y":{"a":1,"b":2,"a":3}}]}`, false},
	{"the empty name twice", `{"event_type":"a","":1,"":2}`, false},
	{"the event_type twice", `{"event_type":"a","event_type":"b"}`, false},
	{"a control character", "{\"event_type\":\"a\x1fb\"}", false},
	{"a control character among eight", "{\"event_type\":\"abcdefg\x00ijklmnop\"}", false},
	{"bad UTF-8", "{\"event_type\":\"a\xffb\"}", false},
	{"UTF-8 cut short", "{\"event_type\":\"abcdefgh\xe2\x82\"}", false},
	{"an encoded surrogate", "{\"event_type\":\"\xed\xa0\x80\"}", false},
	{"an overlong encoding", "{\"event_type\":\"\xc0\x80\"}", false},
	{"an unknown escape", `{"event_type":"\x"}`, false},
	{"an escape without digits", `{"event_type":"\u00g0"}`, false},
	{"an escape cut short", `{"event_type":"\u00"}`, false},
	{"leading zero", `{"event_type":"a","x":01}`, false},
	{"leading plus", `{"event_type":"a","x":+1}`, false},
	{"no fraction", `{"event_type":"a","x":1.}`, false},
	{"no whole part", `{"event_type":"a","x":.5}`, false},
	{"no exponent", `{"event_type":"a","x":1e}`, false},
	{"only a minus", `{"event_type":"a","x":-}`, false},
	{"a wrong literal", `{"event_type":"a","x":nul}`, false},
	{"a literal that goes on", `{"event_type":"a","x":nullx}`, false},
	{"comma at the end", `{"event_type":"a",}`, false},
	{"comma at the end of a list", `{"event_type":"a","x":[1,]}`, false},
	{"two commas", `{"event_type":"a",,"x":1}`, false},
	{"a bracket of the other kind", `{"event_type":"a","x":[1}}`, false},
	{"no value", `{"event_type":}`, false},
	{"no colon", `{"event_type" "a"}`, false},
	{"a name that is none", `{"event_type":"a",x:1}`, false},
	{"another kind of space", "{\"event_type\":\"a\",\v\"x\":1}", false},
	{"no end", `{"event_type":"a"`, false},
	{"no end of a text", `{"event_type":"a`, false},
	{"a list", `[1]`, false},
	{"nothing", ``, false},
}

func manyNames(n int) string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf(`"the property number %03d":1`, i))
	}
	return strings.Join(names, ",")
}

// What an Outliner reads is what the thorough way finds right, and makes the same event; what it does not read is given
// to that, so ParseEvent says the same of it.
func TestOutlinesAreAsStrictAsTheThoroughWay(t *testing.T) {
	for _, c := range outlineCases {
		t.Run(c.name, func(t *testing.T) {
			if read := sameOutlined(t, []byte(c.event)); read != c.read {
				t.Errorf("read: %v", read)
			}
		})
	}
	// Every byte of an event replaced by some others.
	for i := range len(benchmarkEvent) {
		for _, c := range []byte("\x00\x1f \"\\,:{}[]0eut\x7f\x80\xc3\xff") {
			changed := []byte(benchmarkEvent)
			changed[i] = c
			sameOutlined(t, changed)
		}
	}
}

// sameOutlined says whether an Outliner reads the whole of raw, and fails when that does not fit the thorough way.
func sameOutlined(t *testing.T, raw []byte) bool {
	t.Helper()
	trimmed := trimSpace(raw)
	var s Outliner
	o, end := s.Outline(trimmed)
	read := o.Read() && end == len(trimmed)
	want, problems := thoroughly(raw)
	if read {
		if err := check(trimmed); err != nil {
			t.Fatalf("%q is read, but: %v", raw, err)
		}
		if got, found := s.Event(trimmed, o); !reflect.DeepEqual(got, want) || !reflect.DeepEqual(found, problems) {
			t.Fatalf("%q\ngives %+v, %v\n want %+v, %v", raw, got, found, want, problems)
		}
		if problems == nil && o.Short() && !bytes.Equal(CutTexts(want.Raw), want.Raw) {
			t.Fatalf("%q is said to be short", raw)
		}
	}
	if got, found := ParseEvent(raw); !reflect.DeepEqual(got, want) || !reflect.DeepEqual(found, problems) {
		t.Fatalf("%q\nis parsed as %+v, %v\n want %+v, %v", raw, got, found, want, problems)
	}
	return read
}

// Events that stand one behind the other in one Outliner do not disturb each other, nor does one that is not read.
func TestOutlinesOfOneRequest(t *testing.T) {
	var s Outliner
	for range 2 { // the second time in used memory
		s.Reset()
		var outlines []Outline
		for _, c := range outlineCases {
			o, _ := s.Outline(trimSpace([]byte(c.event)))
			outlines = append(outlines, o)
		}
		events := make([]Event, len(outlines))
		for i, c := range outlineCases {
			if outlines[i].Read() && c.read {
				events[i], _ = s.Event(trimSpace([]byte(c.event)), outlines[i])
			}
		}
		for i, c := range outlineCases {
			if want, _ := thoroughly([]byte(c.event)); outlines[i].Read() && c.read && !reflect.DeepEqual(events[i], want) {
				t.Errorf("%s: %+v, want %+v", c.name, events[i], want)
			}
		}
	}
}

func FuzzOutline(f *testing.F) {
	for _, recorded := range sdkEvents(f) {
		f.Add([]byte(recorded.Event))
	}
	for _, c := range outlineCases {
		f.Add([]byte(c.event))
	}
	f.Fuzz(func(t *testing.T, raw []byte) { sameOutlined(t, raw) })
}

func BenchmarkOutline(b *testing.B) {
	raw := []byte(benchmarkEvent)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	var s Outliner
	for b.Loop() {
		s.Reset()
		if o, _ := s.Outline(raw); !o.Read() {
			b.Fatal("not read")
		}
	}
}
