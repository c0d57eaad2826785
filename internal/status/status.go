// Package status asks a running kms-plugin two things: over its socket what
// kube-apiserver sees, and over its metrics what the plugin itself knows.
package status

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sort"
	"text/tabwriter"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	grpcstatus "google.golang.org/grpc/status"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/kmsclient"
	"kms-plugin.io/internal/metrics"
)

// Report is what `kmsctl status -o json` prints.
type Report struct {
	Socket    string  `json:"socket"`
	Healthy   bool    `json:"healthy"`
	Version   string  `json:"version,omitempty"`
	Healthz   string  `json:"healthz,omitempty"`
	KeyID     string  `json:"keyID,omitempty"`
	KeyIDHash string  `json:"keyIDHash,omitempty"` // as in kube-apiserver's metrics
	LatencyMS float64 `json:"latencyMS"`
	Error     string  `json:"error,omitempty"`
	Plugin    *Plugin `json:"plugin,omitempty"` // nil if no metrics address was given
}

// Plugin is what the plugin knows of itself.
type Plugin struct {
	Ready       bool   `json:"ready"`
	DiskDiffers bool   `json:"configDiskDiffers"`
	LocalKEKs   int    `json:"localKEKs"`
	Keys        []Key  `json:"keys"`
	Version     string `json:"version,omitempty"`
	// KeyIDHash is of the key_id it reports; ConfigHash of the configuration in force.
	KeyIDHash  string `json:"keyIDHash,omitempty"`
	ConfigHash string `json:"configHash,omitempty"`
	// LocalKEKIDs are some of the local KEKs in memory, up to 256, by 16 hex digits.
	LocalKEKIDs  []string       `json:"localKEKIDs,omitempty"`
	RetiredOpens map[string]int `json:"retiredOpens,omitempty"` // seeds opened under retired keys since start
}

// Key is one key of the ring.
type Key struct {
	Name     string     `json:"name"`
	Role     string     `json:"role,omitempty"`
	Active   bool       `json:"active,omitempty"` // its key_id is reported
	Wrap     string     `json:"wrap"`
	Unwrap   string     `json:"unwrap"`
	LastGood *time.Time `json:"lastGoodProbe,omitempty"`
	// Credential is nil for a key that needs none.
	Credential *Credential `json:"credential,omitempty"`
}

// Credential is what the plugin reaches the KMS of a key by; never a value.
type Credential struct {
	Kind    string     `json:"kind"`
	Source  string     `json:"source"`
	Ends    *time.Time `json:"ends,omitempty"`
	Failing bool       `json:"renewalFailing,omitempty"`
}

// Ask calls Status on the socket, and reads the metrics if an address is given.
// An unhealthy plugin is a report, not an error; one that cannot be reached is.
func Ask(ctx context.Context, socket, address string) (Report, error) {
	r, err := ask(ctx, socket)
	if err != nil || address == "" {
		return r, err
	}
	p, err := Scrape(ctx, address)
	if err != nil {
		return r, cli.WithHint(err, "compare --metrics with listenAddress of the configuration")
	}
	r.Plugin = p
	r.Healthy = r.Healthy && p.Ready // Status may be ok by what it remembers while nothing can be sealed
	return r, nil
}

func ask(ctx context.Context, socket string) (Report, error) {
	r := Report{Socket: socket}
	c, err := kmsclient.Dial(socket)
	if err != nil {
		return r, err
	}
	defer c.Close()
	begun := time.Now()
	s, err := c.Status(ctx)
	r.LatencyMS = float64(time.Since(begun).Microseconds()) / 1000
	if err != nil {
		st, isStatus := grpcstatus.FromError(err)
		if !isStatus {
			return r, err
		}
		r.Error = fmt.Sprintf("%s: %s", st.Code(), st.Message())
		return r, nil
	}
	r.Version, r.Healthz, r.KeyID = s.GetVersion(), s.GetHealthz(), s.GetKeyId()
	r.KeyIDHash = metrics.KeyIDHash(r.KeyID)
	r.Healthy = r.Version == "v2" && r.Healthz == "ok" && r.KeyID != ""
	return r, nil
}

