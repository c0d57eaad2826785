// Package rotation brings a cluster to one key: it waits until every API server
// writes under it, has every object written again that is not, and proves the
// result in etcd. It keeps no state: what is left to do is read from etcd, so
// that a run can be killed anywhere and started again. It must not know how etcd
// and the API servers are reached.
package rotation

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"kms-plugin.io/internal/canary"
	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/kube"
	"kms-plugin.io/internal/metrics"
	"kms-plugin.io/internal/stored"
)

// Options of a run.
type Options struct {
	Servers    []*kube.Server
	Source     etcdstore.Walker
	Etcd       func(ctx context.Context, key string) ([]byte, error)
	Encryption *encryptionconfig.Config
	// Encryptions are the files of all API servers, Encryption first, if they differ.
	Encryptions []*encryptionconfig.Config
	Names       *coverage.Names // may be nil
	Config      *config.Config  // that Names are of; nil with them
	Plugins     []string        // listenAddress of each: what they report decides what a name means; may be none
	Provider    string          // of the EncryptionConfiguration; "" if only one of KMS v2 writes
	Target      string          // key_id, its sha256:… or name of the ring that all must reach; "" is the one they agree on
	Prefix      string
	Namespace   string        // for canaries
	Wait        time.Duration // for convergence
	Poll        time.Duration // between looks
	QPS         float64       // most writes a second, of patches
	Via         string        // ViaAuto, ViaMigration or ViaPatch
	Stall       time.Duration // a migration that does not move for so long is left to patches; 0 is three minutes
	Renewal     time.Duration // kube-controller-manager must renew its lease within this; 0 is twelve seconds
	// AllowUnknown goes on where nobody can tell whether all API servers were asked.
	AllowUnknown bool
	// Say and Progress are called one at a time. Progress may be nil, and begins anew
	// when done falls.
	Say      func(format string, args ...any)
	Progress func(w Work, done, total int64)
}

// Result is what a run ends with.
type Result struct {
	KeyID    string           `json:"keyID"`
	Provider string           `json:"provider"`
	Written  int64            `json:"written"` // objects written again
	Report   *coverage.Report `json:"report"`  // the proof
}

// Error is a rotation that is not complete. Nothing is lost by that: run it again.
type Error struct {
	Step   string
	Reason string
	Remedy string
}

func (e *Error) Error() string { return e.Step + ": " + e.Reason }

// Hint is what to do about it.
func (e *Error) Hint() string { return e.Remedy }

// rounds is how often objects that are found under another key after all are
// written again: a client may have written through an API server that lagged.
const rounds = 3

// Run does the rest of a rotation, whatever was done of it before.
func Run(ctx context.Context, o Options) (*Result, error) {
	provider, err := writer(o)
	if err != nil {
		return nil, err
	}
	o.Provider = provider
	if err := o.tellsEnough(ctx); err != nil {
		return nil, err
	}
	keyID, err := converge(ctx, o)
	if err != nil {
		return nil, err
	}
	out := &Result{KeyID: keyID, Provider: provider}
	for round := 1; ; round++ {
		m := newMigration(o, keyID)
		if round > 1 {
			m.total = uncovered(out.Report, o)
		} else if err := m.start(ctx); err != nil {
			return nil, err
		}
		written, failures, err := m.run(ctx)
		out.Written += written
		if err != nil {
			return nil, err
		}
		o.Say("re-encrypt: %d objects were written again by patches", written)
		if out.Report, err = prove(ctx, o, keyID); err != nil {
			return nil, err
		}
		left := remaining(out.Report, o)
		if len(left) == 0 {
			if text := unasked(ctx, o); text != "" { // it came, or went, meanwhile
				return nil, &Error{"prove", text, "then run it again: what is proved so far holds only for the API servers that were asked"}
			}
			removeMigrations(ctx, o, keyID)
			o.Say("prove: at revision %d all %d objects of provider %q are under key_id %s", out.Report.Source.Revision, covered(out.Report, o), provider, keyID)
			return out, nil
		}
		if round == rounds || written == 0 && (m.met > 0 || uncovered(out.Report, o) == 0) { // nothing helps, or nothing is to be written
			return nil, &Error{"prove", strings.Join(append(left, failures...), "; "), "the lines above name objects and causes; put them right and run it again"}
		}
		o.Say("prove: %s; once more", strings.Join(left, "; "))
		if keyID, err = converge(ctx, o); err != nil {
			return nil, err
		}
		if keyID != out.KeyID {
			return nil, &Error{"converge", fmt.Sprintf("the key_id changed from %s to %s meanwhile", out.KeyID, keyID), "a second rotation began; run it again when it is through"}
		}
	}
}

