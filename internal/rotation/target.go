package rotation

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/metrics"
	"kms-plugin.io/pkg/keys"
)

// hashPrefix begins a key_id as kube-apiserver's metrics have it.
const hashPrefix = "sha256:"

// IsExact tells a target that names one key_id beyond doubt. A name of the ring does
// not: all its materials and generations have that name.
func IsExact(target string) bool {
	_, _, err := keys.SplitKeyID(target)
	return err == nil || strings.HasPrefix(target, hashPrefix)
}

// reached compares with a key_id, its hash, or the name it begins with: the proof
// that the name is right comes from the plugin's configuration at the end.
func (o Options) reached(keyID string) bool {
	return keyID == o.Target || strings.HasPrefix(keyID, o.Target+":") || metrics.KeyIDHash(keyID) == o.Target
}

// byName tells whether the target is only a name.
func (o Options) byName() bool { return o.Target != "" && o.Config != nil && !IsExact(o.Target) }

// reported is the key_id that all plugins report under the name, if any are given.
func (o Options) reported(ctx context.Context) (hash, lag string) {
	if !o.byName() || len(o.Plugins) == 0 {
		return "", ""
	}
	for _, p := range fleet.Plugins(ctx, o.Plugins) {
		switch {
		case p.Error != "":
			return "", fmt.Sprintf("plugin %s: %s", p.Address, p.Error)
		case active(p) != o.Target:
			return "", fmt.Sprintf("plugin %s writes under key %q", p.Address, active(p))
		case hash != "" && hash != p.KeyIDHash:
			return "", fmt.Sprintf("the plugins report several key_ids of key %q: %s, %s", o.Target, hash, p.KeyIDHash)
		}
		hash = p.KeyIDHash
	}
	return hash, ""
}

// tellsEnough refuses a name under which an old key_id could be taken for the new one:
// a run that waits for a name is content with what has it.
func (o Options) tellsEnough(ctx context.Context) error {
	if !o.byName() {
		return nil
	}
	if !slices.Contains(o.Names.Known(), o.Target) {
		return &Error{"plan", fmt.Sprintf("there is no key %q in the plugins' configuration, which has %s", o.Target, strings.Join(o.Names.Known(), ", ")), "kmsctl rotate plan prints what to give as --to"}
	}
	r, err := coverage.Scan(ctx, o.Source, coverage.Options{Prefix: o.Prefix, Encryption: o.Encryption, Names: o.Names, Progress: o.reading(Reading)})
	if err != nil {
		return err
	}
	under := map[string][]string{} // key_ids by name, with how many objects
	for _, k := range r.Keys {
		if label, _, err := keys.SplitKeyID(k.KeyID); err == nil {
			under[label] = append(under[label], fmt.Sprintf("%s (%d objects)", k.KeyID, k.Objects))
		}
	}
	const remedy = "--to KEY_ID, or its sha256:… (kmsctl status and kmsctl rotate plan print them)"
	mine := under[o.Target]
	switch {
	case len(mine) > 1 && len(o.Plugins) == 0:
		return &Error{"plan", fmt.Sprintf("key %q has stored under several key_ids: %s; its name does not tell which is meant", o.Target, strings.Join(mine, ", ")), remedy + ", or ask the plugins for it: --plugins HOST:PORT,…"}
	case len(mine) > 0 && !o.comesFrom(under):
		return &Error{"plan", fmt.Sprintf("everything was under key %q before, as %s: its name does not tell whether that is the key_id you wait for", o.Target, strings.Join(mine, ", ")), remedy}
	case len(mine) == 1 && len(under) == 1:
		// As after a run that was killed in its proof, or beside a write key that was
		// never used: nothing here tells the two apart.
		o.Say("plan: everything is under key %q already, as %s; if you wait for new material of it or a generation: %s", o.Target, strings.Join(mine, ", "), remedy)
	}
	return nil
}

// comesFrom tells whether another key of the ring could be the one that is left: one
// that has the role to write, or has something stored. Else only new material or a
// generation can be meant. A co-recipient of the target stays.
func (o Options) comesFrom(under map[string][]string) bool {
	var also []string
	for _, k := range o.Config.Keys {
		if k.Name == o.Target {
			also = k.AlsoWrapWith
		}
	}
	for _, k := range o.Config.Keys {
		if k.Name != o.Target && !slices.Contains(also, k.Name) && (k.Role == keys.RoleWrite || len(under[k.Name]) > 0) {
			return true
		}
	}
	return false
}
