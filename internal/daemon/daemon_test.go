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
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/audit/evidence"
	"kms-plugin.io/internal/daemon"
	"kms-plugin.io/internal/envelope"
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

func (i *instance) decrypt(e *kmsapi.EncryptResponse) error {
	r, err := i.kms.Decrypt(i.t.Context(), request(e))
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

func TestHostileRequests(t *testing.T) {
	i := newInstance(t)
	i.start()
	e := i.sealed()
	big := bytes.Repeat([]byte{1}, 4<<20)
	for name, tc := range map[string]struct {
		change func(*kmsapi.DecryptRequest)
		code   codes.Code
		want   string
	}{
		"no ciphertext":     {func(r *kmsapi.DecryptRequest) { r.Ciphertext = nil }, codes.InvalidArgument, "ciphertext is empty"},
		"one byte":          {func(r *kmsapi.DecryptRequest) { r.Ciphertext = []byte{1} }, codes.InvalidArgument, "only 1 bytes"},
		"long ciphertext":   {func(r *kmsapi.DecryptRequest) { r.Ciphertext = big[:1025] }, codes.InvalidArgument, "at most 1024"},
		"4 MiB":             {func(r *kmsapi.DecryptRequest) { r.Ciphertext = big }, codes.ResourceExhausted, "larger than max"},
		"no key_id":         {func(r *kmsapi.DecryptRequest) { r.KeyId = "" }, codes.InvalidArgument, "key_id is empty"},
		"long key_id":       {func(r *kmsapi.DecryptRequest) { r.KeyId = strings.Repeat("k", 1025) }, codes.InvalidArgument, "at most 1024"},
		"foreign key_id":    {func(r *kmsapi.DecryptRequest) { r.KeyId = "arn:aws:kms:x" }, codes.InvalidArgument, "not of the form"},
		"lying key_id":      {func(r *kmsapi.DecryptRequest) { r.KeyId = "prod:" + strings.Repeat("a", 32) }, codes.InvalidArgument, "does not belong to its header"},
		"no annotations":    {func(r *kmsapi.DecryptRequest) { r.Annotations = nil }, codes.InvalidArgument, "is missing"},
		"large annotations": {func(r *kmsapi.DecryptRequest) { r.Annotations["a.b"] = big[:33<<10] }, codes.InvalidArgument, "at most 32768"},
		"more annotations":  {func(r *kmsapi.DecryptRequest) { r.Annotations["a.b"] = nil }, codes.InvalidArgument, "there are 2 annotations"},
		"future format":     {func(r *kmsapi.DecryptRequest) { r.Annotations[envelope.AnnotationKey][0] = 2 }, codes.InvalidArgument, "format 2 is not known"},
		"no uid":            {func(r *kmsapi.DecryptRequest) { r.Uid = "" }, codes.InvalidArgument, "uid has 0 bytes"},
		"not UTF-8":         {func(r *kmsapi.DecryptRequest) { r.KeyId = "\xff\xfe" }, codes.Internal, "UTF-8"},
	} {
		r := request(e)
		r.Annotations = map[string][]byte{envelope.AnnotationKey: bytes.Clone(e.Annotations[envelope.AnnotationKey])}
		tc.change(r)
		_, err := i.kms.Decrypt(t.Context(), r)
		if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Decrypt = %v, want %v with %q", name, err, tc.code, tc.want)
		}
	}
	for name, p := range map[string][]byte{"no plaintext": nil, "short": big[:31], "long": big[:33]} {
		if _, err := i.kms.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: p, Uid: "u"}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: Encrypt = %v, want InvalidArgument", name, err)
		}
	}
	if err := i.decrypt(e); err != nil {
		t.Errorf("after all that: %v", err)
	}
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

func TestFirstStartRefuses(t *testing.T) {
	i := newInstance(t)
	for name, tc := range map[string]struct{ file, want string }{
		"broken":    {"a: [", "did not find"},
		"no keyset": {strings.Split(i.base(), "keys:")[0] + "keys: [{name: l, role: write, localfile: {path: /nonexistent}}]\n", "keyset file"},
	} {
		i.put(tc.file)
		err := daemon.Run(t.Context(), daemon.Options{Source: daemon.Source{Path: i.file}, Log: i.log})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Run = %v, want %q", name, err, tc.want)
		}
	}
	i.configure("")
	if err := os.Chmod(i.file, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Run(t.Context(), daemon.Options{Source: daemon.Source{Path: i.file}, Log: i.log}); err == nil || !strings.Contains(err.Error(), "can be written by others") {
		t.Errorf("world-writable configuration: Run = %v", err)
	}
}

func TestStateFileThatCannotBeTrusted(t *testing.T) {
	i := newInstance(t)
	i.start()
	e := i.sealed()
	i.stop()
	path := i.dir + "/state.json"
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"empty":     func() error { return os.WriteFile(path, nil, 0o600) },
		"truncated": func() error { return os.WriteFile(path, whole[:len(whole)/2], 0o600) },
		"flipped": func() error {
			c := bytes.Clone(whole)
			c[len(c)/2] ^= 1
			return os.WriteFile(path, c, 0o600)
		},
		"another's": func() error { return errors.Join(os.WriteFile(path, whole, 0o600), os.Chown(path, 4242, 4242)) },
		"readable": func() error {
			return errors.Join(os.WriteFile(path, whole, 0o600), os.Chown(path, 0, 0), os.Chmod(path, 0o644))
		},
		"symlink": func() error {
			return errors.Join(os.Remove(path), os.WriteFile(path+"x", whole, 0o600), os.Symlink(path+"x", path))
		},
		"directory": func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	} {
		if err := spoil(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		before := strings.Count(i.log.String(), "state file is ignored")
		i.start()
		if got := i.sealed(); got.KeyId != e.KeyId {
			t.Errorf("%s: key_id %q, want %q", name, got.KeyId, e.KeyId)
		}
		if err := i.decrypt(e); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Count(i.log.String(), "state file is ignored") == before {
			t.Errorf("%s: nothing in the log", name)
		}
		i.stop()
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCheck(t *testing.T) {
	i := newInstance(t)
	old := i.file + ".old"
	if err := os.WriteFile(old, []byte(i.base()), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := daemon.Check(t.Context(), i.file, old); err != nil || p != nil {
		t.Errorf("Check of a good file = %v, %v", p, err)
	}
	i.put(strings.Replace(i.base(), i.arn, "alias/prod", 1))
	p, err := daemon.Check(t.Context(), i.file, "")
	if err != nil || len(p) != 1 || p[0].Line != 12 || !strings.Contains(p[0].Message, "alias") || !strings.Contains(p[0].Hint, "describe-key") {
		t.Errorf("Check of an alias = %+v, %v", p, err)
	}
	if _, err := daemon.Check(t.Context(), "/nonexistent", ""); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("Check of no file = %v", err)
	}
	if calls := i.cloud.Calls().Total(); calls != 0 {
		t.Errorf("config check made %d calls to the cloud", calls)
	}
}
