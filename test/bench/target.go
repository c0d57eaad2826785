package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/test/fakekms"
)

// target is one server process under measurement.
type target struct {
	name   string
	socket string
	cmd    *exec.Cmd
	conn   *grpc.ClientConn
	kms    kmsapi.KeyManagementServiceClient
	log    string
	accept time.Duration // from start to the first accepted connection
	sealed *kmsapi.EncryptResponse
}

// floor is the default gRPC server that does nothing, in a process of its own.
func startFloor(dir, name string) (*target, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	t := &target{name: name, socket: filepath.Join(dir, name+".sock")}
	t.cmd = exec.Command(exe, "-floor", t.socket)
	return t, t.start()
}

// serveFloor is the child's side.
func serveFloor(socket string) error {
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(s, noop{})
	return s.Serve(ln)
}

type noop struct {
	kmsapi.UnimplementedKeyManagementServiceServer
}

func (noop) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	return &kmsapi.StatusResponse{Version: "v2", Healthz: "ok", KeyId: "noop"}, nil
}

func (noop) Encrypt(_ context.Context, r *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
	return &kmsapi.EncryptResponse{Ciphertext: r.Plaintext, KeyId: "noop"}, nil
}

func (noop) Decrypt(_ context.Context, r *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	return &kmsapi.DecryptResponse{Plaintext: r.Ciphertext[:32]}, nil
}

// pluginOptions say how the daemon under measurement is configured.
type pluginOptions struct {
	cloud    *fakekms.Server
	arn      string
	wrapping string
	tls      bool
	probe    string // interval, default 60s
}

func startPlugin(dir, binary, name string, o pluginOptions) (*target, error) {
	home := filepath.Join(dir, name)
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	bundle := ""
	if o.tls {
		bundle = filepath.Join(home, "ca.pem")
		if err := os.WriteFile(bundle, o.cloud.CABundlePEM(), 0o600); err != nil {
			return nil, err
		}
	}
	t := &target{name: name, socket: filepath.Join(home, "kms.sock")}
	config := filepath.Join(home, "config.yaml")
	if o.probe == "" {
		o.probe = "60s"
	}
	if err := os.WriteFile(config, fmt.Appendf(nil, `apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: %s
socket: {path: %s}
stateDir: %s
listenAddress: 127.0.0.1:0
probe: {interval: %s}
wrapping: %s
audit: {path: %s/audit.log}
keys:
- {name: prod, role: write, awskms: {keyARN: "%s", endpoint: "%s", caBundle: "%s"}}
`, clusterID, t.socket, home, o.probe, o.wrapping, home, o.arn, o.cloud.URL(), bundle), 0o600); err != nil {
		return nil, err
	}
	t.log = filepath.Join(home, "log")
	log, err := os.Create(t.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	t.cmd = exec.Command(binary, "serve", "--config", config)
	t.cmd.Stderr = log
	t.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "AWS_CONTAINER_CREDENTIALS_FULL_URI=" + o.cloud.CredentialsURL("default"),
		"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null"}
	return t, t.start()
}

func (t *target) start() error {
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begun := time.Now()
	if err := t.cmd.Start(); err != nil {
		return err
	}
	for {
		c, err := net.Dial("unix", t.socket)
		if err == nil {
			t.accept = time.Since(begun)
			c.Close()
			break
		}
		if time.Since(begun) > 10*time.Second {
			return fmt.Errorf("%s does not listen: %w", t.name, err)
		}
		poll(200 * time.Microsecond)
	}
	return t.dial()
}

func (t *target) dial() (err error) {
	t.conn, err = grpc.NewClient("unix://"+t.socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	t.kms = kmsapi.NewKeyManagementServiceClient(t.conn)
	return err
}

// seal waits for the first Encrypt.
func (t *target) seal(ctx context.Context) (err error) {
	for begun := time.Now(); time.Since(begun) < 20*time.Second; poll(time.Millisecond) {
		t.sealed, err = t.kms.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: []byte(seed), Uid: "bench"})
		if err == nil {
			return nil
		}
	}
	return err
}

func (t *target) stop() {
	if t == nil || t.cmd == nil || t.cmd.Process == nil {
		return
	}
	t.conn.Close()
	_ = t.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	_ = t.cmd.Wait()
}

// cpu is the processor time the server has used.
func (t *target) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", t.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, err1 := strconv.Atoi(f[11])
	sys, err2 := strconv.Atoi(f[12])
	if errors.Join(err1, err2) != nil {
		return 0
	}
	return time.Duration(user+sys) * 10 * time.Millisecond // USER_HZ is 100 (proc(5))
}

// memory reads a field of /proc/PID/status in MiB: VmRSS or VmHWM.
func (t *target) memory(field string) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", t.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			if err == nil {
				return float64(kib) / 1024
			}
		}
	}
	return 0
}

func poll(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
}

var httpAddress = regexp.MustCompile(`"http":"([^"]+)"`)

// shows waits until the metrics hold a line and returns how long that took.
func (t *target) shows(line string, patience time.Duration) (time.Duration, error) {
	for begun := time.Now(); ; poll(20 * time.Millisecond) {
		log, err := os.ReadFile(t.log)
		if err != nil {
			return 0, err
		}
		if m := httpAddress.FindSubmatch(log); m != nil {
			resp, err := http.Get("http://" + string(m[1]) + "/metrics")
			if err != nil {
				return 0, err
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil && strings.Contains(string(body), line) {
				return time.Since(begun), nil
			}
		}
		if time.Since(begun) > patience {
			return 0, fmt.Errorf("%s does not show %s within %s", t.name, line, patience)
		}
	}
}
