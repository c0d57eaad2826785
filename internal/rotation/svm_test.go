package rotation

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// A migration's word is not the proof either: what it left out is written by
// patches, and what nobody could write is an error.
func TestStorageVersionMigration(t *testing.T) {
	for name, tt := range map[string]struct {
		change  func(w *world, o *Options)
		patched []string // beside the sample of each resource that wakes the controller
		said    string
		want    string // error
	}{
		"it does all":                   {func(*world, *Options) {}, nil, "StorageVersionMigration of widgets.example.com: Succeeded: Migration completed", ""},
		"events are not for it":         {func(w *world, _ *Options) { w.etcd["/registry/events/ns/e"] = under("ours", "old") }, []string{"/registry/events/ns/e"}, "of secrets: Succeeded", ""},
		"it leaves a resource out":      {func(w *world, _ *Options) { w.skip = "secrets" }, []string{"/registry/secrets/ns/b"}, "secrets: Succeeded", ""},
		"it fails":                      {func(w *world, _ *Options) { w.fails = true }, []string{"/registry/secrets/ns/b"}, "Failed: made to fail", ""},
		"nobody works it off":           {func(w *world, _ *Options) { w.manager = false }, []string{"/registry/secrets/ns/b"}, "kube-controller-manager has not renewed its lease", ""},
		"nobody works it off, demanded": {func(w *world, o *Options) { w.manager, o.Via = false, ViaMigration }, nil, "", "has not renewed its lease"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld("new")
			w.manager = true
			w.etcd = map[string]string{"/registry/secrets/ns/a": under("ours", "old"), "/registry/secrets/ns/b": under("ours", "old"), "/registry/example.com/widgets/w": under("ours", "old")}
			o := w.options(t, rules)
			var said strings.Builder
			o.Via, o.Renewal, o.Say = ViaAuto, 50*time.Millisecond, func(format string, args ...any) { fmt.Fprintf(&said, format+"\n", args...) }
			tt.change(w, &o)
			r, err := Run(t.Context(), o)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) || len(w.patched) > 0 {
					t.Errorf("%v, patched %q", err, w.patched)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(said.String(), tt.said) {
				t.Errorf("no %q in\n%s", tt.said, said.String())
			}
			for _, key := range tt.patched {
				if !slices.Contains(w.patched, key) {
					t.Errorf("%s was not patched: %q", key, w.patched)
				}
			}
			if len(tt.patched) == 0 && slices.Contains(w.patched, "/registry/secrets/ns/b") {
				t.Errorf("patched %q, which the migration did", w.patched)
			}
			if len(w.svm) > 0 || r.KeyID != "new" {
				t.Errorf("%d migrations are left; %+v", len(w.svm), r)
			}
		})
	}
}
