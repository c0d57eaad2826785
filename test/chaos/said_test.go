//go:build e2e

package chaos

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// telling are the metrics by which a plugin tells that something is wrong.
var telling = []string{"kms_plugin_key_state{", "kms_plugin_region_state{", "kms_plugin_region_in_use{", "kms_plugin_ready ",
	"kms_plugin_audit_failures_total ", "kms_plugin_state_write_failing 1", "kms_plugin_credential_renewal_failing{"}

// said is what the first plugin said since a moment, and when.
type said struct {
	s      *stage
	begun  time.Time
	offset int      // of its log
	before []string // telling lines of its metrics
	want   string   // what metrics are to say, "" for anything

	metrics     []string // what is new in them
	metricAfter time.Duration
	log         string
	logAfter    time.Duration
}

// listen begins now.
func (s *stage) listen(ctx context.Context) *said {
	o := &said{s: s, offset: len(s.p[0].Log())}
	o.before, _ = o.lines(ctx) // none is none
	o.begun = time.Now()
	return o
}

// lines are the telling metrics in force.
func (o *said) lines(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	text, err := o.s.p[0].Get(ctx, "/metrics")
	var out []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if slices.ContainsFunc(telling, func(p string) bool { return strings.HasPrefix(line, p) }) && (!strings.HasSuffix(line, " 0") || line == "kms_plugin_ready 0") {
			out = append(out, line)
		}
	}
	return out, err
}

// hear looks once; it says whether metrics and log have both told.
func (o *said) hear(ctx context.Context) bool {
	done := o.metrics != nil && (o.want == "" || o.told(o.want))
	if !done {
		now, err := o.lines(ctx)
		var fresh []string
		for _, line := range now {
			if err == nil && !slices.Contains(o.before, line) && !strings.Contains(line, `state="unknown"`) {
				fresh = append(fresh, brief(line))
			}
		}
		if fresh != nil && !slices.Equal(fresh, o.metrics) {
			o.metrics, o.metricAfter = fresh, time.Since(o.begun)
		}
	}
	if o.log == "" {
		o.readLog()
	}
	return o.metrics != nil && (o.want == "" || o.told(o.want)) && o.log != ""
}

// usual is a warning of every start with a key of one region.
const usual = "key is reached in one region alone and cannot fail over"

// brief is a line of metrics as a table can hold it.
func brief(line string) string {
	if name, _, ok := strings.Cut(line, "_total "); ok {
		return strings.TrimPrefix(name, "kms_plugin_") + "_total rises"
	}
	line = strings.TrimPrefix(line, "kms_plugin_")
	line = strings.NewReplacer(`key="prod",`, "", `op="`, "", `state="`, "", `region="`, "", `"`, "", "{", " ", "}", "", ",", " ").Replace(line)
	return strings.TrimSuffix(line, " 1")
}

// readLog finds the first line that warns.
func (o *said) readLog() {
	for line := range strings.Lines(o.s.p[0].Log()[o.offset:]) {
		var r struct {
			Time              time.Time
			Level, Msg, Error string
		}
		if json.Unmarshal([]byte(line), &r) == nil && (r.Level == "WARN" || r.Level == "ERROR") && r.Msg != usual && r.Time.After(o.begun) {
			o.log, o.logAfter = r.Level+" "+r.Msg, r.Time.Sub(o.begun)
			return
		}
	}
}

// told says whether its metrics spoke of something.
func (o *said) told(what string) bool {
	return slices.ContainsFunc(o.metrics, func(m string) bool { return strings.Contains(m, what) })
}
