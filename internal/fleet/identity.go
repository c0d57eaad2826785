package fleet

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"kms-plugin.io/internal/kube"
	"kms-plugin.io/internal/metrics"
)

// Identity is an API server by the lease that it renews, of the same name after each
// start: it is a hash of its hostname.
type Identity struct {
	Lease   string    `json:"lease"`
	Host    string    `json:"host"` // its hostname
	Hash    string    `json:"hash"` // as in its metrics
	Renewed time.Time `json:"renewed"`
	Stale   bool      `json:"stale,omitempty"` // it does not renew any more
}

var leases = schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}

const (
	identityLabel = "apiserver.kubernetes.io/identity"
	hostLabel     = "kubernetes.io/hostname"
	// dead is when an API server is gone or down: it renews its lease every ten seconds
	// (IdentityLeaseRenewIntervalPeriod), though the lease itself lasts an hour, and is
	// taken away in another hour at most (IdentityLeaseGCPeriod).
	dead = time.Minute
)

// Identities reads the leases of the kube-apiservers. A clock that is ahead, ours or
// that of one of them, does not make the others stale.
func Identities(ctx context.Context, server *kube.Server) ([]Identity, error) {
	list, err := server.Dynamic.Resource(leases).Namespace(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{LabelSelector: identityLabel + "=kube-apiserver"})
	if err != nil {
		return nil, fmt.Errorf("identity leases of API servers: %w", err)
	}
	out := []Identity{}
	var newest time.Time
	for _, x := range list.Items {
		text, _, _ := unstructured.NestedString(x.Object, "spec", "renewTime")
		at, _ := time.Parse(time.RFC3339Nano, text) // zero: never renewed
		if at.After(newest) {
			newest = at
		}
		out = append(out, Identity{Lease: x.GetName(), Host: x.GetLabels()[hostLabel], Hash: metrics.KeyIDHash(x.GetName()), Renewed: at.UTC()})
	}
	if now := time.Now(); now.Before(newest) {
		newest = now
	}
	for i := range out {
		out[i].Stale = newest.Sub(out[i].Renewed) > dead
	}
	return out, nil
}
