// Package canary proves encryption end to end: a small Secret is written through
// one API server and read through all, uncached and from their watch caches, so
// that afterwards the plugin of each has opened what the other sealed. It must
// not know how API servers and etcd are reached.
package canary

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"kms-plugin.io/internal/kube"
	"kms-plugin.io/internal/stored"
)

// APIVersion of the JSON form. Fields are only ever added.
const APIVersion = "kms-plugin.io/canary/v1"

// Options of a run.
type Options struct {
	Namespace string         // must exist
	Writers   []*kube.Server // each writes one Secret
	Readers   []*kube.Server // all of them read it
	// Etcd reads a stored value; nil if there is no access.
	Etcd     func(ctx context.Context, key string) ([]byte, error)
	Prefix   string        // of kube-apiserver in etcd
	Provider string        // that must have written; "" is any of KMS v2
	KeyID    string        // that must have written; "" is any, but the same for all writers
	Slow     time.Duration // a step that takes longer is named
	Timeout  time.Duration // of one step
}

// Report is what came of it.
type Report struct {
	APIVersion string    `json:"apiVersion"`
	At         time.Time `json:"at"`
	Writes     []Write   `json:"writes"`
	Problems   []string  `json:"problems,omitempty"` // anything here fails the run
	Slow       []string  `json:"slow,omitempty"`
	Removed    int       `json:"removed"` // canaries that an earlier run left
}

// Write is one Secret.
type Write struct {
	Server   string  `json:"server"`
	Written  bool    `json:"written"`
	Seconds  float64 `json:"seconds"`
	Provider string  `json:"provider,omitempty"` // as in etcd
	KeyID    string  `json:"keyID,omitempty"`
	Reads    []Read  `json:"reads"`
}

// Read is what another API server made of it.
type Read struct {
	Server        string  `json:"server"`
	OK            bool    `json:"ok"`
	Seconds       float64 `json:"seconds"`       // uncached
	CachedSeconds float64 `json:"cachedSeconds"` // until its watch cache had it
}

// Passed tells whether nothing is wrong.
func (r *Report) Passed() bool { return len(r.Problems) == 0 }

const (
	label = "kms-plugin.io/canary"
	// stale is when a canary of an earlier run was surely left behind.
	stale = 10 * time.Minute
)

var secrets = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}

type run struct {
	o      Options
	report *Report
}

// Run writes, reads, compares and removes. What is wrong is in the report.
func Run(ctx context.Context, o Options) *Report {
	r := &run{o, &Report{APIVersion: APIVersion, At: time.Now().UTC().Truncate(time.Second), Writes: []Write{}}}
	for _, w := range o.Writers {
		r.through(ctx, w)
	}
	r.sameKeyID()
	if len(o.Writers) > 0 {
		r.sweep(ctx, o.Writers[0])
	}
	return r.report
}

func (r *run) problem(format string, args ...any) {
	r.report.Problems = append(r.report.Problems, fmt.Sprintf(format, args...))
}

func (r *run) slow(what, server string, took time.Duration) {
	if r.o.Slow > 0 && took > r.o.Slow {
		r.report.Slow = append(r.report.Slow, fmt.Sprintf("%s %s took %.1f s", server, what, took.Seconds()))
	}
}

func (r *run) secrets(s *kube.Server) dynamic.ResourceInterface {
	return s.Dynamic.Resource(secrets).Namespace(r.o.Namespace)
}

// step bounds one request.
func (r *run) step(ctx context.Context, f func(context.Context) error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, r.o.Timeout)
	defer cancel()
	begun := time.Now()
	err := f(ctx)
	return time.Since(begun), err
}

// through makes one Secret, has it read, and removes it whatever happened.
func (r *run) through(ctx context.Context, w *kube.Server) {
	out := Write{Server: w.Name, Reads: []Read{}}
	defer func() { r.report.Writes = append(r.report.Writes, out) }()
	name, value := "kms-canary-"+random(5), random(16)
	var made *unstructured.Unstructured
	took, err := r.step(ctx, func(ctx context.Context) (err error) {
		made, err = r.secrets(w).Create(ctx, secret(name, value), metav1.CreateOptions{})
		return err
	})
	defer r.remove(w, name)
	out.Seconds = took.Seconds()
	if err != nil {
		r.problem("%s does not write: %v", w.Name, err)
		return
	}
	out.Written = true
	r.slow("to write", w.Name, took)
	r.inEtcd(ctx, &out, name)
	for _, s := range r.o.Readers {
		out.Reads = append(out.Reads, r.read(ctx, w, s, name, value, made.GetResourceVersion()))
	}
}

