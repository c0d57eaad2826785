package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/audit"
	"kms-plugin.io/internal/cli"
)

// asProgram makes the test binary be kmsctl: exit codes and argv[0] are real.
const asProgram = "KMSCTL_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		runtime.LockOSThread() // as package crash wants it
		main()
	}
	os.Exit(m.Run())
}

// program runs kmsctl under a name and gives what a person sees.
func program(t *testing.T, arg0 string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Args = append([]string{arg0}, args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// command is the same without the price of a process.
func command(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	err := run(context.Background(), "kmsctl", args, &out, &errs)
	cli.Print(&errs, "kmsctl", err)
	return out.String(), errs.String(), cli.ExitCode(err)
}

// plugin answers Status.
type plugin struct {
	kmsapi.UnimplementedKeyManagementServiceServer
	err error
}

func (p plugin) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	return &kmsapi.StatusResponse{Version: "v2", Healthz: "ok", KeyId: "prod:00"}, p.err
}

func serve(t *testing.T, p plugin) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "k")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(srv, p)
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(srv.Stop)
	return socket
}

func TestCommandLine(t *testing.T) {
	good := serve(t, plugin{})
	bad := serve(t, plugin{err: status.Error(codes.PermissionDenied, "closed")})
	for _, c := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string // in the output; "" demands none
	}{
		{"no command", nil, cli.ExitOK, "Usage:", ""},
		{"help", []string{"--help"}, cli.ExitOK, "status", ""},
		{"version", []string{"version"}, cli.ExitOK, "kmsctl " + cli.Version() + "\n", ""},
		{"--version", []string{"--version"}, cli.ExitOK, "kmsctl " + cli.Version() + "\n", ""},
		{"version of what", []string{"version", "x"}, cli.ExitUsage, "", "kmsctl: error: unknown command"},
		{"unknown command", []string{"rotat"}, cli.ExitUsage, "", "kmsctl: error: unknown command \"rotat\""},
		{"unknown flag", []string{"status", "--bogus"}, cli.ExitUsage, "", "kmsctl: error: unknown flag: --bogus\nhint: kmsctl --help\n"},
		{"flag without value", []string{"status", "--socket"}, cli.ExitUsage, "", "flag needs an argument"},
		{"argument", []string{"status", good}, cli.ExitUsage, "", "unknown command"},
		{"output", []string{"status", "--socket", good, "-o", "yaml"}, cli.ExitUsage, "", "kmsctl: error: -o \"yaml\" is neither text nor json\nhint: kmsctl --help\n"},
		{"healthy", []string{"status", "--socket", good}, cli.ExitOK, "KEY_ID       prod:00\n", ""},
		{"unhealthy", []string{"status", "--socket", bad}, cli.ExitFound, "STATUS  ERROR PermissionDenied: closed\n", ""},
		{"unhealthy JSON", []string{"status", "--socket", bad, "-o", "json"}, cli.ExitFound, `"error": "PermissionDenied: closed"`, ""},
		{"no socket", []string{"status", "--socket", good + "x"}, cli.ExitFailed, "", "kmsctl: error: there is no socket \"" + good + "x\"\nhint: is the plugin running"},
		{"wrong metrics", []string{"status", "--socket", good, "--metrics", "127.0.0.1:x"}, cli.ExitFailed, "", "hint: compare --metrics"},
	} {
		out, errs, code := command(c.args...)
		if code != c.code || !strings.Contains(out, c.stdout) || !strings.Contains(errs, c.stderr) ||
			(c.stdout == "") != (out == "") || (c.stderr == "") != (errs == "") {
			t.Errorf("%s: code %d, stdout %q, stderr %q; want code %d, %q, %q", c.name, code, out, errs, c.code, c.stdout, c.stderr)
		}
	}
}

// What a script sees of the real program.
func TestExitCodes(t *testing.T) {
	bad := serve(t, plugin{err: status.Error(codes.PermissionDenied, "closed")})
	out, errs, code := program(t, "/usr/local/bin/kmsctl", "status", "--socket", bad)
	if code != cli.ExitFound || errs != "" || !strings.Contains(out, "ERROR PermissionDenied: closed") {
		t.Errorf("unhealthy: code %d, stdout %q, stderr %q; want code %d", code, out, errs, cli.ExitFound)
	}
	out, errs, code = program(t, "/usr/local/bin/kmsctl", "status", "--socket", bad+"x")
	if code != cli.ExitFailed || out != "" || !strings.HasPrefix(errs, "kmsctl: error: there is no socket") {
		t.Errorf("no socket: code %d, stdout %q, stderr %q; want code %d", code, out, errs, cli.ExitFailed)
	}
}

