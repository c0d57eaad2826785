package stored_test

import (
	"slices"
	"testing"

	"kms-plugin.io/internal/stored"
)

func TestBuiltin(t *testing.T) {
	for in, want := range map[string]bool{"secrets": true, "deployments.apps": true, "events": true, "secret": false, "deployments": false, "secrets.apps": false, "widgets.example.com": false, "": false} {
		if got := stored.Builtin(stored.ParseGroupResource(in)); got != want {
			t.Errorf("Builtin(%q) = %t, want %t", in, got, want)
		}
	}
	for in, want := range map[string]bool{"": true, "apps": true, "app": false} {
		if got := stored.BuiltinGroup(in); got != want {
			t.Errorf("BuiltinGroup(%q) = %t, want %t", in, got, want)
		}
	}
	for in, want := range map[string][]string{"secrets": {""}, "deployments": {"apps"}, "nothing": nil} {
		if got := stored.GroupsOf(in); !slices.Equal(got, want) {
			t.Errorf("GroupsOf(%q) = %q, want %q", in, got, want)
		}
	}
}
