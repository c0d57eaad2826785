package envelope_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
)

const awsIdentity = "awskms:aws:eu-west-1:111122223333:1234abcd-12ab-34cd-56ef-1234567890ab"

// Headers whose encoding is fixed for ever. Lines are only added to the file.
func goldenHeaders() map[string]*envelope.Header {
	blob := bytes.Repeat([]byte{0xab}, 189)
	base := envelope.Header{
		Suite: envelope.SuiteXAES, Type: keys.BlobLocalKEK, Identity: awsIdentity,
		Material: strings.Repeat("0123456789abcdef", 4), Generation: 1,
		Cluster: envelope.ClusterDigest("prod-eu-1"), Context: keys.Context{"team": "a"}.Digest(),
		LocalKEK: [32]byte{1, 2, 3}, Wrapped: blob,
	}
	lab := base
	lab.Identity, lab.Material, lab.Generation = "localfile:00112233445566778899aabbccddeeff", "k00112233445566778899aabbccddeeff", 7
	lab.Context = keys.Context(nil).Digest()
	two := base
	two.Recipients = []envelope.Recipient{{Identity: "awskms:aws:us-east-1:111122223333:1234abcd-12ab-34cd-56ef-1234567890ab", Context: [16]byte{9}, Wrapped: blob}}
	three := two
	three.Recipients = append(slices.Clip(two.Recipients),
		envelope.Recipient{Identity: "awskms:aws::444455556666:mrk-1234567890abcdef1234567890abcdef", Context: keys.Context{"team": "a"}.Digest(), Wrapped: blob})
	full := three
	full.Recipients = append(slices.Clip(three.Recipients),
		envelope.Recipient{Identity: "localfile:00112233445566778899aabbccddeeff", Context: keys.Context(nil).Digest(), Wrapped: blob[:71]},
		envelope.Recipient{Identity: "awskms:aws-us-gov:us-gov-west-1:777788889999:1234abcd-12ab-34cd-56ef-1234567890ab", Wrapped: blob})
	direct := base
	direct.Suite, direct.Type, direct.LocalKEK, direct.Wrapped = envelope.SuiteNone, keys.BlobSeed, [32]byte{}, nil
	aes := base
	aes.Suite = envelope.SuiteAES
	bare := direct
	bare.Material = ""
	return map[string]*envelope.Header{"v1-aws": &base, "v1-localfile": &lab, "v1-two-recipients": &two, "v1-direct": &direct, "v1-no-material": &bare,
		"v1-three-recipients": &three, "v1-five-recipients": &full, "v1-aes": &aes}
}

