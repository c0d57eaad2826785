package encryptionconfig

import (
	"crypto/sha256"
	"fmt"
	"slices"
)

func hashOf(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// Hash is of the bytes of the file, as in kube-apiserver's metric last_config_info.
func (c *Config) Hash() string { return c.hash }

// Same tells whether both write and read everything alike, though a KMS plugin may
// listen elsewhere. Keys in them are not compared, only their names.
func (c *Config) Same(o *Config) bool {
	return slices.EqualFunc(c.order, o.order, func(a, b *Rule) bool {
		return a.Pattern == b.Pattern && slices.Equal(a.Providers, b.Providers)
	}) && slices.EqualFunc(c.kms, o.kms, func(a, b KMS) bool { return a.Name == b.Name && a.APIVersion == b.APIVersion })
}
