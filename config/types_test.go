package config

import (
	"math"
	"testing"
	"time"
)

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0s": 0, "500ms": 500 * time.Millisecond, "30s": 30 * time.Second, "72h": 72 * time.Hour,
		"90d": 90 * day, "1d12h": 36 * time.Hour, "0d": 0, "1h30m": 90 * time.Minute, "1.5h": 90 * time.Minute,
		"106751d": 106751 * day,
	} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || time.Duration(d) != want {
			t.Errorf("%q = %v, %v, want %v", text, time.Duration(d), err, want)
		}
		var again Duration
		if err := again.UnmarshalText([]byte(d.String())); err != nil || again != d {
			t.Errorf("%q prints as %q, which reads as %v, %v", text, d, again, err)
		}
	}
	for _, text := range []string{"", "5", "0", "1.5", "-1", "-1h", "d", "1 d", "-1d", "1d-1h", "1d+1h", "1d1d", "1d2", "1.5d", "106752d", "106751d24h", "99999999999d", "1w", "1y", "inf", "NaN", "1h "} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is read as %v", text, d)
		}
	}
	for d, want := range map[time.Duration]string{72 * time.Hour: "72h", 5 * time.Minute: "5m", 90 * day: "90d", 24 * time.Hour: "24h", 0: "0s", 90 * time.Minute: "1h30m", time.Hour + time.Second: "1h0m1s"} {
		if got := Duration(d).String(); got != want {
			t.Errorf("%v prints as %q, want %q", d, got, want)
		}
	}
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]ByteSize{
		"0": 0, "1": 1, "20GiB": 20 << 30, "128MiB": 128 << 20, "512MB": 512e6, "1.5GiB": 3 << 29, "2 TiB": 2 << 40,
		"7kB": 7000, "7KB": 7000, "7kib": 7 << 10, "1TB": 1e12, "3B": 3, "9223372036854775807": math.MaxInt64,
	} {
		var b ByteSize
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("%q = %d, %v, want %d", text, b, err, want)
		}
		var again ByteSize
		if err := again.UnmarshalText([]byte(b.String())); err != nil || again != b {
			t.Errorf("%q prints as %q, which reads as %d, %v", text, b, again, err)
		}
	}
	for _, text := range []string{"", "GiB", "-1", "-1GiB", "1G", "1M", "1 gig", "1.5", "1.0001B", "1e3", "9223372036854775808", "8388608TiB", "1PiB", "0x10", "1..2MB", ".", "1GiBs"} {
		var b ByteSize
		if err := b.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is read as %d", text, b)
		}
	}
	for b, want := range map[ByteSize]string{20 << 30: "20GiB", 128 << 20: "128MiB", 512e6: "512MB", 1025: "1025B", 0: "0"} {
		if got := b.String(); got != want {
			t.Errorf("%d prints as %q, want %q", int64(b), got, want)
		}
	}
	var none OptionalByteSize
	if err := none.UnmarshalText(nil); err != nil || none != 0 || none.String() != "" {
		t.Errorf("absent: %v, %v", none, err)
	}
	if err := none.UnmarshalText([]byte("1GiB")); err != nil || none.String() != "1GiB" {
		t.Errorf("1GiB: %v, %v", none, err)
	}
}

func TestNearest(t *testing.T) {
	known := []string{"site_id", "region", "api_key", "api_key_file", "identifier", "requests_per_second"}
	for written, want := range map[string]string{
		"siteid": "site_id", "site-id": "site_id", "Region": "region", "apikey": "api_key", "apiKeyFile": "api_key_file",
		"identifer": "identifier", "requests_per_sec": "requests_per_second", "colour": "", "x": "", "id": "",
	} {
		if got, _ := nearest(written, known); got != want {
			t.Errorf("nearest(%q) = %q, want %q", written, got, want)
		}
	}
}
