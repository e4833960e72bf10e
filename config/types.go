package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is written with its unit: "500ms", "30s", "72h", "90d" (days of 24 hours).
// A number alone is refused, since nobody can know whether seconds were meant.
type Duration time.Duration

const day = 24 * time.Hour

var errDuration = errors.New(`not a duration: write a number and its unit, such as "500ms", "30s", "72h" or "90d"`)

// UnmarshalText reads a duration, at least 0 and at most about 292 years.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		return fmt.Errorf(`a duration needs a unit: write "%ss" if seconds are meant`, s)
	}
	var total time.Duration
	if days, rest, found := strings.Cut(s, "d"); found {
		n, err := strconv.ParseUint(days, 10, 32)
		if err != nil || n > uint64(math.MaxInt64/day) {
			return errDuration
		}
		total, s = time.Duration(n)*day, rest
		if strings.HasPrefix(s, "-") || strings.HasPrefix(s, "+") {
			return errDuration
		}
	}
	if s != "" || total == 0 && len(text) == 0 {
		part, err := time.ParseDuration(s)
		if err != nil {
			return errDuration
		}
		if part < 0 {
			return errors.New("a duration cannot be negative")
		}
		if total > math.MaxInt64-part {
			return errDuration
		}
		total += part
	}
	*d = Duration(total)
	return nil
}

// String writes d as it would be written in a configuration, without zero parts.
func (d Duration) String() string {
	t := time.Duration(d)
	if t >= 7*day && t%day == 0 {
		return strconv.FormatInt(int64(t/day), 10) + "d"
	}
	s := t.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// ByteSize is a number of bytes, written "20GiB", "512MB" or as a plain number of
// bytes. KiB, MiB, GiB, TiB are powers of 1024; kB, MB, GB, TB powers of 1000.
type ByteSize int64

const (
	KiB ByteSize = 1 << 10
	MiB ByteSize = 1 << 20
	GiB ByteSize = 1 << 30
	TiB ByteSize = 1 << 40
)

// byteUnits is ordered as String tries them.
var byteUnits = []struct {
	name  string
	bytes ByteSize
}{
	{"TiB", TiB}, {"TB", 1e12}, {"GiB", GiB}, {"GB", 1e9},
	{"MiB", MiB}, {"MB", 1e6}, {"KiB", KiB}, {"kB", 1e3}, {"B", 1},
}

var errByteSize = errors.New(`not a size: write a number and its unit, such as "128MiB", "20GiB" or "512MB", or a plain number of bytes`)

// UnmarshalText reads a size, at least 0.
func (b *ByteSize) UnmarshalText(text []byte) error {
	s := string(text)
	digits := s[:len(s)-len(strings.TrimLeft(s, "0123456789."))]
	name := strings.TrimSpace(s[len(digits):])
	unit := ByteSize(0)
	for _, u := range byteUnits {
		if strings.EqualFold(name, u.name) || name == "" {
			unit = u.bytes
		}
	}
	if unit == 0 {
		return errByteSize
	}
	if n, err := strconv.ParseInt(digits, 10, 64); err == nil && n <= math.MaxInt64/int64(unit) {
		*b = ByteSize(n) * unit
		return nil
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil || f*float64(unit) >= math.MaxInt64 || math.Trunc(f*float64(unit)) != f*float64(unit) {
		return errByteSize
	}
	*b = ByteSize(f * float64(unit))
	return nil
}

// String writes b exactly, in the largest unit that divides it.
func (b ByteSize) String() string {
	for _, u := range byteUnits {
		if b != 0 && b%u.bytes == 0 {
			return strconv.FormatInt(int64(b/u.bytes), 10) + u.name
		}
	}
	return "0"
}

func (b ByteSize) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// OptionalByteSize is a ByteSize that may be absent, written "": 0 here.
type OptionalByteSize ByteSize

func (b *OptionalByteSize) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*b = 0
		return nil
	}
	return (*ByteSize)(b).UnmarshalText(text)
}

// String is "" when absent.
func (b OptionalByteSize) String() string {
	if b == 0 {
		return ""
	}
	return ByteSize(b).String()
}

func (b OptionalByteSize) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// Percent is a share, written "90%": a whole number from 0 to 100.
type Percent int

func (p *Percent) UnmarshalText(text []byte) error {
	digits, written := strings.CutSuffix(string(text), "%")
	n, err := strconv.ParseUint(digits, 10, 8)
	if err != nil || !written || n > 100 {
		return errors.New(`not a share: write "90%", from "0%" to "100%"`)
	}
	*p = Percent(n)
	return nil
}

func (p Percent) String() string { return strconv.Itoa(int(p)) + "%" }

func (p Percent) MarshalText() ([]byte, error) { return []byte(p.String()), nil }
