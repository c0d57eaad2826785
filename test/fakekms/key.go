package fakekms

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Key states, as DescribeKey names them.
const (
	Enabled         = "Enabled"
	Disabled        = "Disabled"
	PendingDeletion = "PendingDeletion"
)

// KeyOptions say what key to make.
type KeyOptions struct {
	MultiRegion bool
	Replicas    []string // further regions of a multi-Region key
	Alias       string   // without "alias/"
	SignOnly    bool     // usage SIGN_VERIFY: cannot encrypt
	Account     string   // owner, that of the fake if empty
	NoRotation  bool     // automatic rotation is off
}

// key is one key in one region; replicas share the material.
type key struct {
	id, region string
	account    string
	state      string
	deleted    time.Time
	signOnly   bool
	noRotation bool
	primary    bool
	policy     []Statement
	shared     *material
}

type material struct {
	history []string // ids, oldest first
	aeads   map[string]cipher.AEAD
	rotated int
	dates   []time.Time
}

func (m *material) add(onDemand bool) string {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails (crypto/rand)
	block, err := aes.NewCipher(raw)
	if err != nil {
		panic(err) // 32 bytes are always a key
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // AES is always a block of 16
	}
	id := randomHex(32)
	m.history, m.dates = append(m.history, id), append(m.dates, time.Now())
	m.aeads[id] = a
	if onDemand {
		m.rotated++
	}
	return id
}

func (m *material) newest() string { return m.history[len(m.history)-1] }

// CreateKey makes a symmetric key and returns its ARN.
func (s *Server) CreateKey(region string, o KeyOptions) string {
	h := randomHex(16)
	id := fmt.Sprintf("%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:])
	if o.MultiRegion {
		id = "mrk-" + h
	}
	m := &material{aeads: map[string]cipher.AEAD{}}
	m.add(false)
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.Account == "" {
		o.Account = s.account
	}
	for i, r := range append([]string{region}, o.Replicas...) {
		s.keys[r+"/"+id] = &key{id: id, region: r, account: o.Account, state: Enabled, signOnly: o.SignOnly, noRotation: o.NoRotation, primary: i == 0, shared: m}
		if o.Alias != "" {
			s.aliases[r+"/alias/"+o.Alias] = id
		}
	}
	return s.keys[region+"/"+id].arn()
}

func (k *key) arn() string {
	return fmt.Sprintf("arn:aws:kms:%s:%s:key/%s", k.region, k.account, k.id)
}

// ReplicaARN names the same multi-Region key in another region.
func (s *Server) ReplicaARN(arn, region string) string {
	parts := strings.Split(arn, ":")
	parts[3] = region
	return strings.Join(parts, ":")
}

// SetAlias points an alias of a region to a key.
func (s *Server) SetAlias(region, alias, arn string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aliases[region+"/alias/"+alias] = arn[strings.LastIndex(arn, "/")+1:]
}

// find takes an ARN, an alias or a bare id, in the region of the request; the
// caller holds mu.
func (s *Server) find(region, name string) (*key, error) {
	if rest, isARN := strings.CutPrefix(name, "arn:aws:kms:"); isARN {
		parts := strings.SplitN(rest, ":", 3)
		if len(parts) != 3 || parts[0] != region {
			return nil, errNoKey
		}
		name = strings.TrimPrefix(parts[2], "key/")
		if k := s.keys[region+"/"+name]; k != nil && k.account != parts[1] {
			return nil, errNoKey
		}
	}
	if strings.HasPrefix(name, "alias/") {
		name = s.aliases[region+"/"+name]
	}
	if k := s.keys[region+"/"+name]; k != nil {
		return k, nil
	}
	return nil, errNoKey
}

// byARN is for knobs: a wrong ARN is a mistake of the test.
func (s *Server) byARN(arn string) *key {
	parts := strings.Split(arn, ":")
	if len(parts) == 6 {
		if k, err := s.find(parts[3], arn); err == nil {
			return k
		}
	}
	panic(fmt.Sprintf("fakekms: no key %q", arn))
}

// Rotate gives a key new material, as automatic rotation does, and returns its id.
func (s *Server) Rotate(arn string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byARN(arn).shared.add(false)
}

// Material is the newest material of a key.
func (s *Server) Material(arn string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byARN(arn).shared.newest()
}

// SetState sets the state of a key in the region of its ARN.
func (s *Server) SetState(arn, state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byARN(arn).state = state
}

// ScheduleDeletion lets a key be deleted after a while.
func (s *Server) ScheduleDeletion(arn string, after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.byARN(arn)
	k.state, k.deleted = PendingDeletion, time.Now().Add(after)
}

// Delete removes a key for good.
func (s *Server) Delete(arn string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.byARN(arn)
	delete(s.keys, k.region+"/"+k.id)
}

// SetPolicy replaces the key policy; with no statement everything is allowed.
func (s *Server) SetPolicy(arn string, p []Statement) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byARN(arn).policy = p
}

// canonical is the associated data of an encryption context.
func canonical(context map[string]string) []byte {
	var b []byte
	for _, k := range slices.Sorted(maps.Keys(context)) {
		b = fmt.Appendf(b, "%d:%s=%d:%s;", len(k), k, len(context[k]), context[k])
	}
	return b
}

// A blob has 152 bytes more than its plaintext, as measured at AWS: padding, the
// material, a nonce and the tag.
const (
	overhead = 152
	padding  = overhead - 32 - 12 - 16
)

func (k *key) seal(mat string, plaintext []byte, context map[string]string) ([]byte, error) {
	raw, err := hex.DecodeString(mat)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, 12)
	_, _ = rand.Read(nonce) // never fails (crypto/rand)
	blob := make([]byte, padding, overhead+len(plaintext))
	copy(blob, "\x01\x02\x02\x00fakekms/"+k.id)
	blob = append(append(blob, raw...), nonce...)
	return k.shared.aeads[mat].Seal(blob, nonce, plaintext, append(canonical(context), blob[:padding+32]...)), nil
}

// open returns the plaintext and its material. Another key's blob is wrongKey.
func (k *key) open(blob []byte, context map[string]string) (plaintext []byte, mat string, wrongKey, ok bool) {
	if len(blob) < overhead {
		return nil, "", false, false
	}
	mat = hex.EncodeToString(blob[padding : padding+32])
	a := k.shared.aeads[mat]
	if a == nil {
		return nil, "", strings.HasPrefix(string(blob), "\x01\x02\x02\x00fakekms/"), false
	}
	plaintext, err := a.Open(nil, blob[padding+32:padding+44], blob[padding+44:], append(canonical(context), blob[:padding+32]...))
	return plaintext, mat, false, err == nil
}
