package rotation

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kms-plugin.io/internal/stored"
)

// version is one that serves the resource, the group's preferred one if that does:
// a group need not serve all its resources in every version. Errors are kept, so
// that a group that is gone is asked for once.
func (m *migration) version(ctx context.Context, g stored.GroupResource) (string, error) {
	if g.Group == "" {
		return "v1", nil
	}
	f, known := m.versions[g]
	if !known {
		f.version, f.err = m.serving(ctx, g)
		if ctx.Err() == nil {
			m.versions[g] = f
		}
	}
	return f.version, f.err
}

// found is a version, or why there is none.
type found struct {
	version string
	err     error
}

func (m *migration) serving(ctx context.Context, g stored.GroupResource) (string, error) {
	var group metav1.APIGroup
	if err := m.get(ctx, "/apis/"+g.Group, &group); err != nil {
		return "", fmt.Errorf("group %s: %w", g.Group, err)
	}
	versions := []string{group.PreferredVersion.Version}
	for _, v := range group.Versions {
		versions = append(versions, v.Version)
	}
	for _, v := range versions {
		var list metav1.APIResourceList
		if err := m.get(ctx, "/apis/"+g.Group+"/"+v, &list); err != nil {
			return "", fmt.Errorf("group %s: %w", g.Group, err)
		}
		if slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == g.Resource }) {
			return v, nil
		}
	}
	return "", fmt.Errorf("group %s: no version serves %s", g.Group, g.Resource)
}

func (m *migration) get(ctx context.Context, path string, out any) error {
	raw, err := m.o.Servers[0].REST.Get().AbsPath(path).Do(ctx).Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, out)
}
