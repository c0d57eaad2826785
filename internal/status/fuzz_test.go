package status

import (
	"io"
	"strings"
	"testing"
)

// Whatever answers at listenAddress: a report that can be printed, or an error.
func FuzzMetrics(f *testing.F) {
	f.Add("kms_plugin_ready 1\nkms_plugin_key_state{key=\"k\",op=\"wrap\",state=\"ok\"} 1\nkms_plugin_key_info{key=\"k\",role=\"write\",active=\"true\"} 1\nkms_plugin_last_good_probe_timestamp_seconds{key=\"k\"} 1e9\n")
	f.Add("kms_plugin_ready NaN\nkms_plugin_local_keks 1e300\nkms_plugin_key_state 1\n")
	f.Add("# TYPE kms_plugin_ready histogram\nkms_plugin_ready_bucket{le=\"1\"} 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := read(strings.NewReader(text))
		if err != nil {
			return
		}
		if err := (Report{Plugin: p}).Print(io.Discard); err != nil {
			t.Fatal(err)
		}
	})
}
