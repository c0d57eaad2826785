// Package metrics are the Prometheus metrics of the daemon, described in
// docs/metrics.md. It counts what it is told and must not know why.
package metrics

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// Metrics are all collectors of one process.
type Metrics struct {
	rpc         *prometheus.HistogramVec
	good        [3]prometheus.Observer // of Status, Encrypt, Decrypt answered OK
	hits        prometheus.Counter
	remote      *prometheus.HistogramVec
	cache       *prometheus.CounterVec
	known       prometheus.Gauge
	localKEK    *prometheus.GaugeVec
	keyInfo     *prometheus.GaugeVec
	keyState    *prometheus.GaugeVec
	lastGood    *prometheus.GaugeVec
	keyID       *prometheus.GaugeVec
	keyIDs      prometheus.Counter
	retired     *prometheus.CounterVec
	ready       prometheus.Gauge
	reloads     *prometheus.CounterVec
	reloadTime  prometheus.Gauge
	configHash  *prometheus.GaugeVec
	diskDiffers prometheus.Gauge
	audit       prometheus.Counter
	refused     prometheus.Counter
	bound       *prometheus.GaugeVec
	hardening   *prometheus.GaugeVec
	lastKeyID   string
}

const prefix = "kms_plugin_"

// latency covers an answer from memory (tens of microseconds) to the 2.5 s limit.
var latency = []float64{.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}

// New registers everything.
func New(reg prometheus.Registerer, version string) *Metrics {
	f := factory{reg}
	m := &Metrics{
		rpc:         f.histogram("rpc_duration_seconds", "Calls of the KMS v2 API, from request read to answer ready.", "method", "code"),
		remote:      f.histogram("remote_call_duration_seconds", "Calls to a KMS, all attempts of one call together.", "key", "region", "op", "outcome"),
		cache:       f.counter("local_kek_lookups_total", "How Decrypts found their local KEK: hit, miss (unwrapped), shared (waited for another's unwrap), failed-recently, refused.", "result"),
		known:       f.gauge("local_keks", "Local KEKs in memory.").WithLabelValues(),
		localKEK:    f.gauge("local_kek_info", "1 for each local KEK in memory, first 16 hex digits of its id; at most 256 are shown.", "local_kek"),
		keyInfo:     f.gauge("key_info", "1 for each key of the configuration in force; active: its key_id is reported.", "key", "role", "active"),
		keyState:    f.gauge("key_state", "1 for the present state of a key and operation, else 0: unknown, ok, degraded, closed.", "key", "op", "state"),
		lastGood:    f.gauge("last_good_probe_timestamp_seconds", "When the prober last had a good answer for a key; absent if never.", "key"),
		keyID:       f.gauge("key_id_hash_info", "1 for the reported key_id, hashed as kube-apiserver hashes it.", "key_id_hash"),
		keyIDs:      f.counter("key_id_changes_total", "Changes of the reported key_id since start.").WithLabelValues(),
		retired:     f.counter("retired_key_opens_total", "Seeds opened under a retired key.", "key"),
		ready:       f.gauge("ready", "1 if a seed could be sealed now.").WithLabelValues(),
		reloads:     f.counter("reloads_total", "Tries to load a changed configuration: success, failure.", "outcome"),
		reloadTime:  f.gauge("last_reload_success_timestamp_seconds", "When a configuration was last put in force.").WithLabelValues(),
		configHash:  f.gauge("config_hash_info", "1 for the configuration in force, SHA-256 of its bytes.", "sha256"),
		diskDiffers: f.gauge("config_disk_differs", "1 while the file on disk is not the configuration in force.").WithLabelValues(),
		audit:       f.counter("audit_failures_total", "Audit records that could not be written.").WithLabelValues(),
		refused:     f.counter("refused_peers_total", "Connections from uids that are not allowed.").WithLabelValues(),
		bound:       f.gauge("revocation_bound_seconds", "Longest time from a change in the cloud to the last seed opened, by class.", "class"),
		hardening:   f.gauge("hardening_info", "1 for what became of each measure of hardening: enforced, partial, log, off, unsupported, failed.", "measure", "state"),
	}
	f.gauge("build_info", "1 for the version of the program.", "version").WithLabelValues(version).Set(1)
	for i, method := range [...]string{"Status", "Encrypt", "Decrypt"} {
		m.good[i] = m.rpc.WithLabelValues(method, codes.OK.String())
	}
	m.hits = m.cache.WithLabelValues("hit")
	for _, r := range []string{"hit", "miss", "shared", "failed-recently", "refused"} {
		m.cache.WithLabelValues(r)
	}
	m.reloads.WithLabelValues("success")
	m.reloads.WithLabelValues("failure")
	return m
}

type factory struct{ reg prometheus.Registerer }

func (f factory) histogram(name, help string, labels ...string) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: prefix + name, Help: help, Buckets: latency}, labels)
	f.reg.MustRegister(v)
	return v
}

