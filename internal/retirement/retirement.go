// Package retirement guards the end of a key: it collects evidence that nothing
// depends on it, or names what does. It disables nothing, and must not know how
// to. Every check that could not be made counts against it.
package retirement

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"kms-plugin.io/internal/canary"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/status"
)

// APIVersion of the JSON form. Fields are only ever added.
const APIVersion = "kms-plugin.io/retirement/v1"

// Options say where the evidence is.
type Options struct {
	Key         string   // name in the plugin's configuration
	Role        string   // it has there
	Target      string   // the cloud's name for it
	Replicas    []string // its names in other regions, each with a state of its own
	Coverage    coverage.Options
	Live        etcdstore.Source
	History     etcdstore.Source // what watches can replay
	Snapshots   []etcdstore.Source
	NoSnapshots bool // there are none, says the operator
	// AllowUnverified: a snapshot without a hash is not damaged, says the operator.
	AllowUnverified bool
	Canary          func(context.Context) *canary.Report
	Unasked         func(context.Context) fleet.Unasked // API servers beside those of Canary
	// AllowUnknown: there are no more API servers, says the operator.
	AllowUnknown bool
	APIServers   int
	Plugins      []string // listenAddress of each
	Scrape       func(ctx context.Context, address string) (*status.Plugin, error)
}

// Check is one of them.
type Check struct {
	Name   string   `json:"name"`
	OK     bool     `json:"ok"`
	Found  []string `json:"found"`            // evidence, or what stands against it
	Remedy string   `json:"remedy,omitempty"` // if not OK
}

// Evidence is what was found. The key may go only if all checks are OK.
type Evidence struct {
	APIVersion string    `json:"apiVersion"`
	Key        string    `json:"key"`
	Target     string    `json:"target"`
	Replicas   []string  `json:"replicas,omitempty"`
	At         time.Time `json:"at"`
	Checks     []Check   `json:"checks"`
	MayGo      bool      `json:"mayGo"`
}

// Gather makes every check; an error means that one could not be ended at all.
func Gather(ctx context.Context, o Options) (*Evidence, error) {
	e := &Evidence{APIVersion: APIVersion, Key: o.Key, Target: o.Target, Replicas: o.Replicas, At: time.Now().UTC().Truncate(time.Second)}
	e.add(role(o))
	e.add(plugins(ctx, o))
	e.add(apiServers(ctx, o))
	for _, f := range []func(context.Context, Options) (Check, error){now, past, backups} {
		c, err := f(ctx, o)
		if err != nil {
			return nil, err
		}
		e.add(c)
	}
	e.MayGo = !slices.ContainsFunc(e.Checks, func(c Check) bool { return !c.OK })
	return e, nil
}

func (e *Evidence) add(c Check) {
	if c.OK {
		c.Remedy = ""
	}
	e.Checks = append(e.Checks, c)
}

func role(o Options) Check {
	return Check{"role", o.Role == "retired", []string{fmt.Sprintf("key %q has role %s", o.Key, o.Role)},
		"give it role: retired on every node first: it still opens, writes nothing, and each opening is counted"}
}

// plugins must have it retired, in force, and have opened nothing under it.
func plugins(ctx context.Context, o Options) Check {
	c := Check{Name: "plugins", OK: len(o.Plugins) == o.APIServers && len(o.Plugins) > 0,
		Remedy: "put the same configuration in force on every node, restart each API server, and look again when none has opened anything under the key"}
	if !c.OK {
		c.Found = append(c.Found, fmt.Sprintf("%d plugins are given for %d API servers: --plugins HOST:PORT,… (listenAddress of each)", len(o.Plugins), o.APIServers))
	}
	for i, address := range o.Plugins {
		if slices.Contains(o.Plugins[:i], address) {
			c.OK = false
			c.Found = append(c.Found, fmt.Sprintf("plugin %s is given twice", address))
			continue
		}
		p, err := o.Scrape(ctx, address)
		bad := ""
		switch {
		case err != nil:
			bad = err.Error()
		case roleIn(p, o.Key) != "retired":
			bad = fmt.Sprintf("the key has role %q there", roleIn(p, o.Key))
		case p.DiskDiffers:
			bad = "its configuration on disk is not the one in force"
		case !p.Ready:
			bad = "it is not ready"
		case p.RetiredOpens[o.Key] > 0:
			bad = fmt.Sprintf("it opened %d seeds under the key since its start", p.RetiredOpens[o.Key])
		}
		if bad != "" {
			c.OK = false
			c.Found = append(c.Found, fmt.Sprintf("plugin %s: %s", address, bad))
			continue
		}
		c.Found = append(c.Found, fmt.Sprintf("plugin %s: the key is retired there, and has opened nothing since the start", address))
	}
	return c
}

func roleIn(p *status.Plugin, key string) string {
	for _, k := range p.Keys {
		if k.Name == key {
			return k.Role
		}
	}
	return "none"
}

// apiServers write now, and under another key.
func apiServers(ctx context.Context, o Options) Check {
	r := o.Canary(ctx)
	c := Check{Name: "API servers", OK: r.Passed() && len(r.Writes) > 0, Found: slices.Clone(r.Problems),
		Remedy: "kmsctl canary --etcd shows the same; bring all API servers to the new key first: kmsctl rotate run"}
	for _, w := range r.Writes {
		if strings.HasPrefix(w.KeyID, o.Key+":") {
			c.OK = false
			c.Found = append(c.Found, fmt.Sprintf("%s still writes under it: %s", w.Server, w.KeyID))
		} else if w.Written {
			c.Found = append(c.Found, fmt.Sprintf("%s writes under %s", w.Server, w.KeyID))
		}
	}
	unasked := o.Unasked(ctx)
	for _, p := range unasked.Problems {
		c.OK = false
		c.Found = append(c.Found, p.String())
	}
	if text := unasked.UnknownText(); text != "" {
		c.OK = c.OK && o.AllowUnknown
		c.Found = append(c.Found, text)
	}
	return c
}

