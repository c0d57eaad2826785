package localfile_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/keystest"
	"kms-plugin.io/pkg/keys/localfile"
)

func create(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "k.keyset")
	if err := localfile.Create(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, path string) keys.KEK {
	t.Helper()
	k, err := localfile.New(path)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestConformance(t *testing.T) {
	path, other := create(t), create(t)
	keystest.Run(t, keystest.Config{
		New:   func(t *testing.T) keys.KEK { return open(t, path) },
		Other: func(t *testing.T) keys.KEK { return open(t, other) },
		Rotate: func(t *testing.T) {
			if err := localfile.AddKey(path); err != nil {
				t.Fatal(err)
			}
		},
	})
}

func TestCreateNeverReplaces(t *testing.T) {
	path := create(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := localfile.Create(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("Create over a keyset = %v, want ErrExist", err)
	}
	after, err := os.ReadFile(path)
	if err != nil || string(before) != string(after) {
		t.Errorf("the keyset changed: %v", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name, data string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(data), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	readable := create(t)
	if err := os.Chmod(readable, 0o640); err != nil {
		t.Fatal(err)
	}
	theirs := create(t)
	if err := os.Chown(theirs, 4242, 4242); err != nil {
		t.Fatal(err)
	}
	const aesGCM = `{"primaryKeyId":1,"key":[{"keyData":{"typeUrl":"type.googleapis.com/google.crypto.tink.AesGcmKey","value":"GhAAAAAAAAAAAAAAAAAAAAAA","keyMaterialType":"SYMMETRIC"},"status":"ENABLED","keyId":1,"outputPrefixType":"TINK"}]}`
	for name, tc := range map[string]struct{ path, want, hint string }{
		"missing":      {filepath.Join(dir, "none"), "no such file", "keygen"},
		"not JSON":     {write("junk", "SECRETBYTES", 0o600), "not a Tink keyset", "backup"},
		"group":        {readable, "mode 0640", "chmod 600"},
		"another user": {theirs, "belongs to another user", "chown"},
		"directory":    {dir, "not a regular file", ""},
		"other key":    {write("aes", aesGCM, 0o600), "not an enabled XAES-256-GCM key", "keygen"},
		"huge":         {write("huge", strings.Repeat(" ", 1<<20+1), 0o600), "too large", ""},
	} {
		_, err := localfile.New(tc.path)
		var fe *localfile.FileError
		if !errors.As(err, &fe) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(fe.Hint(), tc.hint) {
			t.Errorf("%s: New = %v, want a FileError with %q and hint %q", name, err, tc.want, tc.hint)
		}
		if err != nil && strings.Contains(err.Error(), "SECRETBYTES") {
			t.Errorf("%s: the error quotes the file", name)
		}
	}
}
