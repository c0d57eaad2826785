package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"kms-plugin.io/internal/kube"
)

// Unasked is what stands against the claim that every API server was asked.
type Unasked struct {
	Problems []Problem
	Unknown  string // why it cannot be told whether there are more
}

// Problem is one API server that was not asked, and what to do about it.
type Problem struct{ Text, Remedy string }

func (p Problem) String() string { return p.Text + ": " + p.Remedy }

// Unasked compares the identity leases with the servers. One that lives could write
// under any key; one that is down comes back with the plugin and the configuration
// it had. Which lease is that of a server that gave no answer nobody can tell: as
// many leases as there are such servers are held for theirs.
func (s *State) Unasked() (u Unasked) {
	if len(s.Identities) == 0 {
		u.Unknown = "the cluster has no identity leases of API servers (feature gate APIServerIdentity)"
		return u
	}
	hidden := 0
	for _, x := range s.Servers {
		if x.IDHash == "" {
			hidden++
			if x.Error == "" {
				u.Unknown = x.Name + " does not tell its identity in its metrics"
			}
		}
	}
	for _, id := range s.Identities {
		if !slices.ContainsFunc(s.Servers, func(x Server) bool { return x.IDHash == id.Hash }) {
			u.Problems = append(u.Problems, id.problem())
		}
	}
	if len(u.Problems) <= hidden {
		u.Problems = nil
	}
	u.Problems = append(u.Problems, s.doubles()...)
	if n := len(s.Nodes); n > len(s.Servers) && u.Unknown == "" {
		// A shutdown in good order takes the lease away (k8s.io/component-helpers
		// lease.Controller.Stop); the Node stays.
		u.Unknown = fmt.Sprintf("there are %d control-plane Nodes (%s) and %d API servers were asked; one that was shut down leaves no lease",
			n, strings.Join(s.Nodes, ", "), len(s.Servers))
	}
	return u
}

// doubles are addresses of one API server: each counts as if it were another one. An
// identity is that of a host, so that it must be the same process too.
func (s *State) doubles() (out []Problem) {
	for i, x := range s.Servers {
		same := func(o Server) bool { return o.IDHash == x.IDHash && o.Started.Equal(x.Started) }
		if j := slices.IndexFunc(s.Servers[:i], same); j >= 0 && x.IDHash != "" && !x.Started.IsZero() {
			out = append(out, Problem{fmt.Sprintf("%s and %s are the same API server", s.Servers[j].Name, x.Name), "give each API server once, by its own address and not by that of a load balancer"})
		}
	}
	return out
}

func (id *Identity) problem() Problem {
	if !id.Stale {
		return Problem{fmt.Sprintf("an API server on host %q lives (lease %s) and was not asked", id.Host, id.Lease), "add it to --servers"}
	}
	since := "never renewed its lease"
	if !id.Renewed.IsZero() {
		since = "last renewed its lease at " + id.Renewed.Format("2006-01-02 15:04:05Z")
	}
	return Problem{fmt.Sprintf("API server %s on host %q is gone or down: it %s", id.Lease, id.Host, since),
		"bring it up, or delete the lease if it is gone for ever: kubectl delete lease -n kube-system " + id.Lease}
}

// AllowUnknown is the flag by which an operator answers for what is unknown.
const AllowUnknown = "allow-unknown-apiservers"

// UnknownText tells people; "" if nothing is unknown.
func (u Unasked) UnknownText() string {
	if u.Unknown == "" {
		return ""
	}
	return "whether an API server was overlooked cannot be told: " + u.Unknown + " (--" + AllowUnknown + " if you know that there is none)"
}

// Count is Unasked of these servers, asked now; a server without an answer is a
// problem of its own.
func Count(ctx context.Context, servers []*kube.Server) (s *State, u Unasked) {
	s = &State{Servers: Servers(ctx, servers, "")}
	for _, x := range s.Servers {
		if x.Error != "" {
			u.Problems = append(u.Problems, Problem{x.Name + ": " + x.Error, "bring it up"})
		}
	}
	if err := s.census(ctx, servers); err != nil {
		u.Problems = append(u.Problems, Problem{err.Error(), "an administrator may list leases and nodes"})
		return s, u
	}
	more := s.Unasked()
	return s, Unasked{append(u.Problems, more.Problems...), more.Unknown}
}

var nodes = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}

const controlPlaneLabel = "node-role.kubernetes.io/control-plane"

// census reads what the cluster says of its API servers, by the first that answers.
func (s *State) census(ctx context.Context, servers []*kube.Server) (err error) {
	for _, server := range servers {
		if err = s.censusBy(ctx, server); err == nil {
			return nil
		}
	}
	return err
}

func (s *State) censusBy(ctx context.Context, server *kube.Server) (err error) {
	if s.Identities, err = Identities(ctx, server); err != nil {
		return err
	}
	list, err := server.Dynamic.Resource(nodes).List(ctx, metav1.ListOptions{LabelSelector: controlPlaneLabel})
	if err != nil {
		return fmt.Errorf("control-plane Nodes: %w", err)
	}
	for _, x := range list.Items {
		s.Nodes = append(s.Nodes, x.GetName())
	}
	return nil
}
