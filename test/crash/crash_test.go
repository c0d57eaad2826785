package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"kms-plugin.io/internal/audit"
	"kms-plugin.io/internal/durable"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/localfile"
)

// victim is set in the process that is killed: "<case> <path>".
const victim = "CRASH_TEST_VICTIM"

func TestMain(m *testing.M) {
	if name, path, ok := strings.Cut(os.Getenv(victim), " "); ok {
		runtime.LockOSThread()
		if err := cases[name].act(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if err := os.RemoveAll(lived); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// a case makes what was there before, changes it in the process that is killed, and
// checks what is left, and that the same can be done again.
type change struct {
	before, act func(path string) error
	after       func(path, said string) error // said: what act printed
}

const oldData, newData = "the old content", "new content, of another length"

var cases = map[string]change{
	"last-good": { // internal/daemon keeps it so
		before: func(path string) error { return os.WriteFile(path, []byte(oldData), 0o600) },
		act:    func(path string) error { return durable.WriteFile(path, []byte(newData), 0o600) },
		after: func(path, _ string) error {
			data, err := os.ReadFile(path)
			if err == nil && string(data) != oldData && string(data) != newData {
				err = fmt.Errorf("the file holds %q", data)
			}
			return err
		},
	},
	"state": {before: layState, act: saveNext, after: startsFromWhatIsLeft},
	"keygen": {
		act: localfile.Create,
		after: func(path, _ string) error { // whole, or not there and can be made
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
		after: func(path, _ string) error { // what the old key wrapped opens, and a key can be added
			if err := opens(path); err != nil {
				return err
			}
			return errors.Join(localfile.AddKey(path), opens(path))
		},
	},
	"audit-rotate": {act: recordAndRotate}, // TestAuditKilledAtEveryWritePoint
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

func TestKilledAtEveryWritePoint(t *testing.T) {
	for name, c := range cases {
		if c.after == nil {
			continue // has a test of its own
		}
		t.Run(name, func(t *testing.T) {
			begin := func(dir string) *exec.Cmd {
				path := filepath.Join(dir, "state.json")
				if c.before != nil {
					if err := c.before(path); err != nil {
						t.Fatal(err)
					}
				}
				cmd := exec.Command(os.Args[0])
				cmd.Env = []string{victim + "=" + name + " " + path}
				return cmd
			}
			AtEveryPoint(t, 3, begin, func(dir, said string) error { return c.after(filepath.Join(dir, "state.json"), said) })
		})
	}
}