func TestStatusJSON(t *testing.T) {
	socket := serve(t, plugin{})
	out, _, code := program(t, "kmsctl", "status", "--socket", socket, "--output", "json")
	var r struct {
		Socket  string
		Healthy bool
		KeyID   string
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != cli.ExitOK || !r.Healthy || r.KeyID != "prod:00" || r.Socket != socket {
		t.Errorf("code %d, %v: %s", code, err, out)
	}
	if !strings.HasSuffix(out, "}\n") || !strings.Contains(out, "\n  \"healthy\"") {
		t.Errorf("not for people to read: %q", out)
	}
}

func TestProgramName(t *testing.T) {
	for arg0, want := range map[string]string{
		"kmsctl": "kmsctl", "/usr/bin/kmsctl": "kmsctl", "./other": "kmsctl", "": "kmsctl",
		"kubectl-kms": "kubectl kms", "/home/a/.krew/bin/kubectl-kms": "kubectl kms", "/opt/kubectl-x/kmsctl": "kmsctl", "kubectl": "kmsctl",
	} {
		if got := programName(arg0); got != want {
			t.Errorf("programName(%q) = %q, want %q", arg0, got, want)
		}
	}
}

// As a kubectl plugin it speaks of itself as the user called it.
func TestAsKubectlPlugin(t *testing.T) {
	out, _, code := program(t, "/home/a/bin/kubectl-kms", "status", "--help")
	if code != cli.ExitOK || !strings.Contains(out, "kubectl kms status --socket PATH") || strings.Contains(out, "kmsctl") {
		t.Errorf("help has code %d: %s", code, out)
	}
	_, errs, code := program(t, "kubectl-kms", "rotat")
	if want := "kubectl kms: error: unknown command \"rotat\" for \"kubectl kms\"\nhint: kubectl kms --help\n"; code != cli.ExitUsage || errs != want {
		t.Errorf("code %d, stderr %q; want %q", code, errs, want)
	}
}

// auditLog writes a log of two records, and a third that was edited if so wanted.
func auditLog(t *testing.T, edited bool) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "audit.log")
	l, err := audit.Open(audit.Config{Path: path, Refuse: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Record(audit.Record{Op: "encrypt", Outcome: "ok"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if edited {
		data = bytes.Replace(data, []byte("encrypt"), []byte("decrypt"), 1)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAuditVerify(t *testing.T) {
	good, bad := auditLog(t, false), auditLog(t, true)
	notJSON := filepath.Join(t.TempDir(), "trail")
	if err := os.WriteFile(notJSON, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		"fine":          {[]string{good}, 0, "records 1 to 3", ""},
		"fine, json":    {[]string{good, "-o", "json"}, 0, `"holds": true`, ""},
		"edited":        {[]string{bad}, 3, "FOUND " + bad + ":3: record 3 holds the digest of another record than 2", ""},
		"edited, json":  {[]string{bad, "-o", "json"}, 3, `"line": 3`, ""},
		"no file":       {[]string{"/nonexistent"}, 1, "", "audit log: open /nonexistent: no such file"},
		"no argument":   {nil, 2, "", "hint: kmsctl --help"},
		"output":        {[]string{good, "-o", "xml"}, 2, "", `-o "xml" is neither text nor json`},
		"anchors":       {[]string{good, "--anchors", notJSON}, 1, "", "is not JSON of CloudTrail"},
		"anchors, hint": {[]string{good, "--anchors", notJSON}, 1, "", "hint: give files of a trail in S3"},
	} {
		stdout, stderr, code := command(append([]string{"audit", "verify"}, tc.args...)...)
		if code != tc.code || !strings.Contains(stdout, tc.stdout) || !strings.Contains(stderr, tc.stderr) {
			t.Errorf("%s: exit %d\n%s%s", name, code, stdout, stderr)
		}
	}
}
