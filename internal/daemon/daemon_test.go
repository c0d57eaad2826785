package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/test/fakekms"
)

func TestServe(t *testing.T) {
	i := newInstance(t)
	i.start()
	e := i.sealed()
	s, err := i.kms.Status(t.Context(), &kmsapi.StatusRequest{})
	if err != nil || s.Version != "v2" || s.Healthz != "ok" || s.KeyId != e.KeyId {
		t.Fatalf("Status = %v, %v; Encrypt's key_id is %q", s, err, e.KeyId)
	}
	if err := i.decrypt(e); err != nil {
		t.Fatal(err)
	}
	size := len(envelope.AnnotationKey) + len(e.Annotations[envelope.AnnotationKey])
	if size >= 400 || len(e.Annotations) != 1 {
		t.Errorf("annotations have %d bytes, want less than 400", size)
	}
	if _, code := i.get("/livez"); code != http.StatusOK {
		t.Errorf("/livez = %d", code)
	}
	if text, code := i.get("/readyz"); code != http.StatusOK {
		t.Errorf("/readyz = %d %s", code, text)
	}
	i.metric(`kms_plugin_rpc_duration_seconds_count{code="OK",method="Decrypt"} 1`)
	i.metric(`kms_plugin_key_state{key="prod",op="unwrap",state="ok"} 1`)
	i.metric(`kms_plugin_revocation_bound_seconds{class="outage"} 259217.61`)
	i.eventually("the credential in the metrics", func() error {
		text, _ := i.get("/metrics")
		for _, want := range []string{`kms_plugin_credential_info{key="prod",kind="container",source="127.0.0.1:`, `kms_plugin_credential_expiry_timestamp_seconds{key="prod"} 1.`, `kms_plugin_credential_renewal_failing{key="prod"} 0`} {
			if !strings.Contains(text, want) {
				return fmt.Errorf("%s is not there", want)
			}
		}
		return nil
	})
	i.stop()
	if _, err := os.Lstat(i.dir + "/kms.sock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	audit, err := os.ReadFile(i.dir + "/audit.log")
	if err != nil || !bytes.Contains(audit, []byte(`"op":"decrypt","uid":"test-uid"`)) || !bytes.Contains(audit, []byte(`"op":"activate"`)) {
		t.Errorf("audit log: %s, %v", audit, err)
	}
	for name, text := range map[string]string{"log": i.log.String(), "audit log": string(audit)} {
		if strings.Contains(text, seed) {
			t.Errorf("the seed is in the %s", name)
		}
	}
}

// The socket answers before the cloud does, and Encrypt works soon after.
func TestStartWhileTheCloudIsAway(t *testing.T) {
	i := newInstance(t)
	i.cloud.Refuse()
	i.start()
	i.eventually("Status names the cause", func() error {
		_, err := i.kms.Status(t.Context(), &kmsapi.StatusRequest{})
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "Unreachable") {
			return fmt.Errorf("Status = %v", err)
		}
		return nil
	})
	if _, code := i.get("/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz = %d", code)
	}
	if _, code := i.get("/livez"); code != http.StatusOK {
		t.Errorf("/livez = %d: an outage must not restart the plugin", code)
	}
	i.cloud.Listen()
	i.sealed()
}

// More Decrypts wait for a black hole than may, on fewer streams than there are (the
// client would keep the rest to itself): Status and known work pass on the same connection.
func TestStatusPassesInABlackHole(t *testing.T) {
	i := newInstance(t)
	i.start()
	e := i.sealed()
	i.cloud.Blackhole()
	defer i.cloud.Unblackhole()
	var wg sync.WaitGroup
	for n := range 300 {
		h, err := envelope.Parse(e.Annotations[envelope.AnnotationKey])
		if err != nil {
			t.Fatal(err)
		}
		h.LocalKEK[0], h.LocalKEK[1] = byte(n), byte(n>>8)
		h.LocalKEK[2] ^= 1 // never the true one
		raw, err := h.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			r := request(e)
			r.Annotations = map[string][]byte{envelope.AnnotationKey: raw}
			if _, err := i.kms.Decrypt(ctx, r); err == nil || status.Code(err) == codes.DeadlineExceeded {
				t.Errorf("Decrypt in a black hole = %v, want an error of the plugin's own", err)
			}
		})
	}
	i.eventually("the crowd waits", func() error {
		if i.cloud.Calls().Connections < 10 {
			return errors.New("not yet")
		}
		return nil
	})
	for range 5 {
		for what, call := range map[string]func(context.Context) error{
			"Status":                   func(ctx context.Context) error { _, err := i.kms.Status(ctx, &kmsapi.StatusRequest{}); return err },
			"Decrypt of what is known": func(ctx context.Context) error { _, err := i.kms.Decrypt(ctx, request(e)); return err },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			if err := call(ctx); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			cancel()
		}
	}
	wg.Wait()
}

