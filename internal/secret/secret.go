// Package secret holds the type of every value that must not be shown: tokens, passwords, keys, connection strings.
package secret

import (
	"fmt"
	"log/slog"
)

// Redacted stands wherever a secret would have been shown.
const Redacted = "REDACTED"

// Value is a secret. Formatting, logging and marshalling it give Redacted, so that a careless %v, a struct in a log
// line or a debug dump can't leak it; only Reveal gives it away, and is easy to search for.
type Value struct {
	plain string
}

// New wraps a plain text.
func New(plain string) Value { return Value{plain: plain} }

// Reveal returns the plain text. What it returns must not reach a log, an error, a metric or a table.
func (v Value) Reveal() string { return v.plain }

// Empty reports whether there is no text.
func (v Value) Empty() bool { return v.plain == "" }

// Len is the length of the plain text in bytes.
func (v Value) Len() int { return len(v.plain) }

// String implements fmt.Stringer.
func (Value) String() string { return Redacted }

// Format implements fmt.Formatter, so that every verb redacts: without it %#v and %x would print the field.
func (Value) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(Redacted)) }

// LogValue implements slog.LogValuer.
func (Value) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalJSON implements json.Marshaler.
func (Value) MarshalJSON() ([]byte, error) { return []byte(`"` + Redacted + `"`), nil }

// MarshalText implements encoding.TextMarshaler.
func (Value) MarshalText() ([]byte, error) { return []byte(Redacted), nil }
