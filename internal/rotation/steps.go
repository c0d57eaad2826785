package rotation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/pkg/keys"
)

// steps builds each step from the facts.
type steps struct {
	*Facts
	flags Flags
}

// nothingToUndo is of steps that only wait or look.
const nothingToUndo = "nothing to undo: it changes nothing"

// pluginsMiss asks something of every plugin; a plugin that nobody asked has not got it.
func (s steps) pluginsMiss(lacks func(p fleet.Plugin) string) (out []string) {
	seen := map[string]bool{}
	for _, p := range s.Fleet.Plugins {
		if seen[p.Address] {
			out = append(out, fmt.Sprintf("plugin %s is given twice", p.Address))
		}
		seen[p.Address] = true
	}
	if n := len(s.Fleet.Plugins) - len(s.Fleet.Servers); n > 0 {
		out = append(out, fmt.Sprintf("%d plugins more are given than API servers: --servers of all, or each plugin once", n))
	}
	if n := len(s.Fleet.Servers) - len(s.Fleet.Plugins); n > 0 {
		out = append(out, fmt.Sprintf("%d of %d plugins are not given: --plugins HOST:PORT,… (listenAddress of each)", n, len(s.Fleet.Servers)))
	}
	for _, p := range s.Fleet.Plugins {
		text := p.Error
		if text == "" {
			text = lacks(p)
		}
		if text != "" {
			out = append(out, fmt.Sprintf("plugin %s: %s", p.Address, text))
		}
	}
	return out
}

func (s steps) healthy() Step {
	st := Step{Name: "everything is healthy, and nobody is overlooked", Check: s.flags.plan(), Undo: "nothing was done yet"}
	for _, x := range s.Fleet.Servers {
		switch {
		case x.Error != "":
			st.Missing = append(st.Missing, fmt.Sprintf("API server %s: %s", x.Name, x.Error))
		case x.Health != "ok":
			st.Missing = append(st.Missing, fmt.Sprintf("API server %s is not content with its plugin: %s", x.Name, oneLine(x.Health)))
		}
	}
	if text := unlike(s.Fleet.Servers, s.encryptions); text != "" {
		st.Missing = append(st.Missing, text)
	}
	unasked := s.Fleet.Unasked()
	for _, p := range unasked.Problems {
		st.Missing = append(st.Missing, p.String())
	}
	if text := unasked.UnknownText(); text != "" && s.flags.AllowUnknown == "" {
		st.Missing = append(st.Missing, text)
	} else if text != "" {
		st.Found = append(st.Found, text)
	}
	st.Missing = append(st.Missing, s.pluginsMiss(func(p fleet.Plugin) string {
		switch {
		case p.DiskDiffers:
			return "its configuration on disk is not the one in force; its log says why"
		case p.ConfigHash != s.ConfigHash:
			return "it runs another configuration than --plugin-config: bring the same file to every node"
		case !p.Ready:
			return "it is not ready; its log and kmsctl status say why"
		}
		return illKeys(p)
	})...)
	if s.Broken > 0 {
		st.Missing = append(st.Missing, fmt.Sprintf("%d values in etcd cannot be read: kmsctl coverage names them", s.Broken))
	}
	if len(st.Missing) > 0 {
		st.Do = []string{"put right what is named, first"}
	}
	return st
}

func oneLine(s string) string {
	first, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return first
}

func (s steps) read() Step {
	return Step{Name: fmt.Sprintf("every plugin can read key %q, before any writes under it", s.Target), Found: s.untried(),
		Missing: s.pluginsMiss(func(p fleet.Plugin) string {
			for _, k := range p.Keys {
				if k.Name == s.Target && k.Role != string(keys.RoleRetired) {
					return ill(k)
				}
			}
			return "it does not have the key"
		}),
		Do: []string{fmt.Sprintf("add key %q with role: read to the configuration, the same file on every node; wait ten minutes", s.Target),
			"kms-plugin config check --previous OLD NEW, on one node"},
		Check: s.flags.plan(), Undo: "take it out again: nothing is stored under it"}
}

func (s steps) write() Step {
	return Step{Name: fmt.Sprintf("every plugin writes under key %q", s.Target),
		Missing: s.pluginsMiss(s.writesOther),
		Do: []string{fmt.Sprintf("give key %q role: write and the same activateAt, ten minutes or more from now, on every node; leave the others as they are", s.Target),
			"kms-plugin config check --previous OLD NEW, on one node"},
		Check: "kmsctl status --socket /run/kms-plugin/kms.sock, on each node",
		Undo:  "before activateAt: role: read again. After it: the old key with role: write, a higher generation and a later activateAt; all that was written stays readable"}
}

// writesOther tells what a plugin reports instead of the target.
func (s steps) writesOther(p fleet.Plugin) string {
	switch a := active(p); {
	case a != s.Target:
		return fmt.Sprintf("it writes under key %q", a)
	case s.KeyIDHash != "" && p.KeyIDHash != s.KeyIDHash:
		return "it writes under another key_id of the key: " + p.KeyIDHash
	}
	return ""
}

