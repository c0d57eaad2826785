package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"kms-plugin.io/internal/preflight"
)

// agree asks the plugin of every node what it runs with.
func (p *plane) agree(ctx context.Context) preflight.Result {
	if len(p.o.Plugins) == 0 {
		return preflight.Skip("no --plugins")
	}
	var away []string
	for _, a := range p.o.Plugins {
		got, err := p.o.Scrape(ctx, a)
		if err != nil {
			away = append(away, fmt.Sprintf("%s (%v)", a, err))
			continue
		}
		p.plugins[a] = got
	}
	if r, bad := p.differ(); bad {
		return r
	}
	if len(away) > 0 {
		return preflight.Warn("--plugins HOST:PORT is the listenAddress of each; it is on loopback, so that ssh -L or a collector on the node is needed", "not reached: %s", strings.Join(away, "; "))
	}
	return preflight.Pass("one configuration and one key_id on all that were asked (%d)", len(p.plugins))
}

func (p *plane) differ() (preflight.Result, bool) {
	configs, ids := map[string][]string{}, map[string][]string{}
	for _, a := range p.o.Plugins {
		got := p.plugins[a]
		if got == nil {
			continue
		}
		switch {
		case got.DiskDiffers:
			return preflight.Fail("the log of that plugin says why: kms-plugin config check FILE", "%s serves with a configuration that is not the one on its disk", a), true
		case !got.Ready:
			return preflight.Fail("the log of that plugin says why: kms-plugin doctor", "%s is not ready: it could not seal a seed", a), true
		case p.hash != "" && got.ConfigHash != "" && got.ConfigHash != p.hash:
			return preflight.Fail("bring the same file to every node", "%s runs another configuration than %s (SHA-256 %s)", a, p.o.PluginConfig, short(p.hash)), true
		}
		configs[got.ConfigHash] = append(configs[got.ConfigHash], a)
		ids[got.KeyIDHash] = append(ids[got.KeyIDHash], a)
	}
	switch {
	case len(configs) > 1:
		return preflight.Fail("bring the same file to every node", "the plugins run different configurations: %s", groups(configs)), true
	case len(ids) > 1:
		return preflight.Fail("wait for the rotation to settle; if it does not, kms-plugin doctor on each node", "the plugins report different key_ids: %s", groups(ids)), true
	}
	return preflight.Result{}, false
}

func groups(by map[string][]string) string {
	var out []string
	for hash, who := range by {
		out = append(out, short(hash)+" on "+strings.Join(who, ", "))
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func short(hash string) string {
	hash = strings.TrimPrefix(hash, "sha256:")
	return firstOf(hash[:min(12, len(hash))], "none")
}

// know: in an outage an API server can read what its own plugin has met before,
// and nothing else.
func (p *plane) know(context.Context) preflight.Result {
	if len(p.plugins) < 2 {
		return preflight.Skip("fewer than two plugins answered")
	}
	var all []string
	for _, got := range p.plugins {
		if len(got.LocalKEKIDs) < got.LocalKEKs {
			return preflight.Skip("a plugin has more local KEKs than its metrics show")
		}
		all = append(all, got.LocalKEKIDs...)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	var strangers []string
	for _, a := range p.o.Plugins {
		got := p.plugins[a]
		if got == nil {
			continue
		}
		missing := 0
		for _, id := range all {
			if !slices.Contains(got.LocalKEKIDs, id) {
				missing++
			}
		}
		if missing > 0 {
			strangers = append(strangers, fmt.Sprintf("%s has not met %d of %d", a, missing, len(all)))
		}
	}
	if len(strangers) > 0 {
		return preflight.Warn("kmsctl canary, as a timer on every control-plane node; if that does not help, its kube-apiserver does not seal with it yet: restart that, then kmsctl canary", "local KEKs that are not known everywhere could not be opened there in an outage: %s", strings.Join(strangers, "; "))
	}
	return preflight.Pass("all %d local KEKs are known to all %d plugins", len(all), len(p.plugins))
}
