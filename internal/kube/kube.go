// Package kube reaches each kube-apiserver of a cluster by itself, past any load
// balancer. It must not know what is asked of them.
package kube

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kms-plugin.io/internal/cli"
)

// Server is one kube-apiserver.
type Server struct {
	Name    string // host:port
	Dynamic dynamic.Interface
	REST    *rest.RESTClient
}

// Config says how to reach them.
type Config struct {
	Kubeconfig string   // "" is $KUBECONFIG, ~/.kube/config, or the pod's own identity
	Context    string   // of the kubeconfig; "" is its current one
	Servers    []string // https://host:port of each; none: those of Service default/kubernetes
	UserAgent  string
	Timeout    time.Duration // of one request
}

// Connect finds the API servers. Without Servers it asks the one of the
// kubeconfig for the endpoints that all of them report of themselves.
func Connect(ctx context.Context, c Config) ([]*Server, error) {
	loader := clientcmd.NewDefaultClientConfigLoadingRules()
	loader.ExplicitPath = c.Kubeconfig
	base, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(loader, &clientcmd.ConfigOverrides{CurrentContext: c.Context}).ClientConfig()
	if err != nil {
		return nil, cli.WithHint(fmt.Errorf("kubeconfig: %w", err), "--kubeconfig /etc/kubernetes/admin.conf on a control-plane node")
	}
	base.QPS, base.UserAgent, base.Timeout = -1, c.UserAgent, c.Timeout // the server's own flow control decides
	base.WarningHandler = rest.NoWarnings{}
	servers := c.Servers
	if len(servers) == 0 {
		if servers, err = discover(ctx, base); err != nil {
			return nil, err
		}
	}
	var out []*Server
	for _, s := range servers {
		server, err := connect(base, s)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(o *Server) bool { return o.Name == server.Name }) {
			return nil, cli.Usage(fmt.Errorf("API server %s is given twice", server.Name))
		}
		out = append(out, server)
	}
	return out, nil
}

func connect(base *rest.Config, address string) (*Server, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" {
		return nil, cli.Usage(fmt.Errorf("API server %q is not of the form https://host:port", address))
	}
	config := rest.CopyConfig(base)
	config.Host = address
	d, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", address, err)
	}
	raw := dynamic.ConfigFor(config)
	raw.GroupVersion = &schema.GroupVersion{}
	r, err := rest.RESTClientFor(raw)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", address, err)
	}
	return &Server{Name: u.Host, Dynamic: d, REST: r}, nil
}

var endpointSlices = schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}

// discover reads what the API servers' endpoint reconciler wrote
// (k8s.io/kubernetes pkg/controlplane/reconcilers).
func discover(ctx context.Context, base *rest.Config) ([]string, error) {
	d, err := dynamic.NewForConfig(base)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", base.Host, err)
	}
	list, err := d.Resource(endpointSlices).Namespace("default").List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=kubernetes"})
	if err != nil {
		return nil, fmt.Errorf("API server %s: find the others: %w", base.Host, err)
	}
	var out []string
	for _, s := range list.Items {
		out = append(out, addresses(s.Object)...)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if len(out) == 0 {
		return nil, cli.WithHint(fmt.Errorf("service default/kubernetes has no endpoints"), "give them: --servers https://10.0.0.1:6443,https://10.0.0.2:6443")
	}
	return out, nil
}

func addresses(slice map[string]any) (out []string) {
	ports, _, _ := unstructured.NestedSlice(slice, "ports")
	endpoints, _, _ := unstructured.NestedSlice(slice, "endpoints")
	for _, p := range ports {
		port, _, _ := unstructured.NestedInt64(asMap(p), "port")
		for _, e := range endpoints {
			hosts, _, _ := unstructured.NestedStringSlice(asMap(e), "addresses")
			for _, h := range hosts {
				out = append(out, "https://"+net.JoinHostPort(h, strconv.FormatInt(port, 10)))
			}
		}
	}
	return out
}

func asMap(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

// Hostname names this machine in objects that we leave in the cluster.
func Hostname() string {
	h, err := os.Hostname()
	if err != nil || h == "" {
		return "unknown"
	}
	return h
}
