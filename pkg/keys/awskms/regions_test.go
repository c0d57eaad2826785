package awskms_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/awskms"
	"kms-plugin.io/pkg/keys/keystest"
	"kms-plugin.io/pkg/keys/regions"
	"kms-plugin.io/test/fakekms"
)

// pair is a key in two regions, each with an endpoint of its own.
type pair struct {
	cloud  *fakekms.Server
	eu, us *fakekms.Region
	arn    string
	kek    *regions.KEK
}

func newPair(t *testing.T, q keys.Quorum) *pair {
	t.Helper()
	p := &pair{cloud: start(t, fakekms.Config{})}
	var err error
	if p.eu, err = p.cloud.Region("eu-west-1"); err != nil {
		t.Fatal(err)
	}
	if p.us, err = p.cloud.Region("us-east-1"); err != nil {
		t.Fatal(err)
	}
	p.arn = p.cloud.CreateKey("eu-west-1", fakekms.KeyOptions{MultiRegion: true, Replicas: []string{"us-east-1"}})
	p.kek = p.join(t, p.arn, q)
	return p
}

func (p *pair) join(t *testing.T, arn string, q keys.Quorum) *regions.KEK {
	t.Helper()
	all, err := awskms.Regions(t.Context(), awskms.Config{KeyARN: arn, Endpoint: p.eu.URL(),
		Replicas: []string{p.cloud.ReplicaARN(arn, "us-east-1")}, ReplicaEndpoints: map[string]string{"us-east-1": p.us.URL()}})
	if err != nil {
		t.Fatal(err)
	}
	var in []keys.Region
	for _, k := range all {
		in = append(in, keys.Region{Name: k.Region(), KEK: k})
	}
	k, err := regions.New(q, in...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestConformanceOfRegions(t *testing.T) {
	p := newPair(t, keys.QuorumAny)
	other := p.cloud.CreateKey("eu-west-1", fakekms.KeyOptions{MultiRegion: true, Replicas: []string{"us-east-1"}})
	for name, away := range map[string]func(){"both": func() {}, "replica alone": p.eu.Refuse} {
		t.Run(name, func(t *testing.T) {
			away()
			keystest.Run(t, keystest.Config{
				New:    func(t *testing.T) keys.KEK { return p.join(t, p.arn, keys.QuorumAny) },
				Other:  func(t *testing.T) keys.KEK { return p.join(t, other, keys.QuorumAny) },
				Rotate: func(*testing.T) { p.cloud.Rotate(p.arn) },
			})
			p.eu.Listen()
		})
	}
}

// The identity of a multi-Region key has no region, so nothing that depends on it
// changes with the region that answers.
func TestFailoverWithTheRealSDK(t *testing.T) {
	deny := []fakekms.Statement{{Deny: true}}
	for name, tc := range map[string]struct {
		spoil  func(p *pair)
		quorum keys.Quorum
		class  keys.Class // none: the replica answers
	}{
		"refused":      {func(p *pair) { p.eu.Refuse() }, "", keys.ClassNone},
		"black hole":   {func(p *pair) { p.eu.Blackhole() }, "", keys.ClassNone},
		"throttled":    {func(p *pair) { p.cloud.SetFault(fakekms.Fault{Region: "eu-west-1", Kind: fakekms.Throttle}) }, "", keys.ClassNone},
		"5xx":          {func(p *pair) { p.cloud.SetFault(fakekms.Fault{Region: "eu-west-1", Kind: fakekms.InternalError}) }, "", keys.ClassNone},
		"some proxy":   {func(p *pair) { p.cloud.SetFault(fakekms.Fault{Region: "eu-west-1", Kind: fakekms.HTMLError}) }, "", keys.ClassNone},
		"disabled":     {func(p *pair) { p.cloud.SetState(p.arn, fakekms.Disabled) }, "", keys.ClassKeyState},
		"disabled all": {func(p *pair) { p.cloud.SetState(p.arn, fakekms.Disabled) }, keys.QuorumAll, keys.ClassNone},
		"pending all":  {func(p *pair) { p.cloud.SetState(p.arn, fakekms.PendingDeletion) }, keys.QuorumAll, keys.ClassNone},
		"deleted all":  {func(p *pair) { p.cloud.Delete(p.arn) }, keys.QuorumAll, keys.ClassNone},
		"denied":       {func(p *pair) { p.cloud.SetPolicy(p.arn, deny) }, keys.QuorumAll, keys.ClassAuthorization},
		"all away":     {func(p *pair) { p.eu.Refuse(); p.us.Blackhole() }, "", keys.ClassOutage},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, tc.quorum)
			first, err := keys.WrapVerified(t.Context(), p.kek, make(keys.Secret, 32), bound)
			if err != nil {
				t.Fatal(err)
			}
			tc.spoil(p)
			ctx, cancel := context.WithTimeout(t.Context(), 2400*time.Millisecond)
			defer cancel()
			u, err := p.kek.Unwrap(ctx, first.Blob, bound)
			if keys.ClassOf(err) != tc.class {
				t.Fatalf("Unwrap = %v, want class %v", err, tc.class)
			}
			if tc.class == keys.ClassNone && (u.Region != "us-east-1" || u.Material != first.Material) {
				t.Errorf("Unwrap in %q by material %q, want the replica and %q", u.Region, u.Material, first.Material)
			}
			if ctx.Err() != nil && tc.class == keys.ClassNone {
				t.Error("the whole budget was used")
			}
		})
	}
}