// writer is the KMS v2 provider whose resources are brought to the key.
func writer(o Options) (string, error) {
	var names []string
	for _, r := range o.Encryption.Rules() {
		if p := r.Providers[0]; p.Kind == stored.KMSv2 && !slices.Contains(names, p.Name) {
			names = append(names, p.Name)
		}
	}
	switch {
	case o.Provider != "" && slices.Contains(names, o.Provider):
		return o.Provider, nil
	case o.Provider != "":
		return "", &Error{"plan", fmt.Sprintf("provider %q writes nothing by this EncryptionConfiguration", o.Provider), "it must be the first of its list: a provider that only reads cannot be rotated to"}
	case len(names) == 1:
		return names[0], nil
	case len(names) == 0:
		return "", &Error{"plan", "no KMS v2 provider writes anything by this EncryptionConfiguration", "put it first in its list on every API server, then run this again"}
	}
	return "", &Error{"plan", "several KMS v2 providers write: " + strings.Join(names, ", "), "--provider NAME"}
}

// converge waits until a canary through each API server is stored under the same
// key_id, which is the target if there is one. That is evidence of what each
// writes with now; a clock is not.
func converge(ctx context.Context, o Options) (string, error) {
	deadline := time.Now().Add(o.Wait)
	last := ""
	for {
		keyID, lag := look(ctx, o)
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if lag == "" && keyID != "" {
			o.Say("converge: all %d API servers write under key_id %s", len(o.Servers), keyID)
			return keyID, nil
		}
		if lag != last {
			o.Say("converge: waiting: %s", lag)
			last = lag
		}
		if time.Now().After(deadline) {
			return "", &Error{"converge", fmt.Sprintf("not within %s: %s", o.Wait, lag), "look at the plugin beside it: kmsctl status; nothing was changed yet"}
		}
		if err := pause(ctx, o.Poll); err != nil {
			return "", err
		}
	}
}

// look returns the key_id, or what stands in the way.
func look(ctx context.Context, o Options) (keyID, lag string) {
	for _, s := range o.Servers {
		// Asking for its health makes an API server ask the plugin for its key_id
		// within 20 s instead of a minute (k8s.io/apiserver encryptionconfig,
		// kmsPluginHealthzPositiveTTL).
		_ = s.REST.Get().AbsPath("/healthz/kms-providers").Do(ctx)
	}
	r := canary.Run(ctx, canary.Options{Namespace: o.Namespace, Writers: o.Servers, Readers: o.Servers, Etcd: o.Etcd, Prefix: o.Prefix,
		Provider: o.Provider, Timeout: stepTimeout})
	hash, lag := o.reported(ctx)
	if lag != "" {
		return "", lag
	}
	for _, w := range r.Writes {
		if o.Target != "" && !o.reached(w.KeyID) || hash != "" && metrics.KeyIDHash(w.KeyID) != hash {
			return "", fmt.Sprintf("%s writes under key_id %q", w.Server, w.KeyID)
		}
	}
	if !r.Passed() {
		return "", strings.Join(r.Problems, "; ")
	}
	return r.Writes[0].KeyID, unasked(ctx, o)
}

// unasked names an API server that nobody asked, or that is configured in another way,
// and what to do about it.
func unasked(ctx context.Context, o Options) string {
	s, u := fleet.Count(ctx, o.Servers)
	if len(u.Problems) > 0 {
		return u.Problems[0].String()
	}
	if text := unlike(s.Servers, o.Encryptions); text != "" {
		return text
	}
	if o.AllowUnknown {
		return ""
	}
	return u.UnknownText()
}

const stepTimeout = 15 * time.Second

// prove counts at a revision after the last write.
func prove(ctx context.Context, o Options, keyID string) (*coverage.Report, error) {
	return coverage.Scan(ctx, o.Source, coverage.Options{Prefix: o.Prefix, Encryption: o.Encryption, Names: o.Names, Current: keyID, Progress: o.reading(Proving)})
}

// remaining names what the proof lacks.
func remaining(r *coverage.Report, o Options) (out []string) {
	for _, x := range r.Resources {
		if n := x.Total - x.Current - x.AsIs; n > 0 && (ours(x, o) || x.Broken > 0) {
			out = append(out, fmt.Sprintf("%s: %d older, %d of other providers, %d plain, %d broken", x.Resource, x.Older, x.Others, x.Plain, x.Broken))
		}
	}
	for _, k := range r.Keys {
		if o.Names != nil && k.Current && k.Name == "" {
			out = append(out, fmt.Sprintf("key_id %s: its values do not prove a name of the plugin's configuration", k.KeyID))
		}
		if o.Names != nil && k.Current && slices.Contains(o.Names.Known(), o.Target) && k.Name != "" && k.Name != o.Target {
			out = append(out, fmt.Sprintf("key_id %s is of key %q, not %q", k.KeyID, k.Name, o.Target))
		}
	}
	return out
}

func covered(r *coverage.Report, o Options) (n int64) {
	for _, x := range r.Resources {
		if ours(x, o) {
			n += x.Current
		}
	}
	return n
}

// uncovered is what is left to be written again.
func uncovered(r *coverage.Report, o Options) (n int64) {
	for _, x := range r.Resources {
		if ours(x, o) {
			n += x.Total - x.Current - x.AsIs
		}
	}
	return n
}

func ours(x coverage.Resource, o Options) bool {
	return x.Expected == encryptionconfig.Provider{Kind: stored.KMSv2, Name: o.Provider}.String()
}
