package daemon_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/audit/evidence"
	"kms-plugin.io/internal/daemon"
	"kms-plugin.io/test/awsenv"
	"kms-plugin.io/test/fakekms"
)

// journal is a log that can be read while it is written.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// instance is a running daemon with a connection to it.
type instance struct {
	t         *testing.T
	dir, file string
	cloud     *fakekms.Server
	arn       string
	log       *journal
	kms       kmsapi.KeyManagementServiceClient
	cancel    context.CancelFunc
	done      chan error
	hup       chan os.Signal
}

func environment(t *testing.T, cloud *fakekms.Server) {
	awsenv.Clear(t)
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", cloud.CredentialsURL("default"))
}

func newInstance(t *testing.T) *instance {
	t.Helper()
	cloud, err := fakekms.Start(fakekms.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cloud.Close)
	environment(t, cloud)
	return instanceOf(t, cloud)
}

// instanceOf has a key of its own in a cloud that others may use too.
func instanceOf(t *testing.T, cloud *fakekms.Server) *instance {
	t.Helper()
	dir, err := os.MkdirTemp("", "kd")
	if err != nil {
		t.Fatal(err)
	}
	i := &instance{t: t, dir: dir, file: filepath.Join(dir, "config.yaml"), cloud: cloud, log: &journal{}, hup: make(chan os.Signal, 1),
		arn: cloud.CreateKey("eu-west-1", fakekms.KeyOptions{})}
	t.Cleanup(func() {
		i.stop()
		os.RemoveAll(dir)
	})
	i.configure("")
	return i
}

func (i *instance) base() string {
	return fmt.Sprintf(`apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: test
socket: {path: %[1]s/kms.sock}
stateDir: %[1]s
listenAddress: 127.0.0.1:0
audit: {path: %[1]s/audit.log}
probe: {interval: 100ms}
rotation: {observations: 2, settleTime: 0s, readableFor: 1h}
reload: {interval: 100ms}
keys:
- name: prod
  role: write
  awskms: {keyARN: "%[2]s", endpoint: "%[3]s"}
`, i.dir, i.arn, i.cloud.URL())
}

func (i *instance) configure(extra string) { i.put(i.base() + extra) }

func (i *instance) put(data string) {
	i.t.Helper()
	if err := os.WriteFile(i.file, []byte(data), 0o600); err != nil {
		i.t.Fatal(err)
	}
}

func (i *instance) start() {
	i.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	i.cancel, i.done = cancel, make(chan error, 1)
	go func() {
		i.done <- daemon.Run(ctx, daemon.Options{Source: daemon.Source{Path: i.file}, Log: i.log, Reload: i.hup})
	}()
	i.eventually("the socket", func() error {
		select {
		case err := <-i.done:
			i.t.Fatalf("daemon ended: %v", err)
		default:
		}
		_, err := os.Stat(i.dir + "/kms.sock")
		return err
	})
	conn, err := grpc.NewClient("unix://"+i.dir+"/kms.sock", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { conn.Close() })
	i.kms = kmsapi.NewKeyManagementServiceClient(conn)
}

func (i *instance) stop() {
	if i.cancel == nil {
		return
	}
	i.cancel()
	i.cancel = nil
	if err := <-i.done; err != nil {
		i.t.Errorf("daemon: %v", err)
	}
}

func (i *instance) eventually(what string, f func() error) {
	i.t.Helper()
	deadline, tick := time.Now().Add(time.Minute), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			i.t.Fatalf("%s: %v\n%s", what, err, i.log)
		}
		<-tick.C
	}
}

// sealed waits until a seed can be encrypted.
func (i *instance) sealed() *kmsapi.EncryptResponse {
	i.t.Helper()
	var out *kmsapi.EncryptResponse
	i.eventually("Encrypt", func() (err error) {
		out, err = i.kms.Encrypt(i.t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte(seed), Uid: "test-uid"})
		return err
	})
	return out
}

const seed = "0123456789abcdef0123456789abcdef"

func (i *instance) decrypt(e *kmsapi.EncryptResponse) error { return i.decryptFor("test-uid", e) }

func (i *instance) decryptFor(uid string, e *kmsapi.EncryptResponse) error {
	in := request(e)
	in.Uid = uid
	r, err := i.kms.Decrypt(i.t.Context(), in)
	if err == nil && string(r.Plaintext) != seed {
		err = errors.New("other bytes came back")
	}
	return err
}

func request(e *kmsapi.EncryptResponse) *kmsapi.DecryptRequest {
	return &kmsapi.DecryptRequest{KeyId: e.KeyId, Ciphertext: e.Ciphertext, Annotations: e.Annotations, Uid: "test-uid"}
}

func (i *instance) get(path string) (string, int) {
	i.t.Helper()
	var addr string
	for line := range strings.Lines(i.log.String()) {
		var l struct{ HTTP string }
		if json.Unmarshal([]byte(line), &l) == nil && l.HTTP != "" {
			addr = l.HTTP
		}
	}
	resp, err := http.Get("http://" + addr + path)
	if err != nil {
		i.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		i.t.Fatal(err)
	}
	return string(b), resp.StatusCode
}

func (i *instance) metric(line string) {
	i.t.Helper()
	i.eventually(line, func() error {
		if text, _ := i.get("/metrics"); !strings.Contains(text, line+"\n") {
			return errors.New("not in the metrics")
		}
		return nil
	})
}

// anchored demands that what the cloud logged of the probes confirms the audit log.
func (i *instance) anchored(files ...string) {
	i.t.Helper()
	trail := filepath.Join(i.dir, "trail.json")
	i.eventually("records are anchored", func() error {
		if err := os.WriteFile(trail, i.cloud.Trail(), 0o600); err != nil {
			return err
		}
		anchors, err := evidence.LoadAnchors([]string{trail})
		if err != nil {
			return err
		}
		r, err := evidence.Verify(files, anchors, false)
		if err != nil {
			return err
		}
		if !r.Holds || len(r.Chains) != 1 || r.Chains[0].Anchored < 2 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
}