func TestNotFoundSaysThatTheKeyIsAbsent(t *testing.T) {
	p := newPair(t, "")
	p.cloud.Delete(p.cloud.ReplicaARN(p.arn, "us-east-1"))
	_, err := p.kek.Regions()[1].KEK.Wrap(t.Context(), make(keys.Secret, 32), bound)
	var e *keys.Error
	if !errors.As(err, &e) || !e.Absent || e.Class != keys.ClassKeyState {
		t.Errorf("Wrap where the key is not = %v (%+v), want key-state, absent", err, e)
	}
}

func TestValidateReplicas(t *testing.T) {
	clear(t)
	const (
		single = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
		multi  = "arn:aws:kms:eu-west-1:111122223333:key/mrk-1234567890abcdef1234567890abcdef"
	)
	in := func(region string) string { return strings.Replace(multi, "eu-west-1", region, 1) }
	for name, tc := range map[string]struct {
		c          awskms.Config
		want, hint string
	}{
		"single-Region key": {awskms.Config{KeyARN: single, Replicas: []string{single}}, "single-Region key", "--multi-region"},
		"another key id":    {awskms.Config{KeyARN: multi, Replicas: []string{strings.Replace(in("us-east-1"), "mrk-1", "mrk-2", 1)}}, "another key", "describe-key --region eu-west-1"},
		"another account":   {awskms.Config{KeyARN: multi, Replicas: []string{strings.Replace(in("us-east-1"), "1111", "2222", 1)}}, "another key", "MultiRegionConfiguration"},
		"alias":             {awskms.Config{KeyARN: multi, Replicas: []string{"alias/x"}}, "alias", "describe-key"},
		"same region":       {awskms.Config{KeyARN: multi, Replicas: []string{multi}}, "eu-west-1 is named twice", "once"},
		"region twice":      {awskms.Config{KeyARN: multi, Replicas: []string{in("us-east-1"), in("us-east-1")}}, "us-east-1 is named twice", "once"},
		"too many": {awskms.Config{KeyARN: multi, Replicas: []string{in("us-east-1"), in("us-east-2"), in("us-west-1"), in("us-west-2"), in("eu-west-2")}},
			"5 replicas", "nearest"},
		"endpoint of nobody": {awskms.Config{KeyARN: multi, Replicas: []string{in("us-east-1")}, ReplicaEndpoints: map[string]string{"us-west-1": "https://x"}},
			`"us-west-1"`, "regions of replicas"},
		"endpoint elsewhere": {awskms.Config{KeyARN: multi, Replicas: []string{in("us-east-1")}, ReplicaEndpoints: map[string]string{"us-east-1": "https://kms.us-west-1.amazonaws.com"}},
			"region us-west-1", "own region"},
		"fine": {awskms.Config{KeyARN: multi, Replicas: []string{in("us-east-1"), in("eu-central-1")}, ReplicaEndpoints: map[string]string{"us-east-1": "https://vpce-1-2.kms.us-east-1.vpce.amazonaws.com"}}, "", ""},
	} {
		err := awskms.Validate(tc.c)
		var ce *awskms.ConfigError
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: Validate = %v, want nil", name, err)
		case tc.want != "" && (!errors.As(err, &ce) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(ce.Hint(), tc.hint)):
			t.Errorf("%s: Validate = %v, want %q with hint %q", name, err, tc.want, tc.hint)
		}
	}
}
