package mapping

import (
	"fmt"
	"strings"
	"testing"
)

// benchmarkEvent is a browser event of 700 bytes with six properties of its own.
const benchmarkEvent = `{"user_id":"user-000001","device_id":"3f0c6a55-9a0a-4d6e-8f3e-0d1f6d0f6f51","session_id":1795432948279,"time":1795432948281,` +
	`"platform":"Web","os_name":"Chrome","os_version":"126","device_model":"Linux","language":"en-US","ip":"$remote",` +
	`"user_agent":"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",` +
	`"insert_id":"5dca5b53-1012-4b0b-bc35-f5143b751fc5","event_type":"Order Completed","event_properties":{"total":129.95,` +
	`"currency":"EUR","items":[{"sku":"A-1","n":2},{"sku":"B-7","n":1}],"coupon":"SUMMER","first":false,"note":"gr\u00fc\u00dfe"},` +
	`"event_id":17,"library":"amplitude-ts/2.45.0"}`

const benchmarkIdentify = `{"$set":{"plan":"pro","role":"admin","city":"Oslo"},"$setOnce":{"first_seen":"2024-01-01"},"$add":{"logins":1}}`

func benchmarkProperties(n int) []byte {
	var parts []string
	for i := range n {
		parts = append(parts, fmt.Sprintf(`"property %d":"value number %d"`, i, i))
	}
	parts = append(parts, `"email":"ada@example.com"`, `"plan":"pro"`, `"role":"admin"`, `"city":"Oslo"`, `"first_seen":"2024"`, `"logins":41`)
	return []byte("{" + strings.Join(parts, ",") + "}")
}

func BenchmarkParseEvent(b *testing.B) {
	raw := []byte(benchmarkEvent)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, problems := ParseEvent(raw); problems != nil {
			b.Fatal(problems)
		}
	}
}

func BenchmarkApplyOperations(b *testing.B) {
	for _, n := range []int{0, 14, 100} {
		before := benchmarkProperties(n)
		b.Run(fmt.Sprintf("changed/%d", n+6), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ApplyOperations(nil, before, []byte(benchmarkIdentify)); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("same/%d", n+6), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ApplyOperations(nil, before, []byte(`{"plan":"pro","$set":{"role":"admin"}}`)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func benchmarkRecord() Record {
	return Record{ID: EventID("app", "device", "d", "i"), Received: 1795432948999, UserID: "user-000001",
		DeviceID: "3f0c6a55-9a0a-4d6e-8f3e-0d1f6d0f6f51", Time: 1795432948281, Address: "203.0.113.9",
		Properties: benchmarkProperties(14), Raw: []byte(benchmarkEvent)}
}

func BenchmarkBody(b *testing.B) {
	record := benchmarkRecord()
	body := record.AppendBody(nil)
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		var space []byte
		for b.Loop() {
			space = record.AppendBody(space[:0])
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		var r Record
		for b.Loop() {
			if err := r.DecodeBody(body); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkMap(b *testing.B) {
	rules, err := Compile(Spec{
		Identifier: "user.email", SendEvents: true, SendUsers: true,
		Select: []SelectSpec{{Event: []string{"Signed Up", "Order *"},
			Where: []WhereSpec{{Path: "event.total", Op: ">=", Value: int64(10)}, {Path: "user.plan", Op: "is", Value: []any{"pro", "team"}}}}},
		EventProperties: []string{"total", "currency", "items"}, EventFields: []string{"revenue", "os"},
		UserProperties: []string{"email", "plan", "role", "logins", "city"},
	})
	if err != nil {
		b.Fatal(err)
	}
	record := benchmarkRecord()
	id, reason := rules.Identifier(&record)
	if reason != "" {
		b.Fatal(reason)
	}
	first, err := rules.Map(&record, id, nil)
	if err != nil || len(first.Operations) != 2 {
		b.Fatal(err, first)
	}
	b.Run("event and identify", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			rules.Map(&record, id, nil)
		}
	})
	b.Run("event, user unchanged", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			rules.Map(&record, id, first.Sent)
		}
	})
	b.Run("identifier", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			rules.Identifier(&record)
		}
	})
}

// BenchmarkMapAll is what most people begin with: all properties of both, of which one of the user's changes with each event.
func BenchmarkMapAll(b *testing.B) {
	rules, err := Compile(Spec{
		Identifier: "user_id", SendEvents: true, SendUsers: true, Select: []SelectSpec{{Event: []string{"*"}}},
		EventProperties: []string{"*"}, UserProperties: []string{"*"},
	})
	if err != nil {
		b.Fatal(err)
	}
	record := Record{ID: EventID("app", "device", "d", "i"), Received: 1795432948999, UserID: "user-000000001", DeviceID: "dev-000000001",
		Time: 1795432948281, Properties: []byte(`{"logins":10000001,"plan":"premium"}`), Raw: []byte(`{"user_id":"user-000000001","device_id":"dev-000000001",` +
			`"event_type":"Product Viewed","time":1795432948281,"insert_id":"00000000000000000000aaaa","session_id":1700000012345,"app_version":"4.12.3",` +
			`"platform":"iOS","os_name":"ios","os_version":"17.4.1","device_brand":"Apple","device_model":"iPhone15,2","country":"Germany","city":"Berlin",` +
			`"language":"de","ip":"203.0.113.7","user_properties":{"plan":"premium","logins":10000001},"event_properties":{"seq":1000000000001,` +
			`"sent":1795432948281000,"product_id":"sku-0012345","category":"amber","price":17.42,"currency":"EUR","position":4,"in_stock":true,` +
			`"city":"Osaka","p0":"basin-cedar 123456","p1":"delta-ember 123","x":"abcdefghijklmnopqrstuvwxyz"}}`)}
	before := record
	before.Properties = []byte(`{"logins":10000000,"plan":"premium"}`)
	id, _ := rules.Identifier(&record)
	first, err := rules.Map(&before, id, nil)
	if err != nil || len(first.Operations) != 2 {
		b.Fatal(err, first)
	}
	b.ReportAllocs()
	for b.Loop() {
		_, _ = rules.Map(&record, id, first.Sent) // it was right before
	}
}

func BenchmarkEventID(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		EventID("app", "device", "3f0c6a55-9a0a-4d6e-8f3e-0d1f6d0f6f51", "5dca5b53-1012-4b0b-bc35-f5143b751fc5")
	}
}
