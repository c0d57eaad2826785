// Package metrics are the Prometheus metrics of the daemon, described in
// docs/metrics.md. It counts what it is told and must not know why.
package metrics

import (
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
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
	regionState *prometheus.GaugeVec
	regionInUse *prometheus.GaugeVec
	recipient   *prometheus.GaugeVec
	closed      *prometheus.GaugeVec
	lastOpen    *prometheus.GaugeVec
	keyID       *prometheus.GaugeVec
	keyIDs      prometheus.Counter
	retired     *prometheus.CounterVec
	ready       prometheus.Gauge
	reloads     *prometheus.CounterVec
	reloadTime  prometheus.Gauge
	configHash  *prometheus.GaugeVec
	diskDiffers prometheus.Gauge
	audit       prometheus.Counter
	stateFails  prometheus.Gauge
	outOfReach  prometheus.Gauge
	refused     prometheus.Counter
	bound       *prometheus.GaugeVec
	credential  *prometheus.GaugeVec
	credEnds    *prometheus.GaugeVec
	credFailing *prometheus.GaugeVec
	hardening   *prometheus.GaugeVec
	lastKeyID   string

	whole sync.Mutex // held by who replaces several at once, and by who reads them
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
		regionState: f.gauge("region_state", "1 for what a region of a key last answered to a canary, else 0: unknown, ok, outage, credential, authorization, key-state, data. Only of keys with several.", "key", "region", "op", "state"),
		regionInUse: f.gauge("region_in_use", "1 for the region that calls go to first, 0 for the others of a key with several.", "key", "region"),
		recipient:   f.gauge("key_recipient_info", "The place of each co-recipient of a key (alsoWrapWith), from 1: it opens what the key seals.", "key", "recipient"),
		closed:      f.gauge("key_closed_timestamp_seconds", "Since when nothing is opened under a key, and by which class of answers; absent while it opens.", "key", "class"),
		lastOpen:    f.gauge("last_open_timestamp_seconds", "When a seed was last opened under a key, also before a restart; absent if never. Opened by a co-recipient counts there.", "key"),
		keyID:       f.gauge("key_id_hash_info", "1 for the reported key_id, hashed as kube-apiserver hashes it.", "key_id_hash"),
		keyIDs:      f.counter("key_id_changes_total", "Changes of the reported key_id since start.").WithLabelValues(),
		retired:     f.counter("retired_key_opens_total", "Seeds opened under a retired key.", "key"),
		ready:       f.gauge("ready", "1 if a seed could be sealed now.").WithLabelValues(),
		reloads:     f.counter("reloads_total", "Tries to load a changed configuration: success, failure.", "outcome"),
		reloadTime:  f.gauge("last_reload_success_timestamp_seconds", "When a configuration was last put in force.").WithLabelValues(),
		configHash:  f.gauge("config_hash_info", "1 for the configuration in force, SHA-256 of its bytes.", "sha256"),
		diskDiffers: f.gauge("config_disk_differs", "1 while the file on disk is not the configuration in force.").WithLabelValues(),
		audit:       f.counter("audit_failures_total", "Audit records that could not be written.").WithLabelValues(),
		outOfReach:  f.gauge("files_out_of_reach", "Files and directories that were replaced or made since the start and do not open under the confinement of files.").WithLabelValues(),
		stateFails:  f.gauge("state_write_failing", "1 while the state file cannot be written.").WithLabelValues(),
		refused:     f.counter("refused_peers_total", "Connections from uids that are not allowed.").WithLabelValues(),
		bound:       f.gauge("revocation_bound_seconds", "Longest time from a change in the cloud to the last seed opened here, by class; computed from the configuration in force.", "class"),
		credential:  f.gauge("credential_info", "1 for each key that reaches its KMS by a credential of its own: what kind, and where it comes from.", "key", "kind", "source"),
		credEnds:    f.gauge("credential_expiry_timestamp_seconds", "When the credential of a key ends; absent if there is none, or it does not end.", "key"),
		credFailing: f.gauge("credential_renewal_failing", "1 while the last try to renew the credential of a key failed.", "key"),
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

// Credential is what one key reaches its KMS by.
type Credential struct {
	Key, Kind, Source string
	Expires           time.Time // zero: none, or it does not end
	Failing           bool
}

// SetCredentials replaces what is known of all credentials.
func (m *Metrics) SetCredentials(all []Credential) {
	m.whole.Lock()
	defer m.whole.Unlock()
	m.credential.Reset()
	m.credEnds.Reset()
	m.credFailing.Reset()
	for _, c := range all {
		m.credential.WithLabelValues(c.Key, c.Kind, c.Source).Set(1)
		m.credFailing.WithLabelValues(c.Key).Set(oneIf(c.Failing))
		if !c.Expires.IsZero() {
			m.credEnds.WithLabelValues(c.Key).Set(float64(c.Expires.Unix()))
		}
	}
}

// SetLocalKEKs replaces the local KEKs in memory.
func (m *Metrics) SetLocalKEKs(ids []string) {
	m.whole.Lock()
	defer m.whole.Unlock()
	m.known.Set(float64(len(ids)))
	m.localKEK.Reset()
	for _, id := range ids[:min(len(ids), 256)] {
		m.localKEK.WithLabelValues(id).Set(1)
	}
}

// SetKeyID shows the reported key_id as kube-apiserver hashes it in its own
// metrics (envelope/metrics: "sha256:" and hex). One goroutine calls it.
func (m *Metrics) SetKeyID(id string) {
	m.whole.Lock()
	defer m.whole.Unlock()
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

// Gatherer is g between two changes: what is replaced as a whole is never seen half.
func (m *Metrics) Gatherer(g prometheus.Gatherer) prometheus.Gatherer {
	return prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		m.whole.Lock()
		defer m.whole.Unlock()
		return g.Gather()
	})
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
	m.whole.Lock()
	defer m.whole.Unlock()
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

// SetStateFailing says whether the state file cannot be written.
func (m *Metrics) SetStateFailing(yes bool) { m.stateFails.Set(oneIf(yes)) }

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

// SetOutOfReach tells how many files the confinement hides that should be read.
func (m *Metrics) SetOutOfReach(n int) { m.outOfReach.Set(float64(n)) }

// SetHardening tells what became of a measure.
func (m *Metrics) SetHardening(measure, state string) {
	m.whole.Lock()
	defer m.whole.Unlock()
	m.hardening.DeletePartialMatch(prometheus.Labels{"measure": measure})
	m.hardening.WithLabelValues(measure, state).Set(1)
}
