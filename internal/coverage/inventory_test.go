package coverage

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/etcdstore"
)

// backup is a source with the name and time of a file.
type backup struct {
	source
	file     string
	revision int64
	day      time.Time
}

func (b *backup) Scan(ctx context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error)) error {
	return b.source.Scan(ctx, func(i etcdstore.Info) (etcdstore.Visit, error) {
		i.File, i.FileTime, i.Revision = b.file, b.day, b.revision
		return begin(i)
	})
}

func newBackup(file string, revision int64, day int, values ...string) *backup {
	b := &backup{file: file, revision: revision, day: time.Date(2026, 11, day, 15, 0, 0, 0, time.UTC)}
	for i, v := range values {
		b.add("/registry/secrets/ns/"+string(rune('a'+i)), v)
	}
	return b
}

func TestInventory(t *testing.T) {
	sources := []etcdstore.Source{newBackup("third", 30, 20, newB, "k8s\x00"), newBackup("first", 10, 1, oldA, cbc), newBackup("second", 20, 10, oldA, newB)}
	inv, err := Take(t.Context(), sources, Options{Names: pluginConfig("")}, 30*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, s := range inv.Snapshots {
		files = append(files, s.Source.File)
	}
	if want := []string{"first", "second", "third"}; !slices.Equal(files, want) {
		t.Errorf("order %q", files)
	}
	if s := inv.Snapshots[1]; s.Objects != 2 || s.Seeds != 2 || s.Wrapped != 2 || len(s.Keys) != 2 || s.Plain != 0 {
		t.Errorf("second: %+v", s)
	}
	if s := inv.Snapshots[2]; s.Plain != 1 {
		t.Errorf("third: %+v", s)
	}
	type last struct {
		file, mayGo string
		newest      bool
	}
	got := map[string]last{}
	for _, n := range inv.Keys {
		l := last{n.LastFile, "", n.Newest}
		if n.MayGo != nil {
			l.mayGo = n.MayGo.Format(time.RFC3339)
		}
		got[n.Name+n.Provider] = l
	}
	// 10 November, 15:00, and 30 days: kept through 10 December.
	for name, want := range map[string]last{
		"key1": {"first", "2026-12-02T00:00:00Z", false}, "aours": {"second", "2026-12-11T00:00:00Z", false}, "bours": {"third", "", true},
	} {
		if got[name] != want {
			t.Errorf("%s: %+v, want %+v", name, got[name], want)
		}
	}
	if len(inv.Warnings) != 0 {
		t.Errorf("warnings %q", inv.Warnings)
	}
}

// Whatever the terminal, each file comes with its keys, whole, and with its counts.
func TestInventoryText(t *testing.T) {
	sources := []etcdstore.Source{newBackup("third", 30, 20, newB, "k8s\x00"), newBackup("first", 10, 1, oldA, cbc), newBackup("second", 20, 10, oldA, newB)}
	inv, err := Take(t.Context(), sources, Options{Names: pluginConfig("")}, 30*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, width := range []int{0, 1, 40, 80} {
		var text strings.Builder
		if err := inv.Print(&text, width); err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(text.String()) {
			if l = strings.TrimSuffix(l, "\n"); width > 0 && len(l) > width && len(strings.Fields(l)) > 1 {
				t.Errorf("%d columns of %d: %q", len(l), width, l)
			}
		}
		got := strings.Join(strings.Fields(text.String()), " ")
		for _, want := range []string{
			"second 2026-11-10 15:00Z, revision 20, no hash to verify 2 objects, of them 0 plain, 0 broken needs 2 keys, 2 wrapped local KEKs, 2 DEK seeds: a (a:",
			"first 2026-11-01 15:00Z, revision 10, no hash to verify 2 objects, of them 0 plain, 0 broken needs 2 keys, 1 wrapped local KEK, 1 DEK seed:",
			"aescbc key1: 1 object ", "last needed by second of 2026-11-10", "may go on 2026-12-11", "the newest snapshot needs it", "KEK awskms:aws:eu-west-1:111122223333:11111111-2222-3333-4444-555555555555; material m1 ",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("width %d: no %q in\n%s", width, want, text.String())
			}
		}
	}
}

func TestInventoryWarnsOfLostTimes(t *testing.T) {
	inv, err := Take(t.Context(), []etcdstore.Source{newBackup("a", 30, 1, oldA), newBackup("b", 10, 2, newB)}, Options{}, 0)
	if err != nil || len(inv.Warnings) != 1 || inv.Keys[0].MayGo != nil {
		t.Errorf("%+v, %v", inv, err)
	}
}

func TestInventoryNeedsAll(t *testing.T) {
	bad := newBackup("b", 10, 2, newB)
	bad.err = errors.New("damaged")
	if inv, err := Take(t.Context(), []etcdstore.Source{newBackup("a", 30, 1, oldA), bad}, Options{}, 0); !errors.Is(err, bad.err) || inv != nil {
		t.Errorf("%+v, %v", inv, err)
	}
}
