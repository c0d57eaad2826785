// Package crash kills a process at every system call by which it changes a file of
// ours, and looks at what is left.
package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/internal/audit"
	"kms-plugin.io/internal/audit/evidence"
	"kms-plugin.io/internal/durable"
	"kms-plugin.io/internal/state"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/localfile"
)

// victim is set in the process that is killed: "<case> <path>".
const victim = "CRASH_TEST_VICTIM"

func TestMain(m *testing.M) {
	if name, path, ok := strings.Cut(os.Getenv(victim), " "); ok {
		if err := cases[name].act(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// a case makes what was there before, changes it in the process that is killed, and
// checks what is left, and that the same can be done again.
type change struct{ before, act, after func(path string) error }

const oldData, newData = "the old content", "new content, of another length"

var cases = map[string]change{
	"last-good": { // internal/daemon keeps it so
		before: func(path string) error { return os.WriteFile(path, []byte(oldData), 0o600) },
		act:    func(path string) error { return durable.WriteFile(path, []byte(newData), 0o600) },
		after: func(path string) error {
			data, err := os.ReadFile(path)
			if err == nil && string(data) != oldData && string(data) != newData {
				err = fmt.Errorf("the file holds %q", data)
			}
			return err
		},
	},
	"state": {
		before: func(path string) error { return state.Save(filepath.Dir(path), &state.State{ClusterID: "c"}) },
		act: func(path string) error {
			return state.Save(filepath.Dir(path), &state.State{ClusterID: "c", Journal: make([]state.Reported, 100)})
		},
		after: func(path string) error {
			s, err := state.Load(filepath.Dir(path), "c")
			if err == nil && (s == nil || len(s.Journal) != 0 && len(s.Journal) != 100) {
				err = fmt.Errorf("state is %+v", s)
			}
			return err
		},
	},
	"keygen": {
		act: localfile.Create,
		after: func(path string) error { // whole, or not there and can be made
			if _, err := os.Stat(path); err != nil {
				if err := localfile.Create(path); err != nil {
					return err
				}
			}
			_, err := localfile.New(path)
			return err
		},
	},
	"keygen-add": {
		before: func(path string) error {
			err := localfile.Create(path)
			if err == nil {
				err = os.WriteFile(path+".blob", wrap(path), 0o600)
			}
			return err
		},
		act: localfile.AddKey,
		after: func(path string) error { // what the old key wrapped opens, and a key can be added
			if err := opens(path); err != nil {
				return err
			}
			return errors.Join(localfile.AddKey(path), opens(path))
		},
	},
	"audit": {
		before: func(path string) error { return record(path, 2) },
		act:    func(path string) error { return record(path, 3) },
		after: func(path string) error {
			if err := record(path, 1); err != nil {
				return err
			}
			r, err := evidence.Verify([]string{path}, nil, false)
			if err == nil && (!r.Holds || len(r.Chains) != 1 || r.Chains[0].First != 1) {
				err = fmt.Errorf("%+v", r)
			}
			return err
		},
	},
}

var bound = keys.NewContext("c", keys.BlobProbe, nil)

func wrap(path string) []byte {
	k, err := localfile.New(path)
	if err != nil {
		return nil
	}
	w, _ := k.Wrap(context.Background(), bytes.Repeat([]byte{7}, 32), bound)
	return w.Blob
}

func opens(path string) error {
	blob, err := os.ReadFile(path + ".blob")
	if err != nil {
		return err
	}
	k, err := localfile.New(path)
	if err != nil {
		return err
	}
	_, err = k.Unwrap(context.Background(), blob, bound)
	return err
}

func record(path string, n int) error {
	l, err := audit.Open(audit.Config{Path: path, Refuse: true, Sync: audit.SyncEach})
	for i := 0; err == nil && i < n; i++ {
		err = l.Record(audit.Record{Op: "encrypt", Outcome: "ok"})
	}
	if err != nil {
		return err
	}
	return l.Close()
}

// killed runs a case until the n-th of a system call, and says whether it came so far.
func killed(t *testing.T, name, path, call string, n int) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "strace", "-f", "-o", "/dev/null", "-e", "trace="+call,
		"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n), os.Args[0])
	cmd.Env = append(os.Environ(), victim+"="+name+" "+path)
	out, err := cmd.CombinedOutput()
	if err != nil && len(out) > 0 {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	return err != nil
}

func TestKilledAtEveryWritePoint(t *testing.T) {
	if err := exec.CommandContext(t.Context(), "strace", "-o", "/dev/null", "true").Run(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("strace is needed, and leave to trace: %v", err)
		}
		t.Skipf("strace is needed, and leave to trace: %v", err)
	}
	for name, c := range cases {
		points := 0
		for _, call := range []string{"write", "fsync", "fchmod", "renameat", "linkat", "unlinkat"} {
			for n := 1; n <= 40; n++ {
				path := filepath.Join(t.TempDir(), "state.json")
				if c.before != nil {
					if err := c.before(path); err != nil {
						t.Fatal(err)
					}
				}
				more := killed(t, name, path, call, n)
				if err := c.after(path); err != nil {
					t.Errorf("%s, killed at %s %d: %v", name, call, n, err)
				}
				if !more {
					break
				}
				points++
			}
		}
		if points < 3 {
			t.Errorf("%s was killed at %d points only", name, points)
		}
		t.Logf("%s: killed at %d points", name, points)
	}
}
