package rotation

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// shown is what a run showed of one kind of work at a time.
type shown struct {
	work              Work
	first, last, most int64 // done at first and at last, and the last total
}

// watched keeps what a run shows; it must not show less done than before.
func watched(t *testing.T, o *Options) *[]shown {
	out := &[]shown{}
	o.Progress = func(w Work, done, total int64) {
		n := len(*out)
		if n == 0 || (*out)[n-1].work != w || done == 0 && (*out)[n-1].last > 0 {
			*out = append(*out, shown{w, done, done, total})
			return
		}
		if done < (*out)[n-1].last || done > total {
			t.Errorf("%s: %d of %d after %+v", w.Name, done, total, (*out)[n-1])
		}
		(*out)[n-1].last, (*out)[n-1].most = done, total
	}
	return out
}

// A revision is compacted away many times while a long list of objects is written
// again. Each is written once, one that is refused is not tried again before the next
// round, and what is shown are objects.
func TestCompactionWhileWriting(t *testing.T) {
	w := newWorld("new", "new")
	for i := range 500 {
		w.etcd[fmt.Sprintf("/registry/secrets/ns/%03d", i)] = under("ours", "old")
		w.etcd[fmt.Sprintf("/registry/secrets/other/%03d", i)] = under("ours", "new")
	}
	w.compact = 20
	const refused = "/registry/secrets/ns/007"
	tries := 0
	w.patch = func(_ int, key string) int {
		if key != refused {
			return 0
		}
		if tries++; tries == 1 {
			return http.StatusForbidden
		}
		return 0
	}
	o := w.options(t, rules)
	seen := watched(t, &o)
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Sort(w.patched); len(w.patched) != 500 || len(slices.Compact(w.patched)) != 500 || tries != 2 || r.Written != 500 {
		t.Errorf("%d objects were patched, the refused one %d times; %d written", len(w.patched), tries, r.Written)
	}
	want := []shown{{Reading, 0, 960, 1000}, {Reencrypting, 0, 499, 500}, {Proving, 0, 0, 1000}, {Reencrypting, 0, 1, 1}, {Proving, 0, 0, 1000}}
	if !slices.Equal(*seen, want) {
		t.Errorf("shown\n%v, want\n%v", *seen, want)
	}
	if w.scans != 5 { // to count, to write, to prove, to write, to prove
		t.Errorf("etcd was read %d times", w.scans)
	}
}

// What a migration does is shown too, as objects of those that are stale, and etcd is
// read no more often than is needed.
func TestProgressOfMigrations(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(w *world)
		want   []shown
		scans  int
	}{
		"it does all": {func(*world) {},
			[]shown{{Reading, 0, 0, 3}, {Reencrypting, 0, 2, 3}, {Reading, 0, 0, 3}, {Proving, 0, 0, 3}}, 3},
		"events are not for it": {func(w *world) { w.etcd["/registry/events/ns/e"] = under("ours", "old") },
			[]shown{{Reading, 0, 0, 4}, {Reencrypting, 0, 2, 3}, {Reencrypting, 0, 1, 1}, {Proving, 0, 0, 4}}, 3},
		"it leaves a resource out": {func(w *world) { w.skip = "secrets" },
			[]shown{{Reading, 0, 0, 3}, {Reencrypting, 0, 2, 3}, {Reading, 0, 0, 3}, {Reencrypting, 1, 1, 1}, {Proving, 0, 0, 3}}, 3},
		"it fails": {func(w *world) { w.fails = true },
			[]shown{{Reading, 0, 0, 3}, {Reencrypting, 0, 2, 3}, {Reading, 0, 0, 3}, {Reencrypting, 0, 1, 1}, {Proving, 0, 0, 3}}, 4},
		"nothing is left": {func(w *world) {
			for k := range w.etcd {
				w.etcd[k] = under("ours", "new")
			}
		}, []shown{{Reading, 0, 0, 3}, {Proving, 0, 0, 3}}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld("new")
			w.manager = true
			w.etcd = map[string]string{"/registry/secrets/ns/a": under("ours", "old"), "/registry/secrets/ns/b": under("ours", "old"), "/registry/example.com/widgets/w": under("ours", "old")}
			tt.change(w)
			o := w.options(t, rules)
			o.Via, o.Renewal = ViaAuto, 50*time.Millisecond
			seen := watched(t, &o)
			if _, err := Run(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(*seen, tt.want) {
				t.Errorf("shown\n%v, want\n%v", *seen, tt.want)
			}
			if w.scans != tt.scans {
				t.Errorf("etcd was read %d times, want %d", w.scans, tt.scans)
			}
		})
	}
}

// What the API cannot name is counted and told all the same.
func TestNoPlaceInTheAPI(t *testing.T) {
	w := newWorld("new")
	w.etcd["/registry/secrets/a/b/c"] = under("ours", "old")
	if _, err := Run(t.Context(), w.options(t, rules)); err == nil || !strings.Contains(err.Error(), "is not of the form [namespace/]name") {
		t.Error(err)
	}
}
