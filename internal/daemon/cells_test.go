package daemon_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/test/fakekms"
)

// short are the timers of the cells: each class' own, in their order.
const short = "health: {keyState: 300ms, authorization: 600ms, credential: 900ms, maxOutage: 1200ms, maxOutageDecrypt: 2400ms, wipeAfter: 1s}\n"

// The four classes as the real SDK meets them, on one operation or both.
var answers = map[string]fakekms.Fault{
	"key-state":     {Kind: fakekms.Custom, Code: "DisabledException", Status: 400},
	"authorization": {Kind: fakekms.Deny},
	"credential":    {Kind: fakekms.UnrecognizedClient},
	"outage":        {Kind: fakekms.Throttle},
}

// cell is one way to take a key away.
type cell struct {
	regions string // quorum of a key in two regions, "" for one
	class   string
	spoil   func(i *instance) (undo func())
	closes  bool // nothing is sealed any more
	opens   bool // and what is stored still opens, by the KMS and from memory
}

// Class × operation × region, by the real SDK: what closes the key for sealing and for
// opening, what does not, and that all is well again once it is given back, without
// a restart and under the same key_id.
func TestRevocationCells(t *testing.T) {
	cells := special()
	for class, fault := range answers {
		for _, op := range []string{"", "Encrypt", "Decrypt"} {
			for _, where := range []struct {
				name, quorum, region string
			}{{"in its one region", "", ""}, {"here of two", "any", "eu-west-1"}, {"there of two", "any", "us-east-1"}, {"in both of two", "any", ""}, {"here of two, quorum all", "all", "eu-west-1"}, {"in both of two, quorum all", "all", ""}} {
				everywhere := where.region == ""
				c := cell{regions: where.quorum, class: class, closes: everywhere || class == "key-state" && where.quorum == "any"}
				c.opens = op == "Encrypt" || !c.closes
				f := fault
				f.Op, f.Region = op, where.region
				c.spoil = func(i *instance) func() { return i.faults(f) }
				cells[fmt.Sprintf("%s, %s %s", class, map[string]string{"": "both operations"}[op]+op, where.name)] = c
			}
		}
	}
	cloud, err := fakekms.Start(fakekms.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cloud.Close)
	environment(t, cloud)
	places := map[string]*fakekms.Region{}
	for _, name := range []string{"eu-west-1", "us-east-1"} {
		if places[name], err = cloud.Region(name); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	lanes := make(chan struct{}, 8) // they wait for timers more than for the processor
	for name, c := range cells {
		wg.Go(func() {
			lanes <- struct{}{}
			defer func() { <-lanes }()
			t.Run(name, func(t *testing.T) { c.run(t, cloud, places) })
		})
	}
	wg.Wait()
}

// faults puts a fault in force for the key of an instance, in all its regions.
func (i *instance) faults(f fakekms.Fault) (undo func()) {
	var ids []int
	for _, arn := range []string{i.arn, i.cloud.ReplicaARN(i.arn, "us-east-1")} {
		f.KeyID = arn
		ids = append(ids, i.cloud.SetFault(f))
	}
	return func() {
		for _, id := range ids {
			i.cloud.ClearFault(id)
		}
	}
}

// special are those that are no fault of an operation.
func special() map[string]cell {
	state := func(s string) func(i *instance) func() {
		return func(i *instance) func() {
			i.cloud.SetState(i.arn, s)
			return func() { i.cloud.SetState(i.arn, "Enabled") }
		}
	}
	policy := func(actions ...string) func(i *instance) func() {
		return func(i *instance) func() {
			i.cloud.SetPolicy(i.arn, []fakekms.Statement{{}, {Deny: true, Actions: actions}})
			return func() { i.cloud.SetPolicy(i.arn, nil) }
		}
	}
	fault := func(f fakekms.Fault) func(i *instance) func() {
		return func(i *instance) func() { return i.faults(f) }
	}
	return map[string]cell{
		"disabled":                           {"", "key-state", state("Disabled"), true, false},
		"pending deletion":                   {"", "key-state", state("PendingDeletion"), true, false},
		"not found":                          {"", "key-state", fault(fakekms.Fault{Kind: fakekms.Custom, Code: "NotFoundException", Status: 400}), true, false},
		"key policy denies":                  {"", "authorization", policy("kms:Encrypt", "kms:Decrypt"), true, false},
		"key policy denies only Encrypt":     {"", "authorization", policy("kms:Encrypt"), true, true},
		"key policy denies only Decrypt":     {"", "authorization", policy("kms:Decrypt"), true, false},
		"endpoint policy denies on one path": {"any", "authorization", fault(fakekms.Fault{Region: "eu-west-1", Kind: fakekms.Deny}), false, true},
		"session ended":                      {"", "credential", fault(fakekms.Fault{Kind: fakekms.ExpiredToken}), true, false},
		"signature refused":                  {"", "credential", fault(fakekms.Fault{Kind: fakekms.InvalidSignature}), true, false},
		"egress cut":                         {"", "outage", fault(fakekms.Fault{Kind: fakekms.Reset}), true, false},
		"egress swallowed":                   {"any", "outage", fault(fakekms.Fault{Kind: fakekms.Hang}), true, false},
		"egress swallowed on one path":       {"any", "outage", fault(fakekms.Fault{Region: "us-east-1", Kind: fakekms.Hang}), false, true},
		"a middlebox answers":                {"", "outage", fault(fakekms.Fault{Kind: fakekms.HTMLError}), true, false},
	}
}

func (c cell) run(t *testing.T, cloud *fakekms.Server, places map[string]*fakekms.Region) {
	i := instanceOf(t, cloud)
	config := i.base()
	if c.regions != "" {
		i.arn = cloud.CreateKey("eu-west-1", fakekms.KeyOptions{MultiRegion: true, Replicas: []string{"us-east-1"}})
		config = strings.Replace(i.base(), fmt.Sprintf(`endpoint: "%s"}`, cloud.URL()), fmt.Sprintf(`endpoint: "%s", replicas: ["%s"], replicaEndpoints: {us-east-1: "%s"}, regionQuorum: %s}`,
			places["eu-west-1"].URL(), cloud.ReplicaARN(i.arn, "us-east-1"), places["us-east-1"].URL(), c.regions), 1)
	}
	i.put(config + short)
	i.start()
	cold := i.sealed()
	i.stop()
	if err := os.Remove(i.dir + "/state.json"); err != nil { // so that its local KEK is in nobody's memory
		t.Fatal(err)
	}
	i.start()
	hot := i.sealed()
	undo := c.spoil(i)
	if c.closes {
		i.closes(c, hot, cold)
	} else {
		i.goesOn(hot)
	}
	undo()
	i.eventually("all is well again", func() error {
		e, err := i.encrypt()
		if err == nil && e.KeyId != hot.KeyId {
			t.Fatalf("key_id %q, was %q", e.KeyId, hot.KeyId)
		}
		return errors.Join(err, i.decrypt(hot), i.decrypt(cold))
	})
}

func (i *instance) encrypt() (*kmsapi.EncryptResponse, error) {
	return i.kms.Encrypt(i.t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte(seed), Uid: "test-uid"})
}

