//go:build e2e

package chaos

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// report collects cells, and replaces the tables of those situations of which it has all.
type report struct{ cells []*cell }

func (r *report) write(path string) error {
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, sit := range situations {
		var cells []*cell
		for _, x := range r.cells {
			if x.situation.name == sit.name {
				cells = append(cells, x)
			}
		}
		if len(cells) != len(faults) {
			continue
		}
		begin, end := "<!-- "+sit.name+" -->\n", "<!-- end "+sit.name+" -->"
		i, j := bytes.Index(doc, []byte(begin)), bytes.Index(doc, []byte(end))
		if i < 0 || j < i {
			return fmt.Errorf("%s has no place for %s", path, sit.name)
		}
		doc = slices.Concat(doc[:i], []byte(begin+table(sit, cells)), doc[j:])
	}
	return os.WriteFile(path, doc, 0o644)
}

func table(sit situation, cells []*cell) string {
	restarts := sit.name == "apiserver" || sit.name == "both"
	var b strings.Builder
	fmt.Fprintf(&b, "### %s\n\n", sit.title)
	b.WriteString("| fault | reads, writes failed | Encrypt, Decrypt failed | `/readyz` not ok | Status: errors, slowest | metrics said, after | log said, after |")
	if restarts {
		b.WriteString(" API server ready after |")
	}
	b.WriteString(" all well after |\n|---|---|---|---|---|---|---|---|" + map[bool]string{true: "---|"}[restarts] + "\n")
	for _, x := range cells {
		c := x.count
		if c == nil {
			fmt.Fprintf(&b, "| %s | **the cell did not end: see the log of the run** |\n", x.fault.name)
			continue
		}
		fmt.Fprintf(&b, "| %s | %d of %d, %d of %d | %d of %d | %d of %d | %d of %d, %s | %s | %s |", x.fault.name, len(c.readErrs), c.reads, len(c.writeErrs), c.writes,
			len(c.callErrs), c.calls, len(c.readyzErrs), c.readyz, len(c.statusErr), c.statuses, seconds(c.slowStatus),
			when(strings.Join(x.said.metrics, ", "), x.said.metricAfter), when(x.said.log, x.said.logAfter))
		if restarts {
			fmt.Fprintf(&b, " %s |", x.readyText())
		}
		fmt.Fprintf(&b, " %s |\n", seconds(x.well))
	}
	b.WriteString("\n")
	return b.String()
}

func (x *cell) readyText() string {
	if x.inFault {
		return seconds(x.readyAfter)
	}
	return "not before its end"
}

func when(what string, after time.Duration) string {
	if what == "" {
		return "nothing"
	}
	return what + ", " + seconds(after)
}

func seconds(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