func TestReload(t *testing.T) {
	i := newInstance(t)
	i.start()
	e := i.sealed()
	second := i.cloud.CreateKey("eu-central-1", fakekms.KeyOptions{})
	entry := func(rest string) string {
		return fmt.Sprintf("- {name: next, %s, awskms: {keyARN: \"%s\", endpoint: \"%s\"}}\n", rest, second, i.cloud.URL())
	}
	i.metric("kms_plugin_config_disk_differs 0")
	for name, bad := range map[string]struct{ file, want string }{
		"typo":            {i.base() + "rotaton: {}\n", "unknown field"},
		"another cluster": {strings.Replace(i.base(), "clusterID: test", "clusterID: tset", 1), "it cannot change"},
		"needs a restart": {i.base() + "logLevel: debug\n", "a reload does not change it"},
		"key dropped":     {strings.NewReplacer("name: prod", "name: next", i.arn, second).Replace(i.base()), "missing from the new configuration"},
		"writes at once":  {i.base() + entry("role: write, activateAt: 2026-01-01T00:00:00Z"), "readable here for only"},
		"alias":           {i.base() + strings.Replace(entry("role: read"), second, "alias/x", 1), "alias"},
		"empty":           {"", "the file is empty"},
	} {
		i.put(bad.file)
		i.eventually(name, func() error {
			if !strings.Contains(i.log.String(), bad.want) {
				return fmt.Errorf("the log does not say %q", bad.want)
			}
			return nil
		})
		i.metric("kms_plugin_config_disk_differs 1")
		if err := i.decrypt(e); err != nil {
			t.Errorf("%s: Decrypt: %v", name, err)
		}
		i.configure("")
		i.metric("kms_plugin_config_disk_differs 0")
	}
	i.configure(entry("role: read"))
	i.metric(`kms_plugin_key_state{key="next",op="wrap",state="unknown"} 1`)
	if s, err := i.kms.Status(t.Context(), &kmsapi.StatusRequest{}); err != nil || s.KeyId != e.KeyId {
		t.Errorf("Status after a reload = %v, %v", s, err)
	}
	// A file that does not load does not keep the next start from serving.
	i.stop()
	i.put("stateDir: " + i.dir + "\nkeys: [\n")
	i.start()
	if err := i.decrypt(e); err != nil {
		t.Errorf("after a start with a broken file: %v", err)
	}
	i.metric("kms_plugin_config_disk_differs 1")
}

// SIGHUP reloads at once and opens the audit log again after a rotation.
func TestSIGHUP(t *testing.T) {
	i := newInstance(t)
	i.put(strings.Replace(i.base(), "reload: {interval: 100ms}", "reload: {interval: 1h}", 1))
	i.start()
	i.sealed()
	if err := os.Rename(i.dir+"/audit.log", i.dir+"/audit.log.1"); err != nil {
		t.Fatal(err)
	}
	i.put(strings.Replace(i.base(), "reload: {interval: 100ms}", "reload: {interval: 30m}", 1))
	i.hup <- syscall.SIGHUP
	i.eventually("reloaded", func() error {
		if !strings.Contains(i.log.String(), "configuration reloaded") {
			return errors.New("not yet")
		}
		return nil
	})
	i.sealed()
	i.eventually("the new audit log is written", func() error {
		data, err := os.ReadFile(i.dir + "/audit.log")
		if err == nil && !bytes.Contains(data, []byte(`"op":"encrypt"`)) {
			err = errors.New("no record")
		}
		return err
	})
	i.anchored(i.dir+"/audit.log", i.dir+"/audit.log.1")
}
