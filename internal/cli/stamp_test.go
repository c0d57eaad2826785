package cli

import "testing"

// A version given to the linker wins over what Go recorded.
func TestStamp(t *testing.T) {
	t.Cleanup(func() { stamp = "" })
	stamp = "v1.2.3"
	if got := Version(); got != "v1.2.3" {
		t.Errorf("Version() = %q, want v1.2.3", got)
	}
	stamp = ""
	if got := Version(); got == "v1.2.3" || got == "" {
		t.Errorf("Version() = %q without a stamp", got)
	}
}
