// Package fleet looks at every API server and every plugin of a cluster by what
// they say of themselves: metrics, health and identity leases. It changes nothing,
// and must not know what the answers are wanted for.
package fleet

import (
	"bytes"
	"context"
	"fmt"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"kms-plugin.io/internal/kube"
	"kms-plugin.io/internal/status"
)

// State is a cluster as it was looked at.
type State struct {
	At         time.Time  `json:"at"`
	Servers    []Server   `json:"apiServers"`
	Identities []Identity `json:"identities"`
	Nodes      []string   `json:"controlPlaneNodes,omitempty"` // those with the label of a control plane
	Plugins    []Plugin   `json:"plugins"`
	Uncounted  string     `json:"uncounted,omitempty"` // why leases and Nodes are not known
}

// Server is one kube-apiserver.
type Server struct {
	Name    string    `json:"name"`
	Error   string    `json:"error,omitempty"`   // it could not be asked
	Health  string    `json:"health,omitempty"`  // what /healthz/kms-providers says; "ok"
	IDHash  string    `json:"idHash,omitempty"`  // sha256:… of its identity, if its metrics tell
	Seen    KeyID     `json:"seen,omitzero"`     // by Status of its plugin, the latest
	Wrote   KeyID     `json:"wrote,omitzero"`    // what it last wrote under
	Config  string    `json:"config,omitempty"`  // sha256:… of its EncryptionConfiguration, the file
	Started time.Time `json:"started,omitzero"`  // the process
	Version string    `json:"version,omitempty"` // its gitVersion

	writes map[string]int64 // since its start, by hash of the key_id
}

// Writes is how many objects it has written under a key_id since its start.
func (s *Server) Writes(hash string) int64 { return s.writes[hash] }

// KeyID is a key_id as kube-apiserver's metrics have it, and when.
type KeyID struct {
	Hash string    `json:"hash"`
	At   time.Time `json:"at"`
}

// Plugin is one kms-plugin at its listenAddress.
type Plugin struct {
	Address string `json:"address"`
	Error   string `json:"error,omitempty"`
	*status.Plugin
}

// Look asks everybody. Who cannot be asked has its Error set. An error is that no API
// server lists leases and nodes; all else is in the State then, too.
func Look(ctx context.Context, servers []*kube.Server, provider string, plugins []string) (*State, error) {
	s := &State{At: time.Now().UTC().Truncate(time.Second), Servers: Servers(ctx, servers, provider), Identities: []Identity{}, Plugins: Plugins(ctx, plugins)}
	err := s.census(ctx, servers)
	if err != nil {
		s.Uncounted = err.Error()
	}
	return s, err
}

// Plugins asks the plugin at each listenAddress.
func Plugins(ctx context.Context, addresses []string) []Plugin {
	out := []Plugin{}
	for _, a := range addresses {
		p := Plugin{Address: a}
		var err error
		if p.Plugin, err = status.Scrape(ctx, a); err != nil {
			p.Error = err.Error()
		}
		out = append(out, p)
	}
	return out
}

// Servers asks each for its metrics and the health of its KMS providers.
func Servers(ctx context.Context, servers []*kube.Server, provider string) []Server {
	out := make([]Server, 0, len(servers))
	for _, s := range servers {
		one := Server{Name: s.Name, writes: map[string]int64{}}
		if err := one.ask(ctx, s, provider); err != nil {
			one.Error = err.Error()
		}
		out = append(out, one)
	}
	return out
}

func (s *Server) ask(ctx context.Context, server *kube.Server, provider string) error {
	// Asking for its health makes an API server ask its plugin for the key_id
	// within 20 s instead of a minute (k8s.io/apiserver encryptionconfig,
	// kmsPluginHealthzPositiveTTL).
	health, err := server.REST.Get().AbsPath("/healthz/kms-providers").Do(ctx).Raw()
	s.Health = string(health)
	if err != nil && len(health) == 0 {
		s.Health = err.Error()
	}
	raw, err := server.REST.Get().AbsPath("/metrics").Do(ctx).Raw()
	if err != nil {
		return fmt.Errorf("read metrics: %w", err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("read metrics: %w", err)
	}
	s.decode(families, provider)
	return nil
}

// The names are ALPHA in Kubernetes 1.37 (envelope/metrics, encryptionconfig/metrics).
const (
	seenMetric   = "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds"
	countMetric  = "apiserver_envelope_encryption_key_id_hash_total"
	toStorage    = "to_storage"
	usedMetric   = "apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds"
	configMetric = "apiserver_encryption_config_controller_last_config_info"
	startMetric  = "process_start_time_seconds"
	buildMetric  = "kubernetes_build_info"
)

func (s *Server) decode(f map[string]*dto.MetricFamily, provider string) {
	for _, m := range f[seenMetric].GetMetric() {
		l := status.Labels(m)
		s.IDHash = l["apiserver_id_hash"]
		if l["provider_name"] == provider {
			s.Seen.later(l["key_id_hash"], m)
		}
	}
	for _, m := range f[usedMetric].GetMetric() {
		if l := status.Labels(m); l["provider_name"] == provider && l["transformation_type"] == toStorage {
			s.Wrote.later(l["key_id_hash"], m)
		}
	}
	for _, m := range f[countMetric].GetMetric() {
		if l := status.Labels(m); l["provider_name"] == provider && l["transformation_type"] == toStorage {
			s.writes[l["key_id_hash"]] += int64(m.GetCounter().GetValue())
		}
	}
	for _, m := range f[configMetric].GetMetric() {
		if m.GetGauge().GetValue() == 1 {
			s.Config, s.IDHash = status.Labels(m)["hash"], status.Labels(m)["apiserver_id_hash"]
		}
	}
	for _, m := range f[startMetric].GetMetric() {
		s.Started = seconds(m)
	}
	for _, m := range f[buildMetric].GetMetric() {
		s.Version = status.Labels(m)["git_version"]
	}
}

// later keeps the newest: a series stays at its last value when its key_id is left.
func (k *KeyID) later(hash string, m *dto.Metric) {
	if at := seconds(m); k.Hash == "" || at.After(k.At) {
		*k = KeyID{hash, at}
	}
}

func seconds(m *dto.Metric) time.Time {
	return time.UnixMilli(int64(m.GetGauge().GetValue() * 1000)).UTC()
}
