// Command fakekms is an AWS KMS on loopback for a person to point kms-plugin at.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"kms-plugin.io/test/fakekms"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "fakekms: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	f := flag.NewFlagSet("fakekms", flag.ContinueOnError)
	addr := f.String("addr", "127.0.0.1:0", "loopback host:port of the KMS")
	admin := f.String("admin", "127.0.0.1:0", "loopback host:port of the knobs")
	region := f.String("region", "eu-west-1", "region of the key")
	multi := f.Bool("multi-region", false, "make a multi-Region key, with a replica in us-east-1")
	cluster := f.String("cluster", "", "allow only what kms-plugin needs for this clusterID (default: everything)")
	if err := f.Parse(args); err != nil {
		return err
	}
	s, err := fakekms.Start(fakekms.Config{Addr: *addr})
	if err != nil {
		return err
	}
	defer s.Close()
	o := fakekms.KeyOptions{MultiRegion: *multi}
	if *multi {
		o.Replicas = []string{"us-east-1"}
	}
	arn := s.CreateKey(*region, o)
	if *cluster != "" {
		s.SetPolicy(arn, fakekms.LeastPrivilege(*cluster))
	}
	ln, err := net.Listen("tcp", *admin)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, `# A fake AWS KMS. Nothing it encrypts outlives it.
# Give kms-plugin this environment:
export AWS_CONTAINER_CREDENTIALS_FULL_URI=%s
# and this key in its configuration:
- name: fake
  role: write
  awskms: {keyARN: "%s", endpoint: "%s"}
# Turn its knobs:
curl -X POST http://%[4]s/rotate      # also /disable /enable /away /back /throttle /clear
curl http://%[4]s/calls
`, s.CredentialsURL("default"), arn, s.URL(), ln.Addr())
	srv := &http.Server{Handler: knobs(s, arn), ReadHeaderTimeout: time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // ends Serve
	defer stop()
	if err := srv.Serve(ln); err != http.ErrServerClosed {
		return err
	}
	return nil
}

func knobs(s *fakekms.Server, arn string) http.Handler {
	mux := http.NewServeMux()
	for path, turn := range map[string]func(){
		"/rotate":   func() { s.Rotate(arn) },
		"/disable":  func() { s.SetState(arn, fakekms.Disabled) },
		"/enable":   func() { s.SetState(arn, fakekms.Enabled) },
		"/away":     s.Blackhole,
		"/back":     s.Unblackhole,
		"/throttle": func() { s.SetFault(fakekms.Fault{Kind: fakekms.Throttle}) },
		"/clear":    s.ClearFaults,
	} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, _ *http.Request) {
			turn()
			fmt.Fprintln(w, "ok")
		})
	}
	mux.HandleFunc("GET /calls", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(s.Calls()) // the client may be gone
	})
	return mux
}
