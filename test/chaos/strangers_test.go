//go:build e2e

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/test/controlplane"
)

// kmsctl runs it and returns what it printed.
func (s *stage) kmsctl(args ...string) (string, error) {
	out, err := exec.CommandContext(s.t.Context(), bin.Kmsctl, args...).CombinedOutput()
	return string(out), err
}

// canary has every API server write and read, until all write under this key_id: what
// the timer of each control-plane node does.
func (s *stage) canary(keyID string) {
	s.t.Helper()
	path := filepath.Join(s.dir, "kubeconfig")
	if err := controlplane.Kubeconfig(path, s.a...); err != nil {
		s.t.Fatal(err)
	}
	var urls []string
	for _, a := range s.a {
		urls = append(urls, a.URL)
	}
	within(s.t, 2*time.Minute, "kmsctl canary", func(ctx context.Context) error {
		for _, a := range s.a { // has it ask for Status
			if _, err := a.Text(ctx, "/healthz/kms-providers"); err != nil {
				return err
			}
		}
		out, err := s.kmsctl("canary", "-n", "default", "--etcd", "--key-id", keyID, "--kubeconfig", path, "--servers", strings.Join(urls, ","),
			"--endpoints", s.etcd.Clients(), "--cacert=", "--cert=", "--key=")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// strangers is what kmsctl preflight says of local KEKs that a plugin has not met.
func (s *stage) strangers() string {
	s.t.Helper()
	var at []string
	for _, p := range s.p {
		at = append(at, p.HTTP())
	}
	out, _ := s.kmsctl("preflight", "--no-etcd", "--plugins", strings.Join(at, ",")) // other checks miss their files
	for line := range strings.Lines(out) {
		if strings.Contains(line, "plugins-know") {
			return line
		}
	}
	s.t.Fatalf("no plugins-know in %s", out)
	return ""
}

// allMet waits until preflight says that there is no stranger: metrics are read anew
// every five seconds.
func (s *stage) allMet() {
	s.t.Helper()
	within(s.t, 15*time.Second, "preflight after a canary", func(context.Context) error {
		if line := s.strangers(); strings.Contains(line, "has not met") {
			return errors.New(line)
		}
		return nil
	})
}

var localKEK = regexp.MustCompile(`kms_plugin_local_kek_info\{local_kek="([0-9a-f]+)"\} 1`)

// met are the local KEKs that a plugin has in memory.
func (s *stage) met(i int) (ids []string) {
	s.t.Helper()
	text, err := s.p[i].Get(s.t.Context(), "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, m := range localKEK.FindAllStringSubmatch(text, -1) {
		ids = append(ids, m[1])
	}
	return ids
}

// turn rotates the material and waits until all plugins report the same new key_id.
func (s *stage) turn() (id string) {
	s.t.Helper()
	old, err := s.status(s.t.Context(), 0)
	if err != nil {
		s.t.Fatal(err)
	}
	s.cloud.Rotate(s.arn)
	within(s.t, 30*time.Second, "a new key_id everywhere", func(ctx context.Context) error {
		ids := map[string]bool{}
		for i := range s.p {
			st, err := s.status(ctx, i)
			if err != nil {
				return err
			}
			id = st.KeyId
			ids[id] = true
		}
		if len(ids) > 1 || ids[old.KeyId] {
			return fmt.Errorf("%v", ids)
		}
		return nil
	})
	return id
}

// dark makes the cloud a black hole and waits until every plugin has seen it.
func (s *stage) dark() {
	s.t.Helper()
	s.cloud.Blackhole()
	for i := range s.p {
		within(s.t, 30*time.Second, "degraded", s.shows(i, `kms_plugin_key_state{key="prod",op="unwrap",state="degraded"} 1`))
	}
}

func (s *stage) light() {
	s.t.Helper()
	s.cloud.Unblackhole()
	for i := range s.p {
		within(s.t, 30*time.Second, "ok", s.shows(i, `kms_plugin_key_state{key="prod",op="unwrap",state="ok"} 1`))
	}
}

// slowRead is longer than a machine needs that starts API servers meanwhile; a local KEK
// that is unknown costs a call to a silent KMS, and then the read fails.
const slowRead = 2500 * time.Millisecond

// firstSecrets writes a Secret through each API server under this key_id, and has the
// others read it at once. The errors are those of the readers.
func (s *stage) firstSecrets(round, keyID string) (failed []error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	for i, a := range s.a {
		name := fmt.Sprintf("first-%s-%d", round, i)
		if _, err := a.CreateSecret(ctx, name, "v"); err != nil {
			s.t.Fatalf("%s: write %s: %v", round, name, err)
		}
		if o, err := s.stored(ctx, name); err != nil || o.KeyID != keyID {
			s.t.Fatalf("%s: %s is under key_id %s, want %s: %v", round, name, o.KeyID, keyID, err)
		}
		for j, reader := range s.a {
			begun := time.Now()
			if _, err := reader.GetSecret(ctx, name); err != nil {
				failed = append(failed, fmt.Errorf("api%d reads what api%d wrote: %w", j+1, i+1, err))
			} else if took := time.Since(begun); took > slowRead {
				failed = append(failed, fmt.Errorf("api%d read what api%d wrote only after %s", j+1, i+1, took))
			}
		}
	}
	return failed
}

// bounce restarts an API server: nothing of what it knew is left.
func (s *stage) bounce(i int) {
	s.t.Helper()
	if err := errors.Join(s.a[i].Stop(), s.a[i].Restart(s.t.Context())); err != nil {
		s.t.Fatal(err)
	}
}

// No stranger in an outage: what any API server writes first in an outage, the others
// read at once, if a canary has passed since key_id changed or a plugin lost its state.
func TestNoStranger(t *testing.T) {
	s := newStage(t, 3, 1, "")
	st, err := s.status(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	s.canary(st.KeyId)
	s.allMet()

	// A fresh key_id on all, then a canary, then the outage.
	id := s.turn()
	if line := s.strangers(); !strings.Contains(line, "has not met") {
		t.Errorf("with a fresh key_id preflight says: %s", line)
	}
	s.canary(id)
	s.allMet()
	s.dark()
	s.must(s.firstSecrets("turned", id))
	s.bounce(2) // it has no seed in memory: its plugin is asked for all of them
	s.must(s.firstSecrets("bounced", id))
	s.light()

	// One plugin lost its state file, so it makes a new local KEK, with which its API
	// server seals when it starts.
	s.restartPlugin(t, 0, true, func() {
		if err := os.Remove(s.home(0, "state", "state.json")); err != nil {
			t.Fatal(err)
		}
	})
	own := s.met(0)
	if len(own) != 1 || slices.Contains(s.met(1), own[0]) {
		t.Fatalf("the plugin without state knows %v, the second %v", own, s.met(1))
	}
	s.bounce(0)
	if line := s.strangers(); !strings.Contains(line, "has not met") { // of p1's new one by the others
		t.Errorf("with a new local KEK preflight says: %s", line)
	}
	s.canary(id)
	for i := range s.p {
		within(t, 10*time.Second, "the new local KEK is known", s.shows(i, `kms_plugin_local_kek_info{local_kek="`+own[0]+`"} 1`))
	}
	s.dark()
	s.must(s.firstSecrets("lost", id))
	s.bounce(1)
	s.must(s.firstSecrets("lost-bounced", id))
	s.light()

	// Without a canary there is a stranger: this is the hole, and this test can fail.
	id = s.turn()
	s.cloud.Blackhole()
	for _, a := range s.a {
		within(t, time.Minute, "the API server turns in the outage", func(ctx context.Context) error {
			if _, err := a.Text(ctx, "/healthz/kms-providers"); err != nil {
				return err
			}
			name := fmt.Sprintf("turn-%d", time.Now().UnixNano())
			if _, err := a.CreateSecret(ctx, name, "v"); err != nil {
				return err
			}
			o, err := s.stored(ctx, name)
			if err == nil && o.KeyID != id {
				err = errors.New("the old key_id")
			}
			return err
		})
	}
	if failed := s.firstSecrets("hole", id); len(failed) == 0 {
		t.Error("without a canary nothing was a stranger: what does this test show?")
	} else {
		t.Logf("without a canary %d of 6 reads fail: %v", len(failed), failed[0])
	}
	s.light()
	within(t, 20*time.Second, "all is read when the cloud is back", func(ctx context.Context) error {
		for i, a := range s.a {
			if _, err := a.GetSecret(ctx, fmt.Sprintf("first-hole-%d", (i+1)%len(s.a))); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *stage) must(failed []error) {
	s.t.Helper()
	for _, err := range failed {
		s.t.Error(err)
	}
}