func readGolden(t *testing.T) map[string][]byte {
	t.Helper()
	f, err := os.Open("testdata/headers.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string][]byte{}
	for s := bufio.NewScanner(f); s.Scan(); {
		name, h, ok := strings.Cut(s.Text(), " ")
		raw, err := hex.DecodeString(h)
		if !ok || err != nil {
			t.Fatalf("line %q: %v", s.Text(), err)
		}
		out[name] = raw
	}
	return out
}

func TestGoldenHeaders(t *testing.T) {
	golden := readGolden(t)
	for name, h := range goldenHeaders() {
		got, err := h.Marshal()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want, ok := golden[name]
		if !ok {
			t.Errorf("%s is not in testdata/headers.txt; add the line:\n%s %x", name, name, got)
			continue
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: stored data would no longer open: encoding is\n%x, want\n%x", name, got, want)
		}
		back, err := envelope.Parse(want)
		if err != nil {
			t.Fatalf("%s: Parse: %v", name, err)
		}
		if d := cmp.Diff(h, back); d != "" {
			t.Errorf("%s: Parse(Marshal) differs:\n%s", name, d)
		}
	}
	if len(golden) < 7 {
		t.Errorf("golden file has %d vectors, it must only grow", len(golden))
	}
}

// One AWS KEK must cost less than 400 bytes of annotation in every object.
func TestAnnotationSize(t *testing.T) {
	h := goldenHeaders()["v1-aws"]
	h.Identity = strings.Replace(awsIdentity, "eu-west-1", "ap-southeast-1", 1)
	raw, err := h.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(raw) + len(envelope.AnnotationKey); n >= 400 {
		t.Errorf("annotation with one AWS KEK has %d bytes, want less than 400", n)
	}
	// And each co-recipient in AWS about 280 more: docs/design/0002 has the numbers.
	for name, limit := range map[string]int{"v1-two-recipients": 670, "v1-three-recipients": 950, "v1-five-recipients": 1400} {
		raw, err := goldenHeaders()[name].Marshal()
		if err != nil {
			t.Fatal(err)
		}
		n := len(raw) + len(envelope.AnnotationKey)
		t.Logf("%s: %d bytes of annotation", name, n)
		if n > limit {
			t.Errorf("annotation of %s has %d bytes, want at most %d", name, n, limit)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := readGolden(t)
	aws, direct := good["v1-aws"], good["v1-direct"]
	change := func(b []byte, at int, to byte) []byte {
		c := bytes.Clone(b)
		c[at] = to
		return c
	}
	materialAt := 3 + 1 + len(awsIdentity)
	hexAsText := bytes.Join([][]byte{aws[:materialAt], {0, 64}, []byte(strings.Repeat("0123456789abcdef", 4)), aws[materialAt+33:]}, nil)
	twice := goldenHeaders()["v1-two-recipients"]
	twice.Recipients[0].Identity = twice.Identity
	for name, tc := range map[string]struct {
		in   []byte
		want string
	}{
		"empty":               {nil, "cut short"},
		"future format":       {change(aws, 0, 2), "format 2 is not known"},
		"format zero":         {change(aws, 0, 0), "format 0 is not known"},
		"unknown suite":       {change(aws, 1, 9), "suite 9"},
		"probe as header":     {change(aws, 2, 3), "blob type 3 holds no DEK seed"},
		"unknown type":        {change(aws, 2, 77), "blob type 77"},
		"local as direct":     {change(aws, 2, 2), "suite 1 with a seed"},
		"direct as local":     {change(direct, 2, 1), "suite 0"},
		"trailing byte":       {append(bytes.Clone(aws), 0), "1 bytes behind"},
		"material not canon":  {hexAsText, "one encoding"},
		"material encoding":   {change(aws, materialAt, 5), "unknown encoding"},
		"empty identity":      {change(aws, 3, 0), "identity out of range"},
		"long identity":       {change(aws, 3, 255), "identity out of range"},
		"control in identity": {change(aws, 4, 7), "identity out of range"},
		"too long":            {make([]byte, envelope.MaxHeader+1), "at most"},
		"many recipients":     {change(aws, len(aws)-1, 5), "5 recipients"},
		"recipient missing":   {change(aws, len(aws)-1, 1), "cut short"},
	} {
		h, err := envelope.Parse(tc.in)
		if h != nil || !errors.Is(err, keys.ErrMalformed) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Parse = %v, %v; want ErrMalformed with %q", name, h, err, tc.want)
		}
	}
	if _, err := twice.Marshal(); err == nil || !strings.Contains(err.Error(), "recipient twice") {
		t.Errorf("Marshal with the KEK as its own recipient = %v, want a refusal", err)
	}
	for n := range aws {
		if _, err := envelope.Parse(aws[:n]); !errors.Is(err, keys.ErrMalformed) {
			t.Fatalf("Parse of the first %d bytes = %v, want ErrMalformed", n, err)
		}
	}
}

func TestMarshalRefuses(t *testing.T) {
	for name, change := range map[string]func(*envelope.Header){
		"no generation":  func(h *envelope.Header) { h.Generation = 0 },
		"no blob":        func(h *envelope.Header) { h.Wrapped = nil },
		"blob too long":  func(h *envelope.Header) { h.Wrapped = make([]byte, keys.MaxBlob+1) },
		"long material":  func(h *envelope.Header) { h.Material = strings.Repeat("x", keys.MaxMaterial+1) },
		"odd material":   func(h *envelope.Header) { h.Material = "a\nb" },
		"identity empty": func(h *envelope.Header) { h.Identity = "" },
	} {
		h := goldenHeaders()["v1-aws"]
		change(h)
		if b, err := h.Marshal(); err == nil {
			t.Errorf("%s: Marshal = %x, want an error", name, b)
		}
	}
}

func TestUnframe(t *testing.T) {
	body := []byte("sealed")
	f := envelope.Frame(keys.BlobLocalKEK, body)
	got, err := envelope.Unframe(keys.BlobLocalKEK, f)
	if err != nil || !bytes.Equal(got, body) {
		t.Fatalf("Unframe(Frame) = %q, %v", got, err)
	}
	for name, tc := range map[string]struct {
		t    keys.BlobType
		in   []byte
		want string
	}{
		"empty":      {keys.BlobLocalKEK, nil, "only 0 bytes"},
		"one byte":   {keys.BlobLocalKEK, []byte{1}, "only 1 bytes"},
		"frame only": {keys.BlobLocalKEK, []byte{1, 1}, "only 2 bytes"},
		"format":     {keys.BlobLocalKEK, []byte{2, 1, 0}, "format 2"},
		"other type": {keys.BlobSeed, f, "blob type 1 under a header of blob type 2"},
		"too long":   {keys.BlobLocalKEK, make([]byte, envelope.MaxCiphertext+1), "at most 1024"},
	} {
		if _, err := envelope.Unframe(tc.t, tc.in); !errors.Is(err, keys.ErrMalformed) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Unframe = %v, want ErrMalformed with %q", name, err, tc.want)
		}
	}
}

// Every blob type at every door: only its own opens.
func TestPlainTypes(t *testing.T) {
	types := map[keys.BlobType]int{keys.BlobLocalKEK: 32, keys.BlobSeed: 64, keys.BlobProbe: 32}
	for made, n := range types {
		b := envelope.MarshalPlain(made, bytes.Repeat([]byte{7}, n))
		for door := range types {
			got, err := envelope.ParsePlain(door, b)
			if made == door && (err != nil || len(got) != n) {
				t.Errorf("%v at its own door: %d bytes, %v", made, len(got), err)
			}
			if made != door && !errors.Is(err, keys.ErrMalformed) {
				t.Errorf("%v at the door of %v: %v, want ErrMalformed", made, door, err)
			}
		}
	}
	for name, b := range map[string]keys.Secret{
		"bare key":   bytes.Repeat([]byte{7}, 32),
		"empty":      nil,
		"short":      envelope.MarshalPlain(keys.BlobLocalKEK, make([]byte, 31)),
		"long":       envelope.MarshalPlain(keys.BlobLocalKEK, make([]byte, 33)),
		"other name": append(keys.Secret("KMSQ\x01"), make([]byte, 32)...),
	} {
		if _, err := envelope.ParsePlain(keys.BlobLocalKEK, b); !errors.Is(err, keys.ErrMalformed) {
			t.Errorf("%s: ParsePlain = %v, want ErrMalformed", name, err)
		}
	}
}

func TestDigestCoversEveryByte(t *testing.T) {
	raw := readGolden(t)["v1-two-recipients"]
	want := envelope.Digest(raw)
	for i := range raw {
		c := bytes.Clone(raw)
		c[i] ^= 1
		if envelope.Digest(c) == want {
			t.Fatalf("byte %d is not covered by the digest", i)
		}
	}
}

// What Parse accepts has exactly one encoding.
func FuzzParse(f *testing.F) {
	for _, h := range goldenHeaders() {
		raw, err := h.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := envelope.Parse(b)
		if err != nil {
			if !errors.Is(err, keys.ErrMalformed) {
				t.Fatalf("Parse(%x) = %v, want ErrMalformed", b, err)
			}
			return
		}
		again, err := h.Marshal()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("Marshal(Parse(%x)) = %x, %v", b, again, err)
		}
	})
}
