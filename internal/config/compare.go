package config

import (
	"fmt"
	"maps"
	"time"

	"kms-plugin.io/pkg/keys"
)

// Compare finds what only the step from one file to the next shows, as `config
// check --previous OLD` reports it. The running daemon has guards of its own,
// with more knowledge (package custody).
//
//   - a key leaves only after it was retired
//   - a name keeps standing for the same KEK, and keeps its encryption context
//   - a generation never falls
//   - a key that starts to write was readable before, in the old file, or
//     activates at least rotation.readableFor from now
//   - a retired key that writes again has a higher generation; whether a key
//     that only reads ever wrote, two files cannot tell: the journal of each
//     instance does
func Compare(old, now *Config) Problems {
	k := &checker{c: now}
	if old.ClusterID != now.ClusterID {
		k.bad("clusterID", fmt.Sprintf("put %q back: everything stored is bound to it", old.ClusterID), "it was %q", old.ClusterID)
	}
	after := map[string]int{}
	for i, key := range now.Keys {
		after[key.Name] = i
	}
	for _, was := range old.Keys {
		if i, still := after[was.Name]; still {
			k.kept(fmt.Sprintf("keys[%d]", i), was, now.Keys[i])
		} else {
			k.dropped(was)
		}
	}
	before := map[string]bool{}
	for _, was := range old.Keys {
		before[was.Name] = true
	}
	for i, key := range now.Keys {
		if path := fmt.Sprintf("keys[%d]", i); !before[key.Name] && key.Role == keys.RoleWrite && time.Until(key.ActivateAt) < now.Rotation.ReadableFor {
			k.bad(path+".role", fmt.Sprintf("give it role: read on every node first, or activateAt: %s or later", time.Now().Add(now.Rotation.ReadableFor).UTC().Format(time.RFC3339)),
				"key %q would write before every instance can read it", key.Name)
		}
	}
	k.restarts(old)
	return k.out
}

func (k *checker) dropped(was Key) {
	for i, key := range k.c.Keys {
		if key.SameKEK(was) {
			k.bad(fmt.Sprintf("keys[%d].name", i), fmt.Sprintf("keep the name %q", was.Name),
				"key %q was renamed to %q: key_id changes and everything is encrypted again", was.Name, key.Name)
			k.out[len(k.out)-1].Note = true
			return
		}
	}
	if was.Role != keys.RoleRetired {
		k.bad("keys", fmt.Sprintf("put key %q back with role: retired, and drop it when kms_plugin_retired_key_opens_total has not moved for 24 h", was.Name),
			"key %q (role %s) is gone: what it wrapped could not be opened any more", was.Name, was.Role)
	}
}

func (k *checker) kept(path string, was, is Key) {
	if !was.SameKEK(is) {
		k.bad(path, "add the other KEK as a key with a name of its own", "key %q stood for %s and now for %s", is.Name, was.Target(), is.Target())
		return
	}
	if was.AWSKMS != nil && is.AWSKMS != nil && !maps.Equal(was.AWSKMS.EncryptionContext, is.AWSKMS.EncryptionContext) {
		k.bad(path+".awskms.encryptionContext", "keep this key as it was and add another entry with the same ARN and the new context",
			"it changed: what was wrapped under the old one could not be opened any more")
	}
	if is.Generation < was.Generation {
		k.bad(path+".generation", fmt.Sprintf("write generation: %d", was.Generation), "it was %d and must not fall", was.Generation)
	}
	if is.Role == keys.RoleWrite && was.Role == keys.RoleRetired && is.Generation == was.Generation {
		k.bad(path+".generation", fmt.Sprintf("write generation: %d", was.Generation+1), "key %q was retired and would write again under a key_id that was used before", is.Name)
	}
}

// RestartHint is the remedy for a change that a reload does not make.
const RestartHint = "restart kms-plugin for it"

// restarts notes what a reload does not change.
func (k *checker) restarts(old *Config) {
	for _, r := range []struct {
		path string
		same bool
	}{
		{"socket", old.Socket.Path == k.c.Socket.Path && fmt.Sprint(old.Socket.AllowedUIDs) == fmt.Sprint(k.c.Socket.AllowedUIDs)},
		{"stateDir", old.StateDir == k.c.StateDir},
		{"listenAddress", old.ListenAddress == k.c.ListenAddress},
		{"audit", old.Audit == k.c.Audit},
		{"hardening", fmt.Sprint(old.Hardening) == fmt.Sprint(k.c.Hardening)},
		{"logLevel", old.LogLevel == k.c.LogLevel},
	} {
		if !r.same {
			k.bad(r.path, RestartHint, "it changed, and a reload does not change it")
			k.out[len(k.out)-1].Note = true
		}
	}
}
