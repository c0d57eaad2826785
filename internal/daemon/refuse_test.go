package daemon_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/daemon"
	"kms-plugin.io/internal/envelope"
)

func TestHostileRequests(t *testing.T) {
	i := newInstance(t)
	i.start()
	e := i.sealed()
	big := bytes.Repeat([]byte{1}, 4<<20)
	for name, tc := range map[string]struct {
		change func(*kmsapi.DecryptRequest)
		code   codes.Code
		want   string
	}{
		"no ciphertext":     {func(r *kmsapi.DecryptRequest) { r.Ciphertext = nil }, codes.InvalidArgument, "ciphertext is empty"},
		"one byte":          {func(r *kmsapi.DecryptRequest) { r.Ciphertext = []byte{1} }, codes.InvalidArgument, "only 1 bytes"},
		"long ciphertext":   {func(r *kmsapi.DecryptRequest) { r.Ciphertext = big[:1025] }, codes.InvalidArgument, "at most 1024"},
		"4 MiB":             {func(r *kmsapi.DecryptRequest) { r.Ciphertext = big }, codes.ResourceExhausted, "larger than max"},
		"no key_id":         {func(r *kmsapi.DecryptRequest) { r.KeyId = "" }, codes.InvalidArgument, "key_id is empty"},
		"long key_id":       {func(r *kmsapi.DecryptRequest) { r.KeyId = strings.Repeat("k", 1025) }, codes.InvalidArgument, "at most 1024"},
		"foreign key_id":    {func(r *kmsapi.DecryptRequest) { r.KeyId = "arn:aws:kms:x" }, codes.InvalidArgument, "not of the form"},
		"lying key_id":      {func(r *kmsapi.DecryptRequest) { r.KeyId = "prod:" + strings.Repeat("a", 32) }, codes.InvalidArgument, "does not belong to its header"},
		"no annotations":    {func(r *kmsapi.DecryptRequest) { r.Annotations = nil }, codes.InvalidArgument, "is missing"},
		"large annotations": {func(r *kmsapi.DecryptRequest) { r.Annotations["a.b"] = big[:33<<10] }, codes.InvalidArgument, "at most 32768"},
		"more annotations":  {func(r *kmsapi.DecryptRequest) { r.Annotations["a.b"] = nil }, codes.InvalidArgument, "there are 2 annotations"},
		"future format":     {func(r *kmsapi.DecryptRequest) { r.Annotations[envelope.AnnotationKey][0] = 2 }, codes.InvalidArgument, "format 2 is not known"},
		"no uid":            {func(r *kmsapi.DecryptRequest) { r.Uid = "" }, codes.InvalidArgument, "uid has 0 bytes"},
		"not UTF-8":         {func(r *kmsapi.DecryptRequest) { r.KeyId = "\xff\xfe" }, codes.Internal, "UTF-8"},
	} {
		r := request(e)
		r.Annotations = map[string][]byte{envelope.AnnotationKey: bytes.Clone(e.Annotations[envelope.AnnotationKey])}
		tc.change(r)
		_, err := i.kms.Decrypt(t.Context(), r)
		if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Decrypt = %v, want %v with %q", name, err, tc.code, tc.want)
		}
	}
	for name, p := range map[string][]byte{"no plaintext": nil, "short": big[:31], "long": big[:33]} {
		if _, err := i.kms.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: p, Uid: "u"}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: Encrypt = %v, want InvalidArgument", name, err)
		}
	}
	if err := i.decrypt(e); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

func TestFirstStartRefuses(t *testing.T) {
	i := newInstance(t)
	for name, tc := range map[string]struct{ file, want string }{
		"broken":    {"a: [", "did not find"},
		"no keyset": {strings.Split(i.base(), "keys:")[0] + "keys: [{name: l, role: write, localfile: {path: /nonexistent}}]\n", "keyset file"},
	} {
		i.put(tc.file)
		err := daemon.Run(t.Context(), daemon.Options{Source: daemon.Source{Path: i.file}, Log: i.log})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Run = %v, want %q", name, err, tc.want)
		}
	}
	i.configure("")
	if err := os.Chmod(i.file, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Run(t.Context(), daemon.Options{Source: daemon.Source{Path: i.file}, Log: i.log}); err == nil || !strings.Contains(err.Error(), "can be written by others") {
		t.Errorf("world-writable configuration: Run = %v", err)
	}
}

func TestStateFileThatCannotBeTrusted(t *testing.T) {
	i := newInstance(t)
	i.start()
	e := i.sealed()
	i.stop()
	path := i.dir + "/state.json"
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"empty":     func() error { return os.WriteFile(path, nil, 0o600) },
		"truncated": func() error { return os.WriteFile(path, whole[:len(whole)/2], 0o600) },
		"flipped": func() error {
			c := bytes.Clone(whole)
			c[len(c)/2] ^= 1
			return os.WriteFile(path, c, 0o600)
		},
		"another's": func() error { return errors.Join(os.WriteFile(path, whole, 0o600), os.Chown(path, 4242, 4242)) },
		"readable": func() error {
			return errors.Join(os.WriteFile(path, whole, 0o600), os.Chown(path, 0, 0), os.Chmod(path, 0o644))
		},
		"symlink": func() error {
			return errors.Join(os.Remove(path), os.WriteFile(path+"x", whole, 0o600), os.Symlink(path+"x", path))
		},
		"directory": func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	} {
		if err := spoil(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		before := strings.Count(i.log.String(), "state file is ignored")
		i.start()
		if got := i.sealed(); got.KeyId != e.KeyId {
			t.Errorf("%s: key_id %q, want %q", name, got.KeyId, e.KeyId)
		}
		if err := i.decrypt(e); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Count(i.log.String(), "state file is ignored") == before {
			t.Errorf("%s: nothing in the log", name)
		}
		i.stop()
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCheck(t *testing.T) {
	i := newInstance(t)
	old := i.file + ".old"
	if err := os.WriteFile(old, []byte(i.base()), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := daemon.Check(t.Context(), i.file, old); err != nil || p != nil {
		t.Errorf("Check of a good file = %v, %v", p, err)
	}
	i.put(strings.Replace(i.base(), i.arn, "alias/prod", 1))
	p, err := daemon.Check(t.Context(), i.file, "")
	if err != nil || len(p) != 1 || p[0].Line != 12 || !strings.Contains(p[0].Message, "alias") || !strings.Contains(p[0].Hint, "describe-key") {
		t.Errorf("Check of an alias = %+v, %v", p, err)
	}
	if _, err := daemon.Check(t.Context(), "/nonexistent", ""); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("Check of no file = %v", err)
	}
	if calls := i.cloud.Calls().Total(); calls != 0 {
		t.Errorf("config check made %d calls to the cloud", calls)
	}
}
