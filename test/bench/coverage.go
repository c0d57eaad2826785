package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"

	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/etcdfill"
)

const (
	readRounds = 3
	mostMemory = 256 // MiB, of kmsctl, whatever the size
	gateFill   = 150_000
)

// snapshots compares kmsctl coverage with etcdutl snapshot status: of what etcdutl
// has it is the command that reads every revision of a file, tells the keys apart
// and writes nothing.
func (b *bench) snapshots(ctx context.Context) error {
	if err := b.buildKmsctl(ctx); err != nil {
		return err
	}
	if b.gates {
		// The file is larger than the limit, and no other program is needed.
		return b.snapshotOf(ctx, gateFill, "")
	}
	bin, err := controlplane.Build(ctx, os.Stderr)
	if err != nil {
		return err
	}
	for _, n := range []int{100_000, 1_000_000} {
		if err := b.snapshotOf(ctx, n, bin.Etcdutl); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) snapshotOf(ctx context.Context, objects int, etcdutl string) error {
	file := filepath.Join(b.dir, fmt.Sprintf("snapshot-%d.db", objects))
	defer os.Remove(file)
	want, err := etcdfill.Snapshot(file, objects)
	if err != nil {
		return err
	}
	ours := []string{b.kmsctl, "coverage", "--snapshot", file}
	want.Bytes = want.FileSize // all of it is read
	var theirs []string
	if etcdutl != "" {
		theirs = []string{etcdutl, "snapshot", "status", file}
	}
	return b.compare(ctx, fmt.Sprintf("coverage of a snapshot, %s objects, %d MiB", grouped(objects), want.FileSize>>20), want, ours, theirs)
}

// live compares kmsctl coverage with etcdctl get --prefix of the same etcd.
func (b *bench) live(ctx context.Context) error {
	if err := b.buildKmsctl(ctx); err != nil {
		return err
	}
	bin, err := controlplane.Build(ctx, os.Stderr)
	if err != nil {
		return err
	}
	const objects = 100_000
	file := filepath.Join(b.dir, "live.db")
	want, err := etcdfill.Snapshot(file, objects)
	if err != nil {
		return err
	}
	e, err := controlplane.RestoreEtcd(ctx, bin, b.dir, file)
	if err != nil {
		return err
	}
	defer func() { _ = e.Kill() }()
	ours := []string{b.kmsctl, "coverage", "--endpoints", e.URL, "--cacert=", "--cert=", "--key="}
	theirs := []string{bin.Etcdctl, "--endpoints", e.URL, "--command-timeout", "10m", "get", "--prefix", "/"}
	return b.compare(ctx, fmt.Sprintf("coverage of a live etcd, %s objects", grouped(objects)), want, ours, theirs)
}

// compare interleaves the two, and takes ratios within a round.
func (b *bench) compare(ctx context.Context, name string, want etcdfill.Contents, ours, theirs []string) error {
	if err := b.counts(ctx, want, ours); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var times, ratios, again []float64
	var peak, theirPeak float64
	rounds := readRounds
	if theirs == nil {
		rounds = 1 // memory is the same in each
	}
	for range rounds {
		o, err := runChild(ctx, nil, ours[0], ours[1:]...)
		if err != nil {
			return err
		}
		times, peak = append(times, o.took.Seconds()), max(peak, o.peak)
		if theirs == nil {
			continue
		}
		var t [2]child
		for i := range t {
			if t[i], err = runChild(ctx, nil, theirs[0], theirs[1:]...); err != nil {
				return err
			}
			theirPeak = max(theirPeak, t[i].peak)
		}
		ratios = append(ratios, o.took.Seconds()/t[0].took.Seconds())
		again = append(again, t[1].took.Seconds()/t[0].took.Seconds())
	}
	what, same := "", name
	if theirs != nil {
		what, same = filepath.Base(theirs[0]), "the same"
		b.add(Row{Figure: name + ": time for that of " + what, Value: span(ratios), Noise: span(again), Ratio: median(ratios), Target: "≤ 1.5 ×", Met: median(ratios) <= 1.5})
	}
	took := median(times)
	b.add(Row{Figure: same + ": rate", Value: fmt.Sprintf("%s objects/s, %.0f MiB/s", grouped(int(float64(want.Objects)/took)), float64(want.Bytes)/took/(1<<20))})
	memory := fmt.Sprintf("%.0f MiB", peak)
	if theirs != nil {
		memory += fmt.Sprintf(" (%s: %.0f)", what, theirPeak)
	}
	b.add(Row{Figure: same + ": peak memory", Value: memory, Target: fmt.Sprintf("≤ %d MiB", mostMemory), Met: peak <= mostMemory, Gate: true})
	return nil
}

// counts holds the answer against what is there: a wrong one may be as fast as it
// likes.
func (b *bench) counts(ctx context.Context, want etcdfill.Contents, ours []string) error {
	var out bytes.Buffer
	if _, err := runChild(ctx, &out, ours[0], append(ours[1:len(ours):len(ours)], "-o", "json")...); err != nil {
		return err
	}
	var r coverage.Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return err
	}
	got := map[string]int64{}
	for _, k := range r.Keys {
		got[k.KeyID] = k.Objects
	}
	if r.Totals.Total != want.Objects || !maps.Equal(got, want.KeyIDs) {
		return fmt.Errorf("%d objects, %v, of %d, %v", r.Totals.Total, got, want.Objects, want.KeyIDs)
	}
	return nil
}

// grouped writes 1000000 as 1,000,000.
func grouped(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
