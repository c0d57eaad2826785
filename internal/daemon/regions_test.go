package daemon_test

import (
	"fmt"
	"strings"
	"testing"

	"kms-plugin.io/test/fakekms"
)

// regional is an instance whose key is in two regions.
func regional(t *testing.T, quorum string) (i *instance, eu, us *fakekms.Region) {
	t.Helper()
	i = newInstance(t)
	var err error
	if eu, err = i.cloud.Region("eu-west-1"); err != nil {
		t.Fatal(err)
	}
	if us, err = i.cloud.Region("us-east-1"); err != nil {
		t.Fatal(err)
	}
	i.arn = i.cloud.CreateKey("eu-west-1", fakekms.KeyOptions{MultiRegion: true, Replicas: []string{"us-east-1"}})
	i.put(strings.Replace(i.base(), fmt.Sprintf(`endpoint: "%s"}`, i.cloud.URL()), fmt.Sprintf(`endpoint: "%s", replicas: ["%s"], replicaEndpoints: {us-east-1: "%s"}, regionQuorum: %s}`,
		eu.URL(), i.cloud.ReplicaARN(i.arn, "us-east-1"), us.URL(), quorum), 1))
	return i, eu, us
}

func (i *instance) shows(lines ...string) {
	i.t.Helper()
	i.eventually("metrics", func() error {
		text, _ := i.get("/metrics")
		for _, l := range lines {
			if !strings.Contains(text, l) {
				return fmt.Errorf("no %s", l)
			}
		}
		return nil
	})
}

// A region goes away, in the real SDK's eyes, and comes back: key_id stays, a cold
// instance serves by the other region, and metrics and log tell of it.
func TestRegionAway(t *testing.T) {
	i, eu, us := regional(t, "any")
	i.start()
	first := i.sealed()
	i.shows(`kms_plugin_region_in_use{key="prod",region="eu-west-1"} 1`, `kms_plugin_region_state{key="prod",op="wrap",region="us-east-1",state="ok"} 1`)
	i.stop()
	eu.Refuse()
	i.start() // cold: no local KEK in memory
	i.eventually("Decrypt by the replica", func() error { return i.decrypt(first) })
	if s := i.sealed(); s.KeyId != first.KeyId {
		t.Errorf("key_id %q by the replica, want %q", s.KeyId, first.KeyId)
	}
	i.shows(`kms_plugin_region_in_use{key="prod",region="us-east-1"} 1`, `kms_plugin_region_state{key="prod",op="unwrap",region="eu-west-1",state="outage"} 1`,
		`kms_plugin_key_state{key="prod",op="unwrap",state="ok"} 1`, `outcome="outage",region="eu-west-1"`, `outcome="ok",region="us-east-1"`)
	if log := i.log.String(); !strings.Contains(log, `"region":"us-east-1"`) || !strings.Contains(log, "calls go to another region first") || strings.Contains(log, "cannot fail over") {
		t.Errorf("the log does not tell where calls go:\n%s", log)
	}
	eu.Listen()
	us.Blackhole()
	i.shows(`kms_plugin_region_state{key="prod",op="unwrap",region="eu-west-1",state="ok"} 1`, `kms_plugin_region_state{key="prod",op="unwrap",region="us-east-1",state="outage"} 1`)
	if s := i.sealed(); s.KeyId != first.KeyId {
		t.Errorf("key_id %q, want %q", s.KeyId, first.KeyId)
	}
}

func TestOneRegionCannotFailOver(t *testing.T) {
	i := newInstance(t)
	i.start()
	i.sealed()
	if log := i.log.String(); !strings.Contains(log, "cannot fail over") || !strings.Contains(log, "alsoWrapWith") {
		t.Errorf("nothing at start tells that the key cannot fail over:\n%s", log)
	}
}
