//go:build e2enode

package e2enode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/test/node"
)

const healTime = 4 * time.Minute // kube-apiserver dials again every two minutes after a long absence

// restart cuts the power and boots again.
func restart(t *testing.T, n *node.Node) {
	t.Helper()
	must(t, n.Kill())
	must(t, n.Boot(t.Context()))
}

// reboot: the node comes up by itself.
func (c *cluster) reboot(t *testing.T) {
	begun := time.Now()
	restart(t, c.nodes[0])
	c.ready(t, c.api, healTime)
	t.Logf("ready %.1f s after the power came back", time.Since(begun).Seconds())
	read(t, c.api, "first")
	create(t, c.api, "after-reboot")
}

// The cloud is away for the first minute of a boot: nothing crashes, the API
// server says what is wrong, and it heals by itself.
func (c *cluster) rebootWithoutCloud(t *testing.T) {
	n := c.nodes[0]
	c.cloud.Blackhole()
	defer c.cloud.Unblackhole()
	cut := time.Now()
	restart(t, n)
	begun := time.Now()
	within(t, healTime, "the API server says that the KMS is away", func(ctx context.Context) error {
		text, err := c.api.Text(ctx, "/healthz/kms-providers")
		if err == nil || !strings.Contains(text, "Unavailable") {
			return fmt.Errorf("healthz: %q, %v", text, err)
		}
		return nil
	})
	answers(t, c.api, "/livez", healTime)
	t.Logf("live, though not ready, after %.1f s", time.Since(begun).Seconds())
	var restarts int
	within(t, healTime, "kubelet's word that the plugin runs again", func(ctx context.Context) error {
		p, err := pluginStatus(ctx, c, n)
		if err == nil && (p.State.Running == nil || p.State.Running.StartedAt.Before(cut.Truncate(time.Second))) {
			err = fmt.Errorf("%+v", p)
		}
		restarts = p.RestartCount
		return err
	})
	within(t, healTime, "a minute without the cloud", func(ctx context.Context) error {
		answers(t, c.api, "/livez", 20*time.Second) // where etcd is slow it fails for a moment; kubelet forgives eight of them
		if _, err := c.api.GetSecret(ctx, "first"); err == nil {
			fail(t, "a Secret was read without the KMS")
		}
		if d := time.Since(begun); d < time.Minute {
			return fmt.Errorf("%s", d)
		}
		return nil
	})
	out, err := n.Run(t.Context(), "kmsctl", "status", "--metrics", "127.0.0.1:8082")
	t.Logf("kmsctl status: %v\n%s", err, out)
	if !strings.Contains(out, "ready false") {
		t.Error("kmsctl status does not say that the plugin is not ready")
	}
	if p := pluginOf(t, c, n); p.RestartCount != restarts || p.State.Running == nil {
		t.Errorf("the plugin did not stay up: %+v", p)
	}
	text, _ := c.api.Text(t.Context(), "/healthz/kms-providers")
	t.Logf("after a minute: %s", strings.TrimSpace(text))
	c.cloud.Unblackhole()
	back := time.Now()
	c.ready(t, c.api, healTime)
	t.Logf("ready %.1f s after the KMS came back", time.Since(back).Seconds())
	read(t, c.api, "first")
	create(t, c.api, "after-outage")
}

