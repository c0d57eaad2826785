// Command bench measures kms-plugin beside a KMS v2 server that does nothing
// (the default grpc-go server), and kmsctl beside the tools of etcd that read the
// same. The other one is measured twice: the ratio of the two is the noise of the
// run. Rounds are interleaved and ratios taken within a round. Failures, remote
// calls, connections and memory are exact: with -gates they decide the exit code,
// and the timing ratios are only reported.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"kms-plugin.io/test/controlplane"
)

const (
	clusterID = "bench"
	seed      = "0123456789abcdef0123456789abcdef"
)

// Row is one figure of the report.
type Row struct {
	Figure string  `json:"figure"`
	Value  string  `json:"value"`
	Noise  string  `json:"noise,omitempty"`
	Target string  `json:"target"`
	Met    bool    `json:"met"`
	Gate   bool    `json:"gate"`
	Ratio  float64 `json:"ratio,omitempty"`
}

type bench struct {
	dir, binary string
	kmsctl      string // "" until it is built
	gates       bool
	rounds      int
	outageTime  time.Duration
	rows        []Row
}

func (b *bench) add(r Row) {
	b.rows = append(b.rows, r)
	mark := "met"
	switch {
	case r.Target == "":
		mark = ""
	case !r.Met:
		mark = "MISSED"
	}
	fmt.Printf("| %s | %s | %s | %s | %s |\n", r.Figure, r.Value, r.Noise, r.Target, mark)
}

func main() {
	floor := flag.String("floor", "", "serve the no-op floor on this socket (used by the program itself)")
	rounds := flag.Int("rounds", 6, "rounds of the timing figures")
	gates := flag.Bool("gates", false, "only the exact figures, and fail if one misses")
	out := flag.String("json", "", "file for the figures as JSON")
	only := flag.String("only", "", "a part alone: timing, size, herds, direct, outage, coldstart, snapshot, live or rotate")
	flag.Parse()
	if *floor != "" {
		fmt.Fprintln(os.Stderr, serveFloor(*floor))
		os.Exit(1)
	}
	if err := run(*rounds, *gates, *only, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(1)
	}
}

func run(rounds int, gates bool, only, out string) error {
	dir, err := os.MkdirTemp("", "kb")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	b := &bench{dir: dir, gates: gates, rounds: rounds, outageTime: time.Minute}
	if gates {
		b.outageTime = 15 * time.Second
	}
	if b.binary, err = controlplane.BuildPlugin(ctx, os.Stderr, dir); err != nil {
		return err
	}
	fmt.Println("| figure | measured | noise (the other again) | target | |\n|---|---|---|---|---|")
	steps := []struct {
		name  string
		exact bool // has gates
		run   func(context.Context) error
	}{{"timing", false, b.timing}, {"size", true, b.size}, {"herds", true, b.herds}, {"direct", true, b.direct}, {"outage", true, b.outage}, {"coldstart", true, b.coldStart},
		{"snapshot", true, b.snapshots}, {"live", false, b.live}, {"rotate", false, b.rotate}}
	for _, step := range steps {
		if gates && !step.exact || only != "" && only != step.name {
			continue
		}
		if err := step.run(ctx); err != nil {
			return err
		}
	}
	if out != "" {
		data, err := json.MarshalIndent(b.rows, "", " ")
		if err == nil {
			err = os.WriteFile(filepath.Clean(out), data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	if i := slices.IndexFunc(b.rows, func(r Row) bool { return r.Gate && !r.Met }); gates && i >= 0 {
		return fmt.Errorf("gate missed: %s", b.rows[i].Figure)
	}
	return nil
}

func (b *bench) buildKmsctl(ctx context.Context) (err error) {
	if b.kmsctl == "" {
		b.kmsctl, err = controlplane.BuildKmsctl(ctx, os.Stderr, b.dir)
	}
	return err
}
