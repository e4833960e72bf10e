package ingest

import (
	"fmt"
	"strings"
	"testing"
)

// malformed are bodies for /2/httpapi that must all be refused, nothing stored.
func malformed() map[string]string {
	deep := func(open, inside, end string, n int) string {
		return strings.Repeat(open, n) + inside + strings.Repeat(end, n)
	}
	with := func(member string) string { return `{"api_key":"` + key + `","events":[` + good + `],` + member + `}` }
	event := func(member string) string {
		return batch(good, `{"event_type":"E","user_id":"user-1",`+member+`}`)
	}
	bodies := map[string]string{
		// not one JSON object
		"empty": ``, "space only": " \r\n\t ", "null": `null`, "true": `true`, "a number": `42`, "a string": `"events"`,
		"an array": `[]`, "an array of events": `[` + good + `]`, "one bare event": good, "an empty object": `{}`,
		"open brace": `{`, "close brace": `}`, "two objects": batch(good) + batch(good), "trailing text": batch(good) + `x`,
		"trailing brace": batch(good) + `}`, "trailing comma": batch(good) + `,`, "trailing NUL": batch(good) + "\x00",
		"leading NUL": "\x00" + batch(good), "byte order mark": "\ufeff" + batch(good), "form": `api_key=` + key + `&event=[]`,
		"HTML": `<html><body>400</body></html>`, "two lines of JSON": good + "\n" + good, "a quoted body": `"` + strings.ReplaceAll(batch(good), `"`, `\"`) + `"`,
		"UTF-16": utf16(batch(good)), "gzip without its header": "\x1f\x8b\x08\x00\x00\x00\x00\x00", "single quotes": strings.ReplaceAll(batch(good), `"`, `'`),
		"comments": `{/* hello */"api_key":"` + key + `","events":[` + good + `]}`, "line comment": "// hello\n" + batch(good),
		"no quotes around names": `{api_key:"` + key + `",events:[` + good + `]}`, "hidden space": strings.Replace(batch(good), `,"events"`, ",\u00a0\"events\"", 1),
		"form feed": strings.Replace(batch(good), `,"events"`, ",\f\"events\"", 1), "vertical tab": "\v" + batch(good),

		// its members
		"no comma": strings.Replace(batch(good), `,"events"`, `"events"`, 1), "two commas": strings.Replace(batch(good), `,"events"`, `,,"events"`, 1),
		"leading comma": `{,` + batch(good)[1:], "comma before the end": strings.TrimSuffix(batch(good), `}`) + `,}`, "no colon": strings.Replace(batch(good), `"events":`, `"events"`, 1),
		"two colons": strings.Replace(batch(good), `"events":`, `"events"::`, 1), "equals sign": strings.Replace(batch(good), `"events":`, `"events"=`, 1),
		"semicolon": strings.Replace(batch(good), `,"events"`, `;"events"`, 1), "a name that is a number": with(`7:8`), "a name that is null": with(`null:8`),
		"a name without an end": with(`"x`), "a name with a bad escape": with(`"\x":1`), "a name with bad UTF-8": with("\"\xff\":1"), "a name with half a surrogate": with(`"\ud83d":1`),
		"a name with a line break": with("\"a\nb\":1"), "a member without a value": with(`"x":`), "a member that is a bracket": with(`"x":]`),
		"bad number": with(`"x":01`), "bare plus": with(`"x":+1`), "hex": with(`"x":0x10`), "bare point": with(`"x":.5`), "NaN": with(`"x":NaN`), "Infinity": with(`"x":-Infinity`),
		"undefined": with(`"x":undefined`), "True": with(`"x":True`), "nul": with(`"x":nul`), "bad escape": with(`"x":"\q"`), "short escape": with(`"x":"\u12"`),
		"raw control character": with("\"x\":\"a\x01b\""), "bad UTF-8": with("\"x\":\"\xc3\x28\""), "overlong UTF-8": with("\"x\":\"\xc0\xaf\""), "surrogates in UTF-8": with("\"x\":\"\xed\xa0\x80\""),
		"wrong bracket": with(`"x":[1}`), "wrong brace": with(`"x":{"a":1]`), "nested name twice": with(`"x":{"a":1,"a":2}`), "nested trailing comma": with(`"x":[1,]`),
		"unknown name twice": with(`"x":1,"x":2`), "unknown name twice in other letters": with(`"x":1,"\u0078":2`), "api_key twice": with(`"api_key":"` + key + `"`),
		"api_key twice, hidden": with(`"api\u005fkey":"` + key + `"`), "events twice": with(`"events":[` + good + `]`), "events twice, one empty": with(`"events":[]`),
		"options twice": with(`"options":{},"options":{}`), "upload time twice": with(`"client_upload_time":"","client_upload_time":""`),
		"a hundred names, the last twice": with(manyNames(100) + `,"n99":1`), "10,000 deep beside the events": with(`"x":` + deep(`[`, `1`, `]`, 10000)),
		"10,000 deep objects beside the events": with(`"x":` + deep(`{"a":`, `1`, `}`, 10000)), "10,000 deep without an end": with(`"x":` + strings.Repeat(`[`, 10000)),

		// the key
		"no api_key": `{"events":[` + good + `]}`, "api_key null": `{"api_key":null,"events":[` + good + `]}`, "api_key empty": `{"api_key":"","events":[` + good + `]}`,
		"api_key a number": `{"api_key":7,"events":[` + good + `]}`, "api_key true": `{"api_key":true,"events":[` + good + `]}`, "api_key an array": `{"api_key":["` + key + `"],"events":[` + good + `]}`,
		"api_key an object": `{"api_key":{},"events":[` + good + `]}`, "api_key unknown": `{"api_key":"x","events":[` + good + `]}`, "api_key with a space": `{"api_key":"` + key + ` ","events":[` + good + `]}`,
		"api_key in capitals": `{"api_key":"` + strings.ToUpper(key) + `","events":[` + good + `]}`, "api_key cut": `{"api_key":"` + key[:31] + `","events":[` + good + `]}`,
		"api_key with half a surrogate": `{"api_key":"` + key + `\ud83d","events":[` + good + `]}`, "API_KEY": `{"API_KEY":"` + key + `","events":[` + good + `]}`,
		"api_key with a NUL": `{"api_key":"` + key + `\u0000","events":[` + good + `]}`, "api_key bare": `{"api_key":` + key + `,"events":[` + good + `]}`,
		"api_key inside the event only": `{"events":[{"event_type":"E","user_id":"user-1","api_key":"` + key + `"}]}`, "a megabyte of api_key": `{"api_key":"` + strings.Repeat("k", 1<<19) + `","events":[` + good + `]}`,

		// options
		"options an array": with(`"options":[]`), "options a string": with(`"options":"{}"`), "options a number": with(`"options":1`), "min_id_length a string": with(`"options":{"min_id_length":"1"}`),
		"min_id_length negative": with(`"options":{"min_id_length":-1}`), "min_id_length a fraction": with(`"options":{"min_id_length":1.5}`), "min_id_length huge": with(`"options":{"min_id_length":1e400}`),
		"min_id_length beyond all": with(`"options":{"min_id_length":99999999999999999999}`), "min_id_length an object": with(`"options":{"min_id_length":{}}`),
		"min_id_length twice": with(`"options":{"min_id_length":1,"min_id_length":1}`),

		// the array
		"events null": `{"api_key":"` + key + `","events":null}`, "events empty": batch(), "events an object": `{"api_key":"` + key + `","events":{}}`, "events a string": `{"api_key":"` + key + `","events":"[]"}`,
		"events a number": `{"api_key":"` + key + `","events":1}`, "event singular": `{"api_key":"` + key + `","event":[` + good + `]}`, "Events": `{"api_key":"` + key + `","Events":[` + good + `]}`,
		"comma after the last event": batch(good + `,`), "comma before the first": batch(`,` + good), "two commas between": batch(good, ``, good), "no comma between": batch(good + good),
		"colon between": batch(good + `:` + good), "array without an end": `{"api_key":"` + key + `","events":[` + good, "array with a wrong end": `{"api_key":"` + key + `","events":[` + good + `}}`,
		"an array in the array": batch(`[` + good + `]`), "event null": batch(good, `null`), "event a number": batch(`7`, good), "event a string": batch(`"E"`), "event true": batch(`true`), "event nul": batch(`nul`),
		"event a word": batch(`word`), "event an empty object": batch(`{}`), "10,000 deep array of events": batch(deep(`[`, ``, `]`, 10000)), "2,001 events": batch(strings.Repeat(good+",", 2000) + good),

		// inside an event
		"event without an end": batch(`{"event_type":"E"`), "event with a wrong end": batch(`{"event_type":"E"]`), "event with a name twice": event(`"user_id":"user-2"`), "event with a hidden name twice": event(`"user\u005fid":"user-2"`),
		"event with a nested name twice": event(`"event_properties":{"a":1,"a":1}`), "event with bad UTF-8": event("\"event_properties\":{\"a\":\"\xff\"}"), "event with a bad UTF-8 name": event("\"event_properties\":{\"\xff\":1}"),
		"event with a control character": event("\"x\":\"\x02\""), "event with a bad number": event(`"x":1.`), "event with a bad escape": event(`"x":"\z"`), "event with a comment": event(`/**/"x":1`),
		"event with a trailing comma": event(`"x":1,`), "event with a missing value": event(`"x":`), "event with a missing colon": event(`"x" 1`), "event with a bare word": event(`"x":abc`), "event with an open string": event(`"x":"abc`),
		"event with NaN": event(`"x":NaN`), "event with a wrong bracket": event(`"x":[{]}`), "event 41 deep": event(`"event_properties":` + deep(`{"a":`, `1`, `}`, 41)), "event 41 lists deep": event(`"event_properties":{"a":` + deep(`[`, ``, `]`, 40) + `}`),
		"event 100 deep": event(`"user_properties":` + deep(`{"a":`, `1`, `}`, 100)), "event 10,000 deep": event(`"event_properties":` + deep(`{"a":`, `1`, `}`, 10000)), "event 100,000 deep": event(`"event_properties":` + deep(`[`, ``, `]`, 100000)),
		"no event_type": batch(`{"user_id":"user-1"}`), "event_type null": batch(`{"event_type":null,"user_id":"user-1"}`), "event_type empty": batch(`{"event_type":"","user_id":"user-1"}`), "event_type blank": batch(`{"event_type":" \t","user_id":"user-1"}`),
		"event_type a number": batch(`{"event_type":1,"user_id":"user-1"}`), "event_type an object": batch(`{"event_type":{},"user_id":"user-1"}`), "event_type in capitals": batch(`{"EVENT_TYPE":"E","user_id":"user-1"}`),
		"no id": batch(`{"event_type":"E"}`), "ids null": batch(`{"event_type":"E","user_id":null,"device_id":null}`), "user_id an object": batch(`{"event_type":"E","user_id":{}}`), "user_id an array": batch(`{"event_type":"E","user_id":["user-1"]}`),
		"user_id true": batch(`{"event_type":"E","user_id":true}`), "device_id an object": event(`"device_id":{"a":1}`), "user_id short": batch(`{"event_type":"E","user_id":"abc"}`), "user_id reserved": batch(`{"event_type":"E","user_id":"None"}`),
		"user_id a megabyte": batch(`{"event_type":"E","user_id":"` + strings.Repeat("u", 1<<19) + `"}`), "time a text": event(`"time":"2026-11-23T11:16:57Z"`), "time a fraction": event(`"time":1795432617042.5`), "time negative": event(`"time":-5`),
		"time beyond all": event(`"time":1e400`), "time an object": event(`"time":{}`), "time true": event(`"time":true`), "event_properties a string": event(`"event_properties":"{}"`), "event_properties a number": event(`"event_properties":5`),
		"event_properties a list": event(`"event_properties":[1]`), "user_properties a string": event(`"user_properties":"plan"`), "user_properties a list": event(`"user_properties":[{}]`), "groups a string": event(`"groups":"Acme"`),
		"group_properties a number": event(`"group_properties":1`), "insert_id an object": event(`"insert_id":{}`), "insert_id true": event(`"insert_id":true`), "skip flag a string": event(`"$skip_user_properties_sync":"true"`),
		"revenue an object": event(`"revenue":{}`), "platform a list": event(`"platform":["Web"]`),
	}
	for i := range batch(good) {
		bodies[fmt.Sprintf("cut after %d bytes", i)] = batch(good)[:i]
	}
	return bodies
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	bodies := malformed()
	if len(bodies) < 100+len(batch(good)) {
		t.Fatalf("%d bodies", len(bodies))
	}
	for name, body := range bodies {
		t.Run(name, func(t *testing.T) {
			store := &memory{}
			h := New(options(), store)
			for _, path := range []string{"/2/httpapi", "/batch"} {
				status, answer := post(t, h, path, body)
				if status != 400 && status != 413 {
					t.Errorf("%s: %d %s, want 400 or 413", head(body), status, answer)
				}
				if reason := spins(status, []byte(answer)); reason != "" {
					t.Errorf("%s: %d %s: %s", head(body), status, answer, reason)
				}
				if len(answer) > 2000 {
					t.Errorf("%s: an answer of %d bytes", head(body), len(answer))
				}
			}
			if n := len(store.events()); n != 0 {
				t.Errorf("%s: %d events stored", head(body), n)
			}
			if door := h.Door(); door.Events != 0 || len(door.Refused) == 0 {
				t.Errorf("door %+v", door)
			}
		})
	}
}

