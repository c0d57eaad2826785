package audit_test

import (
	"context"
	"path/filepath"
	"testing"

	"kms-plugin.io/internal/audit"
)

// What a call pays for its record; the chain is made by the goroutine that writes.
func BenchmarkRecord(b *testing.B) {
	l, err := audit.Open(audit.Config{Path: filepath.Join(b.TempDir(), "a"), Sync: audit.SyncNone})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	r := audit.Record{Op: "decrypt", UID: "0f6b1cb4-8f0c-4a52-a7b4-5d3f3f8d2f0e", KeyID: "prod:00112233445566778899aabbccddeeff",
		KEK: "awskms:aws:eu-west-1:111122223333:1234abcd-12ab-34cd-56ef-1234567890ab", LocalKEK: "0123456789abcdef", Outcome: "ok"}
	b.ReportAllocs()
	for b.Loop() {
		if err := l.Record(r); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	cancel()
	<-done
	b.ReportMetric(float64(l.Failures())/float64(b.N), "lost/op")
}