func secret(name, value string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Secret",
		"metadata": map[string]any{"name": name, "labels": map[string]any{label: "true"}, "annotations": map[string]any{label + "-by": kube.Hostname()}},
		"data":     map[string]any{"canary": base64.StdEncoding.EncodeToString([]byte(value))},
	}}
}

func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// read asks past the watch cache, then for what the cache has at the revision of
// the write: only after that the API server has surely opened it by its own plugin.
func (r *run) read(ctx context.Context, w, s *kube.Server, name, value, revision string) Read {
	out := Read{Server: s.Name}
	get := func(o metav1.GetOptions) (time.Duration, error) {
		return r.step(ctx, func(ctx context.Context) error {
			got, err := r.secrets(s).Get(ctx, name, o)
			if err != nil {
				return err
			}
			data, _, _ := unstructured.NestedString(got.Object, "data", "canary")
			if data != base64.StdEncoding.EncodeToString([]byte(value)) {
				return errors.New("it holds another value")
			}
			return nil
		})
	}
	took, err := get(metav1.GetOptions{})
	out.Seconds = took.Seconds()
	if err != nil {
		r.problem("%s does not read what %s wrote: %v", s.Name, w.Name, err)
		return out
	}
	r.slow("to read what "+w.Name+" wrote", s.Name, took)
	took, err = get(metav1.GetOptions{ResourceVersion: revision})
	out.CachedSeconds = took.Seconds()
	if err != nil {
		r.problem("the watch cache of %s does not get what %s wrote: %v", s.Name, w.Name, err)
		return out
	}
	r.slow("to have in its watch cache what "+w.Name+" wrote", s.Name, took)
	out.OK = true
	return out
}

func (r *run) inEtcd(ctx context.Context, out *Write, name string) {
	if r.o.Etcd == nil {
		return
	}
	key := r.o.Prefix + "/secrets/" + r.o.Namespace + "/" + name
	var raw []byte
	_, err := r.step(ctx, func(ctx context.Context) (err error) { raw, err = r.o.Etcd(ctx, key); return err })
	switch v := stored.Classify(raw); {
	case err != nil:
		r.problem("etcd: %v", err)
	case raw == nil:
		r.problem("etcd has no %s: is it the etcd of %s, and is --prefix right?", key, out.Server)
	case v.Kind == stored.KMSv2:
		out.Provider, out.KeyID = string(v.Name), string(v.Object.KeyID)
		if r.o.Provider != "" && out.Provider != r.o.Provider {
			r.problem("%s writes with provider %q, not %q", out.Server, out.Provider, r.o.Provider)
		}
		if r.o.KeyID != "" && out.KeyID != r.o.KeyID {
			r.problem("%s writes under key_id %q, not %q", out.Server, out.KeyID, r.o.KeyID)
		}
	case v.Kind == stored.Plain, v.Kind == stored.Other:
		r.problem("%s writes Secrets in PLAIN TEXT", out.Server)
	case v.Kind == stored.Broken:
		r.problem("%s writes what cannot be read: %s", out.Server, v.Reason)
	default:
		r.problem("%s writes with %s %q, not with KMS v2", out.Server, v.Kind, v.Name)
	}
}

func (r *run) sameKeyID() {
	first := -1
	for i, w := range r.report.Writes {
		switch {
		case w.KeyID == "":
		case first < 0:
			first = i
		case w.KeyID != r.report.Writes[first].KeyID:
			f := r.report.Writes[first]
			r.problem("%s writes under key_id %q and %s under %q", f.Server, f.KeyID, w.Server, w.KeyID)
		}
	}
}

// remove also works when the run was interrupted.
func (r *run) remove(s *kube.Server, name string) {
	_, err := r.step(context.Background(), func(ctx context.Context) error {
		return r.secrets(s).Delete(ctx, name, metav1.DeleteOptions{})
	})
	if err != nil && !apierrors.IsNotFound(err) {
		r.problem("Secret %s/%s is left behind: %v", r.o.Namespace, name, err)
	}
}

// sweep removes what runs left that were killed.
func (r *run) sweep(ctx context.Context, s *kube.Server) {
	_, err := r.step(ctx, func(ctx context.Context) error {
		list, err := r.secrets(s).List(ctx, metav1.ListOptions{LabelSelector: label + "=true"})
		if err != nil {
			return err
		}
		for _, x := range list.Items {
			if time.Since(x.GetCreationTimestamp().Time) < stale {
				continue
			}
			uid := x.GetUID()
			if err := r.secrets(s).Delete(ctx, x.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}); err != nil && !apierrors.IsNotFound(err) {
				return err
			}
			r.report.Removed++
		}
		return nil
	})
	if err != nil {
		r.problem("canaries of earlier runs are not removed: %v", err)
	}
}