// The plugin's image is gone at a boot: kubelet says so, by name, in the status of
// the pod; and it heals when the image is there again.
func (c *cluster) rebootWithoutImage(t *testing.T) {
	n, ref := c.nodes[0], goodImage
	must(t, n.RemoveImage(t.Context(), ref))
	restart(t, n)
	within(t, healTime, "the pod's status names the image", func(ctx context.Context) error {
		p, err := pluginStatus(ctx, c, n)
		if err != nil {
			return err
		}
		if w := p.State.Waiting; w == nil || !strings.Contains(w.Reason, "Image") || !strings.Contains(w.Message, ref) {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	w := pluginOf(t, c, n).State.Waiting
	t.Logf("kubelet: %s: %s", w.Reason, w.Message)
	text, err := c.api.Text(t.Context(), "/healthz/kms-providers")
	if err == nil || !strings.Contains(text, "/run/kms-plugin/kms.sock") {
		t.Errorf("healthz/kms-providers: %q, %v", text, err)
	}
	c.follow(t, n, "kubeadm-new", "image")
	back := time.Now()
	c.ready(t, c.api, healTime)
	t.Logf("ready %.1f s after the image came back", time.Since(back).Seconds())
	read(t, c.api, "first")
}

// containerStatus is what kubelet says of a container.
type containerStatus struct {
	Image        string
	Ready        bool
	RestartCount int
	State        struct {
		Running, Terminated *struct{ StartedAt time.Time }
		Waiting             *struct{ Reason, Message string }
	}
}

func pluginOf(t *testing.T, c *cluster, n *node.Node) containerStatus {
	t.Helper()
	s, err := pluginStatus(t.Context(), c, n)
	must(t, err)
	return s
}

// pluginStatus reads the status of the plugin's mirror pod.
func pluginStatus(ctx context.Context, c *cluster, n *node.Node) (containerStatus, error) {
	text, err := c.api.Text(ctx, "/api/v1/namespaces/kube-system/pods/kms-plugin-"+n.Name)
	if err != nil {
		return containerStatus{}, err
	}
	var pod struct {
		Status struct{ ContainerStatuses []containerStatus }
	}
	if err := json.Unmarshal([]byte(text), &pod); err != nil {
		return containerStatus{}, err
	}
	if len(pod.Status.ContainerStatuses) != 1 {
		return containerStatus{}, errors.New("no status of the container yet")
	}
	return pod.Status.ContainerStatuses[0], nil
}

// join: a second control plane reads what the first one wrote, through its own
// plugin, and the first what the second wrote.
func (c *cluster) join(t *testing.T) {
	first, second := c.nodes[0], c.addNode(t)
	copyKit(t, first, second)
	c.follow(t, second, made, "image")
	c.follow(t, second, "nodes", "second-node")
	begun := time.Now()
	must(t, second.Join(t.Context(), first))
	api, err := second.Client()
	must(t, err)
	c.ready(t, api, healTime)
	t.Logf("joined and ready in %.1f s", time.Since(begun).Seconds())
	read(t, api, "first")
	create(t, api, "from-the-second")
	read(t, c.api, "from-the-second")
	if c.cloud.Calls().Principals[second.Name] == 0 {
		t.Error("the second plugin asked the cloud nothing: whose plugin opened the Secret?")
	}
	out, _ := kmsctl(t, first, 0, "canary", "--kubeconfig", "/etc/kubernetes/admin.conf", "--etcd")
	t.Logf("kmsctl canary:\n%s", out)
	if !strings.Contains(out, first.IP) || !strings.Contains(out, second.IP) {
		t.Error("the canary did not go through both API servers")
	}
	strangeCertificates(t, first)
}

// strangeCertificates: kubeadm's etcd has a CA of its own; what is of the cluster's opens
// nothing, and the error says so.
func strangeCertificates(t *testing.T, n *node.Node) {
	t.Helper()
	const pki = "/etc/kubernetes/pki/"
	kmsctl(t, n, 0, "coverage")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--cacert", pki + "ca.crt"}, "unknown authority"},
		{[]string{"--cert", pki + "apiserver-kubelet-client.crt", "--key", pki + "apiserver-kubelet-client.key"}, "certificate"},
	} {
		if _, log := kmsctl(t, n, 1, append([]string{"coverage"}, tt.args...)...); !strings.Contains(log, tt.want) || !strings.Contains(log, "hint: ") {
			t.Errorf("%v: no %q, or no hint, in %s", tt.args, tt.want, log)
		}
	}
}
