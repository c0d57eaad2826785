package apiserver

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"

	"kms-plugin.io/test/etcdvalue"
	"kms-plugin.io/test/fakekms"
)

func newKey() string { return cloud.CreateKey("eu-west-1", fakekms.KeyOptions{}) }

func started(t *testing.T) (*plugin, string) {
	arn := newKey()
	p := newPlugin(t, arn)
	p.start()
	return p, arn
}

func parse(t *testing.T, stored []byte) etcdvalue.Object {
	t.Helper()
	o, err := etcdvalue.Parse(stored)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// ready waits for the first Status and Encrypt of a freshly loaded API server.
func ready(t *testing.T, s *server) *server {
	t.Helper()
	eventually(t, 30*time.Second, "health", s.healthy)
	return s
}

func TestColdStartAndReuse(t *testing.T) {
	t.Parallel()
	p, _ := started(t)
	first := ready(t, load(t, "cold", p.socket))
	a, b := first.write(), first.write()
	if x, y := parse(t, a), parse(t, b); string(x.DEKSource) != string(y.DEKSource) || x.KeyID != y.KeyID || x.Type != 1 {
		t.Error("two writes of one API server do not share a DEK source")
	}
	if first.read(a) {
		t.Error("a fresh value is stale")
	}
	second := ready(t, load(t, "cold", p.socket))
	if second.read(a) {
		t.Error("a value of the same key_id is stale after a restart")
	}
	if string(parse(t, second.write()).DEKSource) == string(parse(t, a).DEKSource) {
		t.Error("a restarted API server has the old seed")
	}
	p.stop()
	p.start()
	third := ready(t, load(t, "cold", p.socket))
	third.read(a)
	third.read(b)
}

func TestStaleAfterRotation(t *testing.T) {
	t.Parallel()
	p, arn := started(t)
	s := ready(t, load(t, "stale", p.socket))
	old := s.write()
	cloud.Rotate(arn)
	// The client caches a good Status for 20 s (kmsPluginHealthzPositiveTTL).
	eventually(t, 60*time.Second, "stale", func() error {
		if err := s.healthy(); err != nil {
			return err
		}
		if stale, err := s.tryRead(old); err != nil || !stale {
			return errors.Join(err, errors.New("not stale yet"))
		}
		return nil
	})
	now := s.write()
	if parse(t, now).KeyID == parse(t, old).KeyID || s.read(now) {
		t.Error("what is written after the rotation is not under the new key_id")
	}
}

func TestWritesExpireWithoutStatus(t *testing.T) {
	t.Parallel()
	p, _ := started(t)
	s := ready(t, load(t, "expiry", p.socket))
	stored := s.write()
	p.stop()
	defer kmsv2.SetNowFuncForTests("expiry-0", func() time.Time { return time.Now().Add(4 * time.Minute) })()
	if _, err := s.TransformToStorage(context.Background(), []byte(plain), object); err == nil || !strings.Contains(err.Error(), "expired at") {
		t.Errorf("write 4 minutes after the last Status = %v, want expired", err)
	}
	s.read(stored)
	p.start()
	eventually(t, 90*time.Second, "writes again", func() error {
		if err := s.healthy(); err != nil {
			return err
		}
		_, err := s.TransformToStorage(context.Background(), []byte(plain), object)
		return err
	})
}

func TestLateStart(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, newKey())
	s := load(t, "late", p.socket)
	if err := s.healthy(); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Fatalf("health without a plugin = %v", err)
	}
	p.start()
	ready(t, s).read(s.write())
}

func TestLostConnection(t *testing.T) {
	t.Parallel()
	p, _ := started(t)
	s := ready(t, load(t, "lost", p.socket))
	stored := s.write()
	p.stop()
	p.start()
	s.read(s.write()) // the seed is in memory: nothing is missed
	other := ready(t, load(t, "lost", p.socket))
	other.read(stored)
}

func TestConcurrentColdReads(t *testing.T) {
	t.Parallel()
	p, _ := started(t)
	stored := ready(t, load(t, "many", p.socket)).write()
	s := ready(t, load(t, "many", p.socket))
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if _, err := s.tryRead(stored); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestThreeAPIServersThreePlugins(t *testing.T) {
	t.Parallel()
	arn := newKey()
	var servers []*server
	var stored [][]byte
	ids := map[string]bool{}
	for range 3 {
		p := newPlugin(t, arn)
		p.start()
		s := ready(t, load(t, "ha", p.socket))
		servers, stored = append(servers, s), append(stored, s.write())
		ids[parse(t, stored[len(stored)-1]).KeyID] = true
	}
	if len(ids) != 1 {
		t.Errorf("three instances report %d key_ids: %v", len(ids), ids)
	}
	for _, s := range servers {
		for _, v := range stored {
			if s.read(v) {
				t.Error("what another API server wrote is stale")
			}
		}
	}
}

// A reload that puts another plugin first: old values stay readable and stale.
func TestProviderReload(t *testing.T) {
	t.Parallel()
	p1, _ := started(t)
	p2, _ := started(t)
	old := ready(t, load(t, "reload", p1.socket)).write()
	s := ready(t, load(t, "reload", p1.socket, p2.socket))
	if s.read(old) {
		t.Error("a value of the first provider is stale")
	}
}

// A value moved to another key of etcd, or a header changed in etcd, never opens.
func TestTamperedValues(t *testing.T) {
	t.Parallel()
	p, _ := started(t)
	s := ready(t, load(t, "tamper", p.socket))
	stored := s.write()
	for i := len("k8s:enc:kms:v2:tamper-0:"); i < len(stored); i += 7 {
		fresh := stored
		changed := append([]byte(nil), fresh...)
		changed[i] ^= 1
		if _, err := s.tryRead(changed); err == nil {
			t.Fatalf("a value with byte %d changed opens", i)
		}
	}
	s.read(stored)
}
