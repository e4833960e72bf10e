package config

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// Secret holds a credential and never shows it: every way of printing, logging or
// encoding it gives "[redacted]". Only Reveal hands it out.
type Secret struct {
	// A pointer, because fmt cannot call methods on a Secret in somebody's unexported
	// field: it would print a string there, but of a pointer only the address.
	value *string
}

// NewSecret wraps value; "" is no credential.
func NewSecret(value string) Secret {
	if value == "" {
		return Secret{}
	}
	return Secret{&value}
}

// Reveal returns the credential itself, "" when there is none.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero says whether there is no credential.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

func (s Secret) String() string   { return redacted }
func (s Secret) GoString() string { return redacted }

// Format covers every verb, %x and %d too.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

func (s Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

func (s *Secret) UnmarshalText(text []byte) error {
	*s = NewSecret(string(text))
	return nil
}