func (s steps) material() Step {
	st := Step{Name: "the KMS has new material, and every plugin writes under it", Missing: s.pluginsMiss(s.writesOther),
		Check: "kmsctl status --socket /run/kms-plugin/kms.sock, on each node",
		Undo:  "none, and none is needed: the KMS keeps the old material and opens with it"}
	if arn := s.arn(s.KEK); arn != "" {
		rotate := fmt.Sprintf("aws kms rotate-key-on-demand --region %s --key-id %s", strings.Split(arn, ":")[3], arn)
		if len(st.Missing) == 0 && len(s.Left) == 0 {
			st.Found = []string{"nothing is under older material. To rotate now: " + rotate}
		}
		st.Do = []string{rotate + "   # or wait for the automatic rotation", "wait until the plugins have seen it: rotation.observations and settleTime"}
	}
	return st
}

func (s steps) arn(target string) string {
	if _, arn, ok := strings.Cut(target, "awskms "); ok && len(strings.Split(arn, ":")) == 6 {
		return arn
	}
	return ""
}

// fresh is how old what an API server was told may be: it asks once a minute, within
// three seconds.
const fresh = 90 * time.Second

func (s steps) converge() Step {
	st := Step{Name: "every API server writes under the new key_id", Do: []string{s.flags.run(s.to()) + "   # waits for it"},
		Check: s.flags.canary(), Undo: "as in the step before"}
	if s.KeyIDHash == "" {
		st.Missing = []string{"which key_id that is, no plugin tells yet"}
	}
	for _, x := range s.Fleet.Servers {
		switch {
		case s.KeyIDHash == "":
		case x.Error != "":
			st.Missing = append(st.Missing, fmt.Sprintf("API server %s: %s", x.Name, x.Error))
		case x.Seen.Hash == "":
			st.Missing = append(st.Missing, fmt.Sprintf("API server %s has not asked a plugin of provider %q since its start", x.Name, s.Provider))
		case x.Seen.Hash != s.KeyIDHash:
			st.Missing = append(st.Missing, fmt.Sprintf("API server %s was last told key_id %s", x.Name, x.Seen.Hash))
		case s.Fleet.At.Sub(x.Seen.At) > fresh:
			st.Missing = append(st.Missing, fmt.Sprintf("API server %s was last told it at %s, which is over %s ago: it asks no more, or a clock is wrong", x.Name, x.Seen.At.Format("2006-01-02 15:04:05Z"), fresh))
		case x.Wrote.Hash != "" && x.Wrote.Hash != s.KeyIDHash:
			st.Missing = append(st.Missing, fmt.Sprintf("API server %s last wrote under key_id %s, at %s", x.Name, x.Wrote.Hash, x.Wrote.At.Format("2006-01-02 15:04:05Z")))
		}
	}
	return st
}

// to names the target; of new material only the key_id tells, and not before a
// plugin has it.
func (s steps) to() string {
	switch {
	case (s.Material && len(s.Left) > 0 || s.several || s.settled()) && s.KeyIDHash != "":
		return s.KeyIDHash
	case s.Material:
		return "KEY_ID"
	}
	return s.Target
}

// settled: nothing is stored under the other keys of the ring, and none writes. Then
// the name of the target tells as little as with one key alone.
func (s steps) settled() bool {
	return !slices.ContainsFunc(s.Old, func(o OldKey) bool { return o.Role == string(keys.RoleWrite) || o.Objects > 0 })
}

// proof is what all must be on.
func (s steps) proof() string {
	if s.KeyIDHash != "" {
		return s.KeyIDHash
	}
	return s.Target
}

func (s steps) rewrite() Step {
	st := Step{Name: "everything is written again, and proved in etcd", Do: []string{s.flags.run(s.to())},
		Check: s.flags.coverage(s.proof()),
		Undo:  "none is needed: whatever is stored opens under its own key. To go back, rotate to the old key"}
	for _, l := range s.Left {
		st.Missing = append(st.Missing, l+" are not under it")
	}
	if s.KeyIDHash == "" && len(st.Missing) == 0 {
		st.Missing = []string{"the key_id to be under is not known yet"}
	}
	return st
}

func (s steps) cold() Step {
	return Step{Name: "a cold read: what is stored opens without anything in memory", byHand: true,
		Do:    []string{"restart one API server and its plugin", s.flags.canary()},
		Check: "kubectl get secrets -A through that API server", Undo: "none is needed"}
}

func (s steps) keepMaterial() Step {
	return Step{Name: "nothing goes: old material lives and dies with its key", byHand: true, Check: s.flags.inventory(), Undo: nothingToUndo,
		Found: []string{"the KMS keeps it as long as the key; backups from before need it. Deleting the key would lose everything"}}
}
