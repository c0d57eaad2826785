package rotation

import (
	"fmt"
	"strings"

	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/pkg/keys"
)

// ends are the steps for each old key of the ring.
func (s steps) ends() (out []Step) {
	for _, o := range s.Old {
		if o.Same != "" {
			out = append(out, s.retired(o), s.retention(o), s.drop(o))
			continue
		}
		out = append(out, s.retired(o), s.retention(o), s.disable(o), s.remove(o))
	}
	return out
}

func (s steps) retired(o OldKey) Step {
	st := Step{Name: fmt.Sprintf("key %q is retired on every node", o.Name), Missing: s.pluginsMiss(func(p fleet.Plugin) string {
		for _, k := range p.Keys {
			if k.Name == o.Name && k.Role != string(keys.RoleRetired) {
				return fmt.Sprintf("it has role %s there", k.Role)
			}
		}
		return ""
	}), Do: []string{fmt.Sprintf("give key %q role: retired on every node: it still opens, and each opening is counted", o.Name)},
		Check: "kms_plugin_retired_key_opens_total stays as it is", Undo: "role: read again"}
	if o.Objects > 0 {
		st.Missing = append(st.Missing, fmt.Sprintf("%d objects are still under it", o.Objects))
	}
	return st
}

func (s steps) retention(o OldKey) Step {
	st := Step{Name: fmt.Sprintf("no backup that is kept needs key %q", o.Name), Do: []string{"keep the key until the last backup that needs it has expired"},
		Check: s.flags.inventory(), Undo: nothingToUndo}
	if s.Newest == nil {
		st.Missing = []string{"no snapshot was given: --snapshots DIR"}
	}
	for _, k := range s.Needed {
		if label, _, err := keys.SplitKeyID(k.KeyID); err != nil || label != o.Name && k.Name != o.Name {
			continue
		}
		text := fmt.Sprintf("%s of %s needs it", k.LastFile, k.LastTime.Format("2006-01-02"))
		if k.MayGo != nil {
			text += ", and may go on " + k.MayGo.Format("2006-01-02")
		}
		st.Missing = append(st.Missing, text)
	}
	return st
}

// drop ends an entry whose KEK goes on under another name.
func (s steps) drop(o OldKey) Step {
	return Step{Name: fmt.Sprintf("key %q leaves the configuration, and nothing is disabled: it is the same KEK as %q", o.Name, o.Same), byHand: true,
		Do: []string{fmt.Sprintf("take key %q out of the configuration on every node", o.Name)}, Check: s.flags.plan(), Undo: "put it back"}
}

func (s steps) disable(o OldKey) Step {
	st := Step{Name: fmt.Sprintf("key %q is disabled, and watched", o.Name), byHand: true,
		Do:    []string{s.flags.retire(o.Name) + "   # exit code 0, or it may not go"},
		Check: "no kms_plugin_rpc_duration_seconds_count{method=\"Decrypt\"} with a code other than OK, for as long as you can", Undo: "enable it again"}
	if arn := s.arn(o.KEK); arn != "" {
		region := strings.Split(arn, ":")[3]
		st.Do = append(st.Do, fmt.Sprintf("aws kms disable-key --region %s --key-id %s", region, arn))
		st.Undo = fmt.Sprintf("aws kms enable-key --region %s --key-id %s", region, arn)
	}
	return st
}

func (s steps) remove(o OldKey) Step {
	st := Step{Name: fmt.Sprintf("key %q is deleted, with the longest waiting time", o.Name), byHand: true, NoReturn: true,
		Check: "kmsctl inventory of every backup anywhere, once more", Undo: "within the waiting time: cancel the deletion. After it: none"}
	if arn := s.arn(o.KEK); arn != "" {
		region := strings.Split(arn, ":")[3]
		st.Do = []string{fmt.Sprintf("aws kms schedule-key-deletion --region %s --key-id %s --pending-window-in-days 30", region, arn)}
		st.Undo = fmt.Sprintf("within 30 days: aws kms cancel-key-deletion --region %s --key-id %s, then enable-key. After that: none", region, arn)
	}
	return st
}