// gate reads a source for anything under the key.
func gate(ctx context.Context, o Options, s etcdstore.Source) (*coverage.Report, []string, error) {
	// Not none-on: what another key of the configuration opens too is not lost.
	q, err := coverage.ParseRequirement("none-needs=" + o.Key)
	if err != nil {
		return nil, nil, err
	}
	co := o.Coverage
	co.Gates = []coverage.Requirement{q}
	r, err := coverage.Scan(ctx, s, co)
	if err != nil {
		return nil, nil, err
	}
	var lost []string
	for _, f := range r.Gates[0].Offenders {
		lost = append(lost, fmt.Sprintf("%s: %d %s, such as %s", f.Resource, f.Objects, f.What, strings.Join(f.Keys, ", ")))
	}
	return r, lost, nil
}

// nothing says what no value is. What another key opens by its header is not lost, but
// only a rehearsal shows that it opens.
func nothing(r *coverage.Report) string {
	if n := r.Gates[0].Spared; n > 0 {
		return fmt.Sprintf("needs it; %d are under it, and their co-recipients open them: kmsctl drill rehearses that, for a retired key is asked last", n)
	}
	return "is under it"
}

func now(ctx context.Context, o Options) (Check, error) {
	c := Check{Name: "etcd", Remedy: "these would be lost: kmsctl rotate run"}
	r, lost, err := gate(ctx, o, o.Live)
	if err != nil {
		return c, err
	}
	c.OK, c.Found = len(lost) == 0, lost
	if c.OK {
		c.Found = []string{fmt.Sprintf("none of %d values at revision %d %s", r.Totals.Total, r.Source.Revision, nothing(r))}
	}
	return c, nil
}

// past is what a watch that resumes would be sent: old values, as they were.
func past(ctx context.Context, o Options) (Check, error) {
	c := Check{Name: "history", Remedy: "wait until etcd has compacted them away (kube-apiserver asks for it every five minutes), then look again"}
	r, lost, err := gate(ctx, o, o.History)
	if err != nil {
		return c, err
	}
	c.OK, c.Found = len(lost) == 0, lost
	if c.OK {
		c.Found = []string{fmt.Sprintf("no watch can replay a value that would be lost: of revisions %d to %d none %s", r.Source.Compacted, r.Source.Revision, nothing(r))}
	}
	return c, nil
}

const unverified = "--allow-unverified answers for it; etcdctl snapshot save writes a hash"

func backups(ctx context.Context, o Options) (Check, error) {
	c := Check{Name: "backups", OK: true, Remedy: "keep the key as long as these are kept: kmsctl inventory tells until when"}
	if len(o.Snapshots) == 0 {
		c.OK, c.Remedy = o.NoSnapshots, "--snapshots DIR of all that are kept, or --no-snapshots if there are none"
		c.Found = []string{"no snapshot was given"}
		if c.OK {
			c.Found = []string{"there are none, by --no-snapshots"}
		}
		return c, nil
	}
	for _, s := range o.Snapshots {
		r, lost, err := gate(ctx, o, s)
		if err != nil {
			return c, err
		}
		if len(lost) > 0 {
			c.OK = false
			c.Found = append(c.Found, fmt.Sprintf("%s needs it: %s", r.Source.File, strings.Join(lost, "; ")))
			continue
		}
		what := fmt.Sprintf("%s of %s: no value %s", r.Source.File, r.Source.FileTime.Format("2006-01-02"), nothing(r))
		if !r.Source.Verified {
			c.OK = c.OK && o.AllowUnverified
			what += "; it has no hash to verify, so damage in it cannot be told (" + unverified + ")"
		}
		c.Found = append(c.Found, what)
	}
	return c, nil
}

// Print writes the evidence for people.
func (e *Evidence) Print(w io.Writer) error {
	var b strings.Builder
	for _, c := range e.Checks {
		mark := "ok  "
		if !c.OK {
			mark = "FAIL"
		}
		for _, f := range c.Found {
			fmt.Fprintf(&b, "%s  %s: %s\n", mark, c.Name, coverage.Printable(f))
		}
		if c.Remedy != "" {
			fmt.Fprintf(&b, "      %s\n", c.Remedy)
		}
	}
	if e.MayGo {
		fmt.Fprintf(&b, "key %q may be disabled. Disable it, and delete nothing yet: that can be undone.\n", e.Key)
		for _, l := range e.commands() {
			fmt.Fprintf(&b, "    %s\n", l)
		}
	} else {
		fmt.Fprintf(&b, "key %q may NOT go: something depends on it, or nobody knows\n", e.Key)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// commands are for the operator; the target stands in the plugin's configuration
// and was checked there.
func (e *Evidence) commands() []string {
	_, arn, _ := strings.Cut(e.Target, " ")
	if p := strings.Split(arn, ":"); len(p) == 6 && p[0] == "arn" {
		var do, undo []string
		for _, one := range append([]string{arn}, e.Replicas...) {
			if p = strings.Split(one, ":"); len(p) != 6 {
				continue // config check refuses it
			}
			region := p[3]
			do = append(do, fmt.Sprintf("aws kms disable-key --region %s --key-id %s", region, one))
			undo = append(undo, fmt.Sprintf("aws kms enable-key --region %s --key-id %s     # undo", region, one))
		}
		return append(do, undo...)
	}
	return []string{"move the key away from every node, and keep it: " + e.Target}
}
