package canary

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Print writes the report for people.
func (r *Report) Print(w io.Writer) error {
	var b strings.Builder
	for _, x := range r.Writes {
		ok := 0
		for _, read := range x.Reads {
			if read.OK {
				ok++
			}
		}
		fmt.Fprintf(&b, "%s: written in %.3f s, read by %d of %d", x.Server, x.Seconds, ok, len(x.Reads))
		if x.KeyID != "" {
			fmt.Fprintf(&b, ", provider %q, key_id %q", x.Provider, x.KeyID)
		}
		b.WriteByte('\n')
	}
	for _, s := range r.Slow {
		fmt.Fprintf(&b, "slow: %s\n", s)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "FAIL  %s\n", strings.ReplaceAll(p, "\n", " "))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Textfile is the report for node_exporter's textfile collector
// (Prometheus text exposition format 0.0.4).
func (r *Report) Textfile() []byte {
	var b strings.Builder
	metric := func(name, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name) }
	metric("kms_canary_last_run_timestamp_seconds", "When kmsctl canary last ran.")
	fmt.Fprintf(&b, "kms_canary_last_run_timestamp_seconds %d\n", r.At.Unix())
	metric("kms_canary_passed", "1 if the last run of kmsctl canary found nothing wrong.")
	fmt.Fprintf(&b, "kms_canary_passed %d\n", one(r.Passed()))
	metric("kms_canary_write_seconds", "How long the API server took to write a Secret; -1 if it did not.")
	for _, w := range r.Writes {
		fmt.Fprintf(&b, "kms_canary_write_seconds{writer=%q} %g\n", w.Server, seconds(w.Seconds, w.Written))
	}
	metric("kms_canary_read_seconds", "How long the reader took until its watch cache had what the writer wrote; -1 if it does not read it.")
	for _, w := range r.Writes {
		for _, x := range w.Reads {
			fmt.Fprintf(&b, "kms_canary_read_seconds{writer=%q,reader=%q} %g\n", w.Server, x.Server, seconds(x.Seconds+x.CachedSeconds, x.OK))
		}
	}
	return []byte(b.String())
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

func seconds(s float64, ok bool) float64 {
	if !ok {
		return -1
	}
	return time.Duration(s * float64(time.Second)).Seconds()
}
