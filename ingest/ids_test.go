package ingest

import (
	"strings"
	"testing"
)

func TestIDs(t *testing.T) {
	long := strings.Repeat("x", 1025)
	tests := []struct {
		name, members, options string
		user, device           string // as taken
		refused                string // "" = taken
	}{
		{"both good", `"user_id":"user-1","device_id":"device-1"`, ``, "user-1", "device-1", ""},
		{"user only", `"user_id":"user-1"`, ``, "user-1", "", ""},
		{"device only", `"device_id":"device-1"`, ``, "", "device-1", ""},
		{"null is absent", `"user_id":null,"device_id":"device-1"`, ``, "", "device-1", ""},
		{"empty beside a good one is absent", `"user_id":"user-1","device_id":""`, ``, "user-1", "", ""},
		{"a short one beside a good one is dropped", `"user_id":"abc","device_id":"device-1"`, ``, "", "device-1", ""},
		{"a reserved one beside a good one is dropped", `"user_id":"user-1","device_id":"00000000-0000-0000-0000-000000000000"`, ``, "user-1", "", ""},
		{"numbers become digits", `"user_id":1234567,"device_id":"device-1"`, ``, "1234567", "device-1", ""},
		{"long numbers keep theirs", `"user_id":12345678901234567890`, ``, "12345678901234567890", "", ""},
		{"characters count, not bytes", `"user_id":"äöüßé"`, ``, "äöüßé", "", ""},
		{"five is enough", `"user_id":"12345"`, ``, "12345", "", ""},
		{"the minimum is an option", `"user_id":"u1"`, `{"min_id_length":1}`, "u1", "", ""},
		{"also upwards", `"user_id":"user-1","device_id":"device-0001"`, `{"min_id_length":8}`, "", "device-0001", ""},
		{"0 lets all pass", `"user_id":"u"`, `{"min_id_length":0}`, "u", "", ""},
		{"null is the default", `"user_id":"user-1"`, `{"min_id_length":null}`, "user-1", "", ""},
		{"1,024 characters", `"user_id":"` + long[1:] + `"`, ``, long[1:], "", ""},
		{"four short characters", `"user_id":"äöüß"`, ``, "", "", `"events_with_invalid_id_lengths":{"user_id":[0]}`},
		{"short numbers", `"user_id":1234`, ``, "", "", `"events_with_invalid_id_lengths":{"user_id":[0]}`},
		{"both short", `"user_id":"a","device_id":"b"`, ``, "", "", `"events_with_invalid_fields":{"device_id":[0],"user_id":[0]}`},
		{"short by the option", `"user_id":"user-1"`, `{"min_id_length":8}`, "", "", `"events_with_invalid_id_lengths":{"user_id":[0]}`},
		{"no id", `"x":1`, ``, "", "", `"events_with_missing_fields":{"device_id":[0],"user_id":[0]}`},
		{"empty ids", `"user_id":"","device_id":""`, ``, "", "", `"events_with_missing_fields":{"device_id":[0],"user_id":[0]}`},
		{"anonymous", `"user_id":"anonymous"`, ``, "", "", `"events_with_invalid_fields":{"user_id":[0]}`},
		{"Unknown", `"user_id":"Unknown"`, ``, "", "", `"events_with_invalid_fields":{"user_id":[0]}`},
		{"lmy47d", `"device_id":"LMY47D"`, ``, "", "", `"events_with_invalid_fields":{"device_id":[0]}`},
		{"no advertising id", `"device_id":"00000000-0000-0000-0000-000000000000"`, ``, "", "", `"events_with_invalid_fields":{"device_id":[0]}`},
		{"0 whatever the minimum", `"user_id":0`, `{"min_id_length":1}`, "", "", `"events_with_invalid_fields":{"user_id":[0]}`},
		{"true is no id", `"user_id":true,"device_id":"device-1"`, ``, "", "", `"events_with_invalid_fields":{"user_id":[0]}`},
		{"1,025 characters", `"user_id":"` + long + `"`, ``, "", "", `"events_with_invalid_fields":{"user_id":[0]}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := &memory{}
			body := batch(`{"event_type":"E",` + test.members + `}`)
			if test.options != "" {
				body = strings.TrimSuffix(body, "}") + `,"options":` + test.options + `}`
			}
			status, answer := post(t, New(options(), store), "/2/httpapi", body)
			if test.refused != "" {
				if status != 400 || !strings.Contains(answer, test.refused) {
					t.Errorf("%s: %d %s, want 400 with %s", head(test.members), status, answer, test.refused)
				}
				return
			}
			if status != 200 {
				t.Fatalf("%s: %d %s, want 200", head(test.members), status, answer)
			}
			if e := store.events()[0]; e.UserID != test.user || e.DeviceID != test.device {
				t.Errorf("%s: user %q, device %q; want %q, %q", head(test.members), e.UserID, e.DeviceID, test.user, test.device)
			}
		})
	}
}

func TestEveryReservedIDIsRefused(t *testing.T) {
	for id := range noIDs {
		for _, id := range []string{id, strings.ToUpper(id)} {
			body := strings.TrimSuffix(batch(`{"event_type":"E","user_id":"`+id+`"}`), "}") + `,"options":{"min_id_length":1}}`
			if status, answer := post(t, New(options(), &memory{}), "/2/httpapi", body); status != 400 {
				t.Errorf("%q: %d %s", id, status, answer)
			}
		}
	}
}
