// Package status asks a running kms-plugin two things: over its socket what
// kube-apiserver sees, and over its metrics what the plugin itself knows.
package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

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
	// Hardening is what became of each measure: enforced, partial, log, off, unsupported, failed.
	Hardening map[string]string `json:"hardening,omitempty"`
	// Started is when the process did; Bounds are the revocation bounds by class, in seconds.
	Started time.Time          `json:"started,omitzero"`
	Bounds  map[string]float64 `json:"revocationBounds,omitempty"`
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
	Regions    []Region    `json:"regions,omitempty"`    // of a key with several
	Recipients []string    `json:"recipients,omitempty"` // co-recipients, in their order
	Closed     *Closed     `json:"closed,omitempty"`     // nil while it opens
	LastOpened *time.Time  `json:"lastOpened,omitempty"` // a seed under it, also before a restart
}

// Region is one region of a key, as it last answered.
type Region struct {
	Name   string `json:"name"`
	InUse  bool   `json:"inUse,omitempty"` // calls go there first
	Wrap   string `json:"wrap"`
	Unwrap string `json:"unwrap"`
}

// Closed is since when nothing is opened under a key, and why.
type Closed struct {
	Class string    `json:"class"`
	Since time.Time `json:"since"`
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
	p, err := read(io.LimitReader(resp.Body, 16<<20))
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("http://%s/metrics is not that of a kms-plugin", address)
	}
	return p, nil
}

var errOthers = errors.New("not the metrics of a kms-plugin")

func read(r io.Reader) (*Plugin, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(r)
	if err == nil && families["kms_plugin_ready"] == nil {
		err = errOthers
	}
	if err != nil {
		return nil, err
	}
	return decode(families), nil
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
			k.rows(row)
		}
	}
	return t.Flush()
}

// rows tells what a key has besides.
func (k Key) rows(row func(name, format string, args ...any)) {
	if k.Credential != nil {
		row("", "%s", k.Credential)
	}
	for _, r := range k.Regions {
		also := ""
		if r.InUse {
			also = ", calls go there first"
		}
		row("", "region %s: wrap %s, unwrap %s%s", r.Name, r.Wrap, r.Unwrap, also)
	}
	if len(k.Recipients) > 0 {
		row("", "co-recipients: %s", strings.Join(k.Recipients, ", "))
	}
	if k.Closed != nil {
		row("", "OPENS NOTHING since %s (%s)", k.Closed.Since.Format(time.RFC3339), k.Closed.Class)
	}
}
