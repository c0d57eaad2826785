// Package localfile is a KEK in a file: a Tink keyset of XAES-256-GCM keys in
// clear JSON, mode 0600. It is the embedded default for a laptop or a lab. It
// protects etcd backups that travel without the file, and nothing else: who can
// read the file, or is root on the node, has every Secret.
//
// The oldest key of the file gives the KEK its identity; removing it makes
// another KEK of the file. Material is the key of the keyset that did the work.
package localfile

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/xaesgcm"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/insecuresecretdataaccess"
	"github.com/tink-crypto/tink-go/v2/keyset"

	"kms-plugin.io/pkg/keys"
)

// FileError is a keyset file that cannot be used.
type FileError struct {
	Path   string
	Reason string
	Remedy string // one command or sentence, "" if there is none
}

func (e *FileError) Error() string { return fmt.Sprintf("keyset file %q: %s", e.Path, e.Reason) }

// Hint is what to do about it.
func (e *FileError) Hint() string { return e.Remedy }

const maxFile = 1 << 20

// Create makes a keyset file with one new key, mode 0600. It never replaces a
// file: a keyset that is gone takes every Secret under it along.
func Create(path string) error {
	m := keyset.NewManager()
	id, err := addKey(m)
	if err != nil {
		return err
	}
	data, err := encode(m, id)
	if err != nil {
		return err
	}
	defer clear(data)
	tmp, err := stage(path, data)
	if err != nil {
		return fmt.Errorf("create keyset file: %w", err)
	}
	// A link, unlike a rename, never replaces what is there.
	err = os.Link(tmp, path)
	if err := errors.Join(err, os.Remove(tmp), syncDir(filepath.Dir(path))); err != nil {
		return fmt.Errorf("create keyset file: %w", err)
	}
	return nil
}

// stage writes a whole file beside path, safe from a loss of power. A crash leaves it
// there, mode 0600; the next stage takes its place.
func stage(path string, data []byte) (tmp string, err error) {
	tmp = path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	_, werr := f.Write(data)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(tmp))
	}
	return tmp, nil
}

// AddKey appends a key to the file and makes it the one that wraps: new
// material of the same KEK. Older keys go on opening.
func AddKey(path string) error {
	h, err := load(path)
	if err != nil {
		return err
	}
	m := keyset.NewManagerFromHandle(h)
	id, err := addKey(m)
	if err != nil {
		return err
	}
	data, err := encode(m, id)
	if err != nil {
		return err
	}
	defer clear(data)
	tmp, err := stage(path, data)
	if err != nil {
		return fmt.Errorf("add a key to %q: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("add a key to %q: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

func addKey(m *keyset.Manager) (uint32, error) {
	p, err := xaesgcm.NewParameters(xaesgcm.VariantTink, 12)
	if err != nil {
		return 0, err
	}
	return m.AddNewKeyFromParameters(p)
}

func encode(m *keyset.Manager, primary uint32) ([]byte, error) {
	if err := m.SetPrimary(primary); err != nil {
		return nil, err
	}
	h, err := m.Handle()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := insecurecleartextkeyset.Write(h, keyset.NewJSONWriter(&b)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// load reads and checks the file. Errors are *FileError.
func load(path string) (*keyset.Handle, error) {
	data, err := readOwn(path)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	h, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(data)))
	if err != nil {
		// The text of a parser may quote what it read.
		return nil, &FileError{Path: path, Reason: "it is not a Tink keyset in JSON", Remedy: "restore it from your backup; a new one cannot open what this one wrapped"}
	}
	return h, nil
}

func readOwn(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, &FileError{Path: path, Reason: errors.Unwrap(err).Error(),
			Remedy: "restore it from your backup, or make a first one with: kms-plugin keygen " + path}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, &FileError{Path: path, Reason: err.Error()}
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return nil, &FileError{Path: path, Reason: "it is not a regular file"}
	case !ok || st.Uid != 0 && st.Uid != uint32(os.Geteuid()):
		return nil, &FileError{Path: path, Reason: "it belongs to another user", Remedy: "chown it to the user that kms-plugin runs as"}
	case info.Mode().Perm()&0o077 != 0:
		return nil, &FileError{Path: path, Reason: fmt.Sprintf("mode %#o lets others read or write it", info.Mode().Perm()), Remedy: "chmod 600 " + path}
	case info.Size() > maxFile:
		return nil, &FileError{Path: path, Reason: "it is too large for a keyset"}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, &FileError{Path: path, Reason: err.Error()}
	}
	return data, nil
}

// fingerprint names the bytes of one key without telling them.
func fingerprint(k *xaesgcm.Key) (string, error) {
	raw := k.KeyBytes().Data(insecuresecretdataaccess.Token{})
	defer clear(raw)
	id, err := hkdf.Key(sha256.New, raw, nil, "kms-plugin.io/localfile/fingerprint/v1", 16)
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(id), nil
}

// inspect checks every key and names them: fingerprints by Tink key id, and the
// identity, which follows the oldest.
func inspect(path string, h *keyset.Handle) (identity string, materials map[uint32]string, err error) {
	materials = map[uint32]string{}
	for i := range h.Len() {
		e, err := h.Entry(i)
		if err != nil {
			return "", nil, &FileError{Path: path, Reason: "its keyset cannot be read"}
		}
		k, ok := e.Key().(*xaesgcm.Key)
		if !ok || e.KeyStatus() != keyset.Enabled || !bytes.Equal(k.OutputPrefix(), tinkPrefix(e.KeyID())) {
			return "", nil, &FileError{Path: path, Reason: fmt.Sprintf("key %d is not an enabled XAES-256-GCM key with TINK prefix", e.KeyID()),
				Remedy: "make keysets with kms-plugin keygen only"}
		}
		fp, err := fingerprint(k)
		if err != nil {
			return "", nil, err
		}
		materials[e.KeyID()] = "k" + fp
		if i == 0 {
			identity = "localfile:" + fp
		}
	}
	if identity == "" {
		return "", nil, &FileError{Path: path, Reason: "it holds no key"}
	}
	return identity, materials, nil
}

func tinkPrefix(id uint32) []byte { return binary.BigEndian.AppendUint32([]byte{1}, id) }

// New reads the file once; a reload builds a new KEK. Errors are *FileError.
func New(path string) (*KEK, error) {
	h, err := load(path)
	if err != nil {
		return nil, err
	}
	identity, materials, err := inspect(path, h)
	if err != nil {
		return nil, err
	}
	a, err := aead.New(h)
	if err != nil {
		return nil, &FileError{Path: path, Reason: "Tink refuses its keyset"}
	}
	return &KEK{identity: identity, materials: materials, aead: a}, nil
}

var _ keys.KEK = (*KEK)(nil)
