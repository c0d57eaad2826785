package keys_test

import (
	"strings"
	"testing"
	"time"

	"kms-plugin.io/pkg/keys"
)

func TestRecipients(t *testing.T) {
	w := entry("w", keys.RoleWrite, time.Time{})
	also := func(names ...string) keys.Entry {
		return with(w, func(e *keys.Entry) { e.AlsoWrapWith = names })
	}
	a, b := entry("a", keys.RoleRead, time.Time{}), entry("b", keys.RoleRead, time.Time{})
	r, err := keys.NewRing("c", keys.WrapLocalKEK, also("b", "a"), a, b)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.ByName("w").Recipients(); len(got) != 2 || got[0] != r.ByName("b") || got[1] != r.ByName("a") {
		t.Errorf("Recipients = %v, want b and a", got)
	}
	// An entry of one ring in the next has the recipients of that one.
	if r, err = keys.NewRing("c", keys.WrapLocalKEK, *r.ByName("w"), a, b); err != nil || len(r.ByName("w").Recipients()) != 2 {
		t.Errorf("in the next ring: %v", err)
	}
	same := with(b, func(e *keys.Entry) { e.KEK, e.Context = w.KEK, map[string]string{"x": "y"} })
	twin := with(b, func(e *keys.Entry) { e.KEK, e.Context = a.KEK, map[string]string{"x": "y"} })
	for name, tc := range map[string]struct {
		wrapping keys.Wrapping
		entries  []keys.Entry
		want     string
	}{
		"direct":          {keys.WrapDirect, []keys.Entry{also("a"), a}, "wrapping is direct"},
		"unknown":         {keys.WrapLocalKEK, []keys.Entry{also("z"), a}, `names "z", and there is no such key`},
		"itself":          {keys.WrapLocalKEK, []keys.Entry{also("w"), a}, `names "w", which is the same KEK`},
		"same KEK":        {keys.WrapLocalKEK, []keys.Entry{also("b"), same}, `names "b", which is the same KEK`},
		"twice":           {keys.WrapLocalKEK, []keys.Entry{also("a", "a"), a}, `the KEK of "a" twice`},
		"one KEK, twice":  {keys.WrapLocalKEK, []keys.Entry{also("a", "b"), a, twin}, `the KEK of "b" twice`},
		"retired":         {keys.WrapLocalKEK, []keys.Entry{also("a"), with(a, func(e *keys.Entry) { e.Role = keys.RoleRetired })}, "is retired"},
		"more than there": {keys.WrapLocalKEK, []keys.Entry{also("a", "b", "c", "d", "e"), a, b}, "names 5 keys, at most 4"},
	} {
		if _, err := keys.NewRing("c", tc.wrapping, tc.entries...); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: NewRing = %v, want %q", name, err, tc.want)
		}
	}
}