// What looks odd and is right.
func TestOddRequestsAreTaken(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + `1` + strings.Repeat(`}`, n) }
	bodies := map[string]string{
		"space everywhere":       "\r\n{ \"api_key\" : \"" + key + "\" ,\t\"events\" : [ " + good + " ] }\n",
		"events before the key":  `{"events":[` + good + `],"api_key":"` + key + `"}`,
		"escaped names":          `{"api\u005fkey":"` + key + `","\u0065vents":[` + good + `]}`,
		"an escaped key":         `{"api_key":"\u0030` + key[1:] + `","events":[` + good + `]}`,
		"options null":           `{"api_key":"` + key + `","options":null,"events":[` + good + `]}`,
		"options unknown":        `{"api_key":"` + key + `","options":{"x":[1]},"events":[` + good + `]}`,
		"unknown members":        `{"api_key":"` + key + `",` + manyNames(100) + `,"events":[` + good + `]}`,
		"half a surrogate aside": `{"api_key":"` + key + `","x":"\ud83d","events":[` + good + `]}`,
		"half a surrogate":       batch(`{"event_type":"E","user_id":"user-1","event_properties":{"cut":"so\ud83d"}}`),
		"40 deep":                batch(`{"event_type":"E","user_id":"user-1","event_properties":` + deep(40) + `}`),
		"brackets in text":       batch(`{"event_type":"E","user_id":"user-1","x":"}]\"}]\\"}`),
		"nulls":                  batch(`{"event_type":"E","user_id":"user-1","device_id":null,"time":null,"groups":null,"plan":null}`),
		"numbers":                batch(`{"event_type":"E","user_id":"user-1","event_properties":{"a":1e400,"b":9007199254740993,"c":-0}}`),
		"an empty name":          batch(`{"event_type":"E","user_id":"user-1","event_properties":{"":1}}`),
		"PHP's empty object":     batch(`{"event_type":"E","user_id":"user-1","event_properties":[]}`),
	}
	for name, body := range bodies {
		t.Run(name, func(t *testing.T) {
			store := &memory{}
			if status, answer := post(t, New(options(), store), "/2/httpapi", body); status != 200 || len(store.events()) != 1 {
				t.Errorf("%s: %d %s", head(body), status, answer)
			}
		})
	}
}

func manyNames(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"n%d":{}`, i)
	}
	return b.String()[1:]
}

func utf16(ascii string) string {
	var b strings.Builder
	for _, c := range []byte(ascii) {
		b.WriteByte(c)
		b.WriteByte(0)
	}
	return b.String()
}
