package harden_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kms-plugin.io/internal/harden"
	"kms-plugin.io/test/lack"
)

// resolve is a child that waits for its resolver's file to be replaced.
func resolve(r *harden.Result, o orders) {
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1))
	_ = json.NewEncoder(os.Stdout).Encode(outcome{Measures: r.Measures, Closed: r.Closed()})
}

// A resolver's file that is replaced is told of if it does not open any more, and a
// note tells beforehand that it would not.
func TestResolverIsReplaced(t *testing.T) {
	for name, tt := range map[string]struct {
		link, readable, losing bool
	}{
		"a plain file in a shared directory":  {false, false, true},
		"a link into a directory of its own":  {true, false, false},
		"a plain file, its directory is open": {false, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			o, exe := place(t, os.Geteuid())
			target := fmt.Sprintf("/tmp/kms-plugin-resolv.%d.%d", os.Getpid(), len(name))
			o.Do, o.Outside = "resolve", target
			if tt.link {
				target = filepath.Join(o.Read, "resolv.conf")
				if err := os.Symlink(target, o.Outside); err != nil {
					t.Fatal(err)
				}
			}
			t.Cleanup(func() { _ = os.Remove(o.Outside) })
			o.Policy = off()
			if o.Policy.Files = harden.Enforce; tt.readable {
				o.Policy.Readable = []string{"/tmp"}
			}
			write := func(path string) error { return os.WriteFile(path, []byte("nameserver ::1\n"), 0o644) }
			if err := write(target); err != nil {
				t.Fatal(err)
			}
			c := command(t, exe, os.Geteuid(), o)
			in, err := c.StdinPipe()
			out, oerr := c.StdoutPipe()
			if err := errors.Join(err, oerr, c.Start()); err != nil {
				t.Fatal(err)
			}
			_, err = out.Read(make([]byte, len("ready\n")))
			if err := errors.Join(err, write(target+".new"), unix.Rename(target+".new", target), in.Close()); err != nil {
				t.Fatal(err)
			}
			var got outcome
			if err := errors.Join(json.NewDecoder(out).Decode(&got), c.Wait()); err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(got.Measures, func(m harden.Measure) bool { return m.Name == harden.MeasureFiles })
			files := got.Measures[i]
			if files.State != harden.Enforced {
				lack.Skip(t, "this kernel does not take the measure: %s", files)
			}
			if losing := len(got.Closed) == 1 && got.Closed[0] == o.Outside; losing != tt.losing || !losing && got.Closed != nil {
				t.Errorf("Closed = %v", got.Closed)
			}
			if strings.Contains(files.Detail, "is a plain file") != tt.losing || harden.Loses(o.Outside, o.Policy.Readable) != tt.losing {
				t.Errorf("before it is replaced: %q", files.Detail)
			}
		})
	}
}