func (f factory) counter(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, labels)
	f.reg.MustRegister(v)
	return v
}

func (f factory) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + name, Help: help}, labels)
	f.reg.MustRegister(v)
	return v
}

// RPC counts a finished call. A good one costs no lookup.
func (m *Metrics) RPC(method string, code codes.Code, d time.Duration) {
	switch {
	case code == codes.OK && method == "Status":
		m.good[0].Observe(d.Seconds())
	case code == codes.OK && method == "Encrypt":
		m.good[1].Observe(d.Seconds())
	case code == codes.OK && method == "Decrypt":
		m.good[2].Observe(d.Seconds())
	default:
		m.rpc.WithLabelValues(method, code.String()).Observe(d.Seconds())
	}
}

// RemoteCall counts a finished call to a KMS.
func (m *Metrics) RemoteCall(key, region, op, outcome string, d time.Duration) {
	m.remote.WithLabelValues(key, region, op, outcome).Observe(d.Seconds())
}

// CacheResult counts a lookup of a local KEK.
func (m *Metrics) CacheResult(result string) {
	if result == "hit" {
		m.hits.Inc()
		return
	}
	m.cache.WithLabelValues(result).Inc()
}

// RetiredOpen counts a seed opened under a retired key.
func (m *Metrics) RetiredOpen(key string) { m.retired.WithLabelValues(key).Inc() }

// Key is the state of one key.
type Key struct {
	Name         string
	Role         string
	Active       bool   // its key_id is reported
	Wrap, Unwrap string // states
	LastGood     time.Time
}

// States are the values of the state label.
var States = []string{"unknown", "ok", "degraded", "closed"}

// SetKeys replaces what is known of all keys.
func (m *Metrics) SetKeys(keys []Key) {
	m.keyInfo.Reset()
	m.keyState.Reset()
	m.lastGood.Reset()
	for _, k := range keys {
		m.keyInfo.WithLabelValues(k.Name, k.Role, strconv.FormatBool(k.Active)).Set(1)
		for op, now := range map[string]string{"wrap": k.Wrap, "unwrap": k.Unwrap} {
			for _, s := range States {
				m.keyState.WithLabelValues(k.Name, op, s).Set(oneIf(s == now))
			}
		}
		if !k.LastGood.IsZero() {
			m.lastGood.WithLabelValues(k.Name).Set(float64(k.LastGood.UnixMilli()) / 1000)
		}
	}
}

// SetLocalKEKs replaces the local KEKs in memory.
func (m *Metrics) SetLocalKEKs(ids []string) {
	m.known.Set(float64(len(ids)))
	m.localKEK.Reset()
	for _, id := range ids[:min(len(ids), 256)] {
		m.localKEK.WithLabelValues(id).Set(1)
	}
}

// SetKeyID shows the reported key_id as kube-apiserver hashes it in its own
// metrics (envelope/metrics: "sha256:" and hex). One goroutine calls it.
func (m *Metrics) SetKeyID(id string) {
	if id == m.lastKeyID {
		return
	}
	if m.lastKeyID != "" {
		m.keyIDs.Inc()
	}
	m.lastKeyID = id
	m.keyID.Reset()
	if id != "" {
		m.keyID.WithLabelValues(KeyIDHash(id)).Set(1)
	}
}

// KeyIDHash is kube-apiserver's name for a key_id.
func KeyIDHash(id string) string {
	h := sha256.Sum256([]byte(id))
	return "sha256:" + hex.EncodeToString(h[:])
}

// SetReady says whether a seed could be sealed now.
func (m *Metrics) SetReady(ok bool) { m.ready.Set(oneIf(ok)) }

// Reloaded counts a try to load a configuration.
func (m *Metrics) Reloaded(ok bool, hash string) {
	if !ok {
		m.reloads.WithLabelValues("failure").Inc()
		return
	}
	m.reloads.WithLabelValues("success").Inc()
	m.reloadTime.SetToCurrentTime()
	m.configHash.Reset()
	m.configHash.WithLabelValues(hash).Set(1)
}

// DiskDiffers says whether the file on disk is not the one in force.
func (m *Metrics) DiskDiffers(yes bool) { m.diskDiffers.Set(oneIf(yes)) }

// AuditFailed counts a record that could not be written.
func (m *Metrics) AuditFailed() { m.audit.Inc() }

// PeerRefused counts a connection from a uid that is not allowed.
func (m *Metrics) PeerRefused() { m.refused.Inc() }

// SetBound shows a revocation bound.
func (m *Metrics) SetBound(class string, d time.Duration) {
	m.bound.WithLabelValues(class).Set(d.Seconds())
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// SetHardening tells what became of a measure.
func (m *Metrics) SetHardening(measure, state string) {
	m.hardening.DeletePartialMatch(prometheus.Labels{"measure": measure})
	m.hardening.WithLabelValues(measure, state).Set(1)
}
