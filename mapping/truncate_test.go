package mapping

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestTextsAreCutAt1024Characters(t *testing.T) {
	n := func(s string, n int) string { return strings.Repeat(s, n) }
	tests := []struct{ name, event, want string }{ // "" = as it was
		{"1,023", `{"a":"` + n("x", 1023) + `"}`, ""},
		{"1,024", `{"a":"` + n("x", 1024) + `"}`, ""},
		{"1,025", `{"a":"` + n("x", 1025) + `"}`, `{"a":"` + n("x", 1024) + `"}`},
		{"many more", `{"a":"` + n("x", 100_000) + `","b":1}`, `{"a":"` + n("x", 1024) + `","b":1}`},
		{"characters of two bytes", `{"a":"` + n("é", 1024) + `"}`, ""},
		{"one too many of them", `{"a":"` + n("é", 1025) + `"}`, `{"a":"` + n("é", 1024) + `"}`},
		{"of four bytes", `{"a":"` + n("😀", 1025) + `"}`, `{"a":"` + n("😀", 1024) + `"}`},
		{"escapes are one", `{"a":"` + n(`\n`, 1024) + `"}`, ""},
		{"and are not cut in two", `{"a":"` + n("x", 1023) + `\"\\"}`, `{"a":"` + n("x", 1023) + `\""}`},
		{"of six bytes", `{"a":"` + n(`\u00e9`, 1025) + `"}`, `{"a":"` + n(`\u00e9`, 1024) + `"}`},
		{"pairs of surrogates are one", `{"a":"` + n(`\ud83d\ude00`, 1025) + `"}`, `{"a":"` + n(`\ud83d\ude00`, 1024) + `"}`},
		{"in depth", `{"p":{"$set":{"a":["` + n("x", 1030) + `",{"b":"` + n("y", 1030) + `"}]}},"c":"d"}`,
			`{"p":{"$set":{"a":["` + n("x", 1024) + `",{"b":"` + n("y", 1024) + `"}]}},"c":"d"}`},
		{"not names", `{"` + n("x", 1030) + `":1,"p":{"` + n("y", 1030) + `" : "` + n("z", 1030) + `"}}`,
			`{"` + n("x", 1030) + `":1,"p":{"` + n("y", 1030) + `" : "` + n("z", 1024) + `"}}`},
		{"not IDs", `{"user_id":"` + n("x", 1030) + `","insert_id":"` + n("x", 1030) + `","uuid":"` + n("x", 1030) + `","device_id":"` + n("x", 1030) + `"}`, ""},
		{"not the receipts of a store", `{"event_properties":{"$receipt" : "` + n("x", 3000) + `","$receiptSig":"` + n("y", 3000) + `","a":"` + n("z", 1030) + `"}}`,
			`{"event_properties":{"$receipt" : "` + n("x", 3000) + `","$receiptSig":"` + n("y", 3000) + `","a":"` + n("z", 1024) + `"}}`},
		{"nor those of long ago", `{"api_properties":{"special":"revenue_amount","receipt":"` + n("x", 3000) + `"}}`, ""},
		{"a text that is called so", `{"a":["$receipt","` + n("x", 1030) + `"]}`, `{"a":["$receipt","` + n("x", 1024) + `"]}`},
		{"many short ones", `{"a":["` + n(`xxxxxxxx","`, 500) + `"]}`, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			want := test.want
			if want == "" {
				want = test.event
			}
			if got := string(CutTexts([]byte(test.event))); got != want {
				t.Errorf("got %.80s… of %d bytes, want %d", got, len(got), len(want))
			}
		})
	}
}

// What is cut is JSON, has no longer text, and is not cut again.
func FuzzCutTexts(f *testing.F) {
	f.Add("x", 1025)
	f.Add("😀é\\\"\n", 300)
	f.Add("\ud7ff\x00 ", 1024)
	f.Fuzz(func(t *testing.T, text string, times int) {
		if times < 0 || times > 3000 || len(text) > 64 {
			return
		}
		raw, err := json.Marshal(map[string]any{"event_type": "E", text: strings.Repeat(text, times), "p": []string{text, strings.Repeat(text, times)}})
		if err != nil {
			t.Fatal(err)
		}
		e, problems := ParseEvent(raw)
		if problems != nil {
			return // text was a name of ours
		}
		cut := CutTexts(e.Raw)
		if len(CutTexts(cut)) != len(cut) {
			t.Fatal("cut twice")
		}
		// Not into a struct: text may be "P", and encoding/json takes that for p.
		got, all := map[string]any{}, map[string]any{}
		if err := json.Unmarshal(cut, &got); err != nil {
			t.Fatalf("%v: %q", err, cut)
		}
		if err := json.Unmarshal(e.Raw, &all); err != nil {
			t.Fatal(err)
		}
		whole, kept := []rune(all["p"].([]any)[1].(string)), got["p"].([]any)[1].(string)
		if string(whole[:min(len(whole), 1024)]) != kept {
			t.Fatalf("%d characters became %d", len(whole), len([]rune(kept)))
		}
	})
}
