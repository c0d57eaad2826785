package keys

import (
	"fmt"
	"log/slog"
)

const redacted = "REDACTED"

// Secret is plaintext key material: a DEK seed, a local KEK, a canary. It
// prints as REDACTED with every verb and encoder, so that a careless log line
// or error leaks nothing.
type Secret []byte

// Format implements fmt.Formatter for every verb, %x and %q included.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText keeps encoders (JSON and YAML among them) from printing the bytes.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue implements slog.LogValuer.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// Destroy overwrites the bytes. It is best effort: the runtime, gRPC and TLS
// may hold copies that this process cannot reach.
func (s Secret) Destroy() { clear(s) }
