package stored

import (
	"maps"
	"slices"
)

// Builtin tells whether kube-apiserver 1.37, or a release before it, has the
// resource.
func Builtin(g GroupResource) bool { return slices.Contains(groups[g.Group], g.Resource) }

// BuiltinGroup tells whether kube-apiserver 1.37 has the group, "" being the core.
func BuiltinGroup(group string) bool { return groups[group] != nil }

// GroupsOf lists the built-in groups that have a resource of this name.
func GroupsOf(resource string) []string {
	var out []string
	for _, group := range slices.Sorted(maps.Keys(groups)) {
		if slices.Contains(groups[group], resource) {
			out = append(out, group)
		}
	}
	return out
}