func (i *instance) closes(c cell, hot, cold *kmsapi.EncryptResponse) {
	i.t.Helper()
	i.eventually("Encrypt is refused", func() error {
		_, err := i.encrypt()
		_, serr := i.kms.Status(i.t.Context(), &kmsapi.StatusRequest{})
		if want := "is closed (" + c.class + ")"; !strings.Contains(fmt.Sprint(err), want) || !strings.Contains(fmt.Sprint(serr), want) {
			return fmt.Errorf("Encrypt = %v, Status = %v, want both refused for %s", err, serr, c.class)
		}
		return nil
	})
	if c.opens {
		i.eventually("what is stored still opens", func() error { return errors.Join(i.decrypt(hot), i.decrypt(cold)) })
		return
	}
	i.shows(fmt.Sprintf(`kms_plugin_key_closed_timestamp_seconds{class="%s",key="prod"}`, c.class))
	if i.decrypt(hot) == nil { // it is still in memory, if this is a denial
		i.t.Error("a seed was opened after the key had closed")
	}
	i.eventually("nothing opens and nothing is in memory", func() error {
		text, _ := i.get("/metrics")
		if i.decrypt(hot) == nil || i.decrypt(cold) == nil || !strings.Contains(text, "kms_plugin_local_keks 0\n") {
			return errors.New("it does")
		}
		return nil
	})
}

// goesOn seals and opens without a failure for longer than the longest timer.
func (i *instance) goesOn(hot *kmsapi.EncryptResponse) {
	i.t.Helper()
	begun := time.Now()
	i.eventually("three seconds go by", func() error {
		_, err := i.encrypt()
		if err := errors.Join(err, i.decrypt(hot)); err != nil {
			i.t.Fatalf("after %s: %v", time.Since(begun), err)
		}
		if time.Since(begun) < 3*time.Second {
			return errors.New("not yet")
		}
		return nil
	})
}
