package metrics_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"kms-plugin.io/internal/metrics"
)

// touch uses every metric, so that each shows its labels.
func touch(t *testing.T) map[string]string {
	t.Helper()
	reg := prometheus.NewRegistry()
	m := metrics.New(reg, "v0")
	m.RPC("Decrypt", codes.Unavailable, time.Millisecond)
	m.RemoteCall("k", "r", "wrap", "ok", time.Millisecond)
	m.CacheResult("hit")
	m.RetiredOpen("k")
	m.SetKeys([]metrics.Key{{Name: "k", Wrap: "ok", Unwrap: "closed", LastGood: time.Now(), LastOpened: time.Now(),
		Recipients: []string{"o"}, Closed: metrics.Closed{Class: "outage", Since: time.Now()},
		Regions: []metrics.Region{{Name: "r", InUse: true, Wrap: "ok", Unwrap: "outage"}}}})
	m.SetLocalKEKs([]string{"00"})
	m.SetKeyID("a")
	m.SetKeyID("b")
	m.SetReady(true)
	m.Reloaded(true, "h")
	m.Reloaded(false, "")
	m.DiskDiffers(true)
	m.AuditFailed()
	m.PeerRefused()
	m.SetBound("outage", time.Hour)
	m.SetCredentials([]metrics.Credential{{Key: "k", Kind: "container", Source: "127.0.0.1", Expires: time.Now()}})
	m.SetHardening("files", "enforced")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		out[f.GetName()] = strings.ToLower(f.GetType().String()) + " " + strings.Join(labels, ", ")
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", f.GetName())
		}
	}
	return out
}

func TestDocumentation(t *testing.T) {
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(kms_plugin_[^`]+)` \\| (\\w+) \\| ([^|]*)\\|").FindAllSubmatch(doc, -1) {
		labels := strings.Split(strings.TrimSpace(string(m[3])), ", ")
		slices.Sort(labels)
		listed[string(m[1])] = string(m[2]) + " " + strings.Join(labels, ", ")
	}
	if d := cmp.Diff(touch(t), listed); d != "" {
		t.Errorf("docs/metrics.md (+) and the registry (-) differ:\n%s", d)
	}
}

// The hash kube-apiserver shows for key-1, as seen in its own metrics.
func TestKeyIDHash(t *testing.T) {
	if got := metrics.KeyIDHash("key-1"); got != "sha256:be2974546978e3739e6d6da85c4be9f334ce32df2b9fd4b6ff1b55c0d57e9d44" {
		t.Errorf("KeyIDHash = %s", got)
	}
}

// The path of a good call allocates nothing.
func TestRPCAllocates(t *testing.T) {
	m := metrics.New(prometheus.NewRegistry(), "v0")
	if n := testing.AllocsPerRun(100, func() { m.RPC("Decrypt", codes.OK, time.Millisecond) }); n != 0 {
		t.Errorf("RPC allocates %v times", n)
	}
}

// Who reads while all is replaced sees the one or the other, never nothing.
func TestNeverHalf(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := metrics.New(reg, "v")
	all := []metrics.Key{{Name: "a", Role: "write", Wrap: "ok", Unwrap: "ok"}, {Name: "b", Role: "read", Wrap: "ok", Unwrap: "ok"}}
	m.SetKeys(all)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				m.SetKeys(all)
			}
		}
	}()
	g := m.Gatherer(reg)
	for range 300 {
		families, err := g.Gather()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, f := range families {
			if f.GetName() == "kms_plugin_key_info" {
				n = len(f.GetMetric())
			}
		}
		if n != 2 {
			t.Fatalf("%d keys are shown, want 2", n)
		}
	}
	close(stop)
	<-done
}
