package fleet

import (
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Whatever an API server serves as metrics.
func FuzzMetrics(f *testing.F) {
	f.Add(sample)
	f.Add("process_start_time_seconds 1e308\n")
	f.Add("# TYPE process_start_time_seconds histogram\nprocess_start_time_seconds_bucket{le=\"1\"} 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(text))
		if err != nil {
			return
		}
		s := Server{writes: map[string]int64{}}
		s.decode(families, "kms1")
	})
}