// Scrape reads the metrics of a plugin at its listenAddress.
func Scrape(ctx context.Context, address string) (*Plugin, error) {
	ctx, cancel := context.WithTimeout(ctx, kmsclient.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(io.LimitReader(resp.Body, 16<<20))
	if err != nil || resp.StatusCode != http.StatusOK || families["kms_plugin_ready"] == nil {
		return nil, fmt.Errorf("http://%s/metrics is not that of a kms-plugin", address)
	}
	return decode(families), nil
}

func decode(f map[string]*dto.MetricFamily) *Plugin {
	// A plugin of another version may not have them all.
	value := func(name string) float64 {
		if m := f[name].GetMetric(); len(m) > 0 {
			return m[0].GetGauge().GetValue()
		}
		return 0
	}
	p := &Plugin{Ready: value("kms_plugin_ready") == 1, DiskDiffers: value("kms_plugin_config_disk_differs") == 1, LocalKEKs: int(value("kms_plugin_local_keks"))}
	byName := map[string]*Key{}
	for _, m := range f["kms_plugin_key_state"].GetMetric() {
		if m.GetGauge().GetValue() != 1 {
			continue
		}
		l := Labels(m)
		k := byName[l["key"]]
		if k == nil {
			k = &Key{Name: l["key"]}
			byName[k.Name] = k
		}
		if l["op"] == "wrap" {
			k.Wrap = l["state"]
		} else {
			k.Unwrap = l["state"]
		}
	}
	for _, m := range f["kms_plugin_key_info"].GetMetric() {
		if k := byName[Labels(m)["key"]]; k != nil && m.GetGauge().GetValue() == 1 {
			k.Role, k.Active = Labels(m)["role"], Labels(m)["active"] == "true"
		}
	}
	for _, m := range f["kms_plugin_last_good_probe_timestamp_seconds"].GetMetric() {
		if k := byName[Labels(m)["key"]]; k != nil {
			t := time.UnixMilli(int64(m.GetGauge().GetValue() * 1000)).UTC()
			k.LastGood = &t
		}
	}
	decodeCredentials(f, byName)
	for _, m := range f["kms_plugin_build_info"].GetMetric() {
		p.Version = Labels(m)["version"]
	}
	for _, m := range f["kms_plugin_key_id_hash_info"].GetMetric() {
		if m.GetGauge().GetValue() == 1 {
			p.KeyIDHash = Labels(m)["key_id_hash"]
		}
	}
	for _, m := range f["kms_plugin_config_hash_info"].GetMetric() {
		if m.GetGauge().GetValue() == 1 {
			p.ConfigHash = Labels(m)["sha256"]
		}
	}
	for _, m := range f["kms_plugin_local_kek_info"].GetMetric() {
		if m.GetGauge().GetValue() == 1 {
			p.LocalKEKIDs = append(p.LocalKEKIDs, Labels(m)["local_kek"])
		}
	}
	sort.Strings(p.LocalKEKIDs)
	for _, m := range f["kms_plugin_retired_key_opens_total"].GetMetric() {
		if p.RetiredOpens == nil {
			p.RetiredOpens = map[string]int{}
		}
		p.RetiredOpens[Labels(m)["key"]] += int(m.GetCounter().GetValue())
	}
	for _, k := range byName {
		p.Keys = append(p.Keys, *k)
	}
	sort.Slice(p.Keys, func(i, j int) bool { return p.Keys[i].Name < p.Keys[j].Name })
	return p
}

func decodeCredentials(f map[string]*dto.MetricFamily, byName map[string]*Key) {
	for _, m := range f["kms_plugin_credential_info"].GetMetric() {
		if k := byName[Labels(m)["key"]]; k != nil && m.GetGauge().GetValue() == 1 {
			k.Credential = &Credential{Kind: Labels(m)["kind"], Source: Labels(m)["source"]}
		}
	}
	for _, m := range f["kms_plugin_credential_expiry_timestamp_seconds"].GetMetric() {
		if k := byName[Labels(m)["key"]]; k != nil && k.Credential != nil {
			t := time.Unix(int64(m.GetGauge().GetValue()), 0).UTC()
			k.Credential.Ends = &t
		}
	}
	for _, m := range f["kms_plugin_credential_renewal_failing"].GetMetric() {
		if k := byName[Labels(m)["key"]]; k != nil && k.Credential != nil {
			k.Credential.Failing = m.GetGauge().GetValue() == 1
		}
	}
}

// Labels are the labels of a metric.
func Labels(m *dto.Metric) map[string]string {
	out := map[string]string{}
	for _, l := range m.GetLabel() {
		out[l.GetName()] = l.GetValue()
	}
	return out
}

// String is a line for people.
func (c *Credential) String() string {
	s := "credential " + c.Kind + " from " + c.Source
	switch {
	case c.Ends == nil && c.Kind == "static":
		s += ", does not end"
	case c.Ends == nil:
		s += ", none yet"
	case time.Now().After(*c.Ends):
		s += ", ENDED " + c.Ends.Format(time.RFC3339)
	default:
		s += ", ends in " + time.Until(*c.Ends).Round(time.Second).String()
	}
	if c.Failing {
		s += ", renewal is FAILING"
	}
	return s
}

// Print writes a report for people.
func (r Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("SOCKET", "%s (answered in %.1f ms)", r.Socket, r.LatencyMS)
	if r.Error != "" {
		row("STATUS", "ERROR %s", r.Error)
	} else {
		row("STATUS", "version %s, healthz %s", r.Version, r.Healthz)
		row("KEY_ID", "%s", r.KeyID)
		row("KEY_ID HASH", "%s", r.KeyIDHash)
	}
	if p := r.Plugin; p != nil {
		row("PLUGIN", "%s, ready %t, %d local KEKs in memory", p.Version, p.Ready, p.LocalKEKs)
		if p.DiskDiffers {
			row("CONFIG", "the file on disk is NOT in force; see the log")
		}
		for _, k := range p.Keys {
			good := "never"
			if k.LastGood != nil {
				good = time.Since(*k.LastGood).Round(time.Second).String() + " ago"
			}
			row("KEY "+k.Name, "wrap %s, unwrap %s, last good probe %s", k.Wrap, k.Unwrap, good)
			if k.Credential != nil {
				row("", "%s", k.Credential)
			}
		}
	}
	return t.Flush()
}
