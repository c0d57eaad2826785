// Package revocation judges whether a key that was taken away is out of reach: in every
// plugin, by what it says of itself, and in every API server, by when it was started.
// It must not know how either is asked. What could not be asked counts against it.
package revocation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/status"
)

// APIVersion of the JSON form. Fields are only ever added.
const APIVersion = "kms-plugin.io/revocation/v1"

// Options say what was taken away.
type Options struct {
	Keys  []string  // names in the plugin's configuration
	Since time.Time // when, zero if not known
	// NoServers: the API servers are not looked at.
	NoServers bool
	// Sockets are what Status on sockets of this node answered.
	Sockets []status.Report
}

// Check is what was found of one plugin and key, or of one API server.
type Check struct {
	Subject string `json:"subject"`
	Key     string `json:"key,omitempty"`
	OK      bool   `json:"ok"`
	Found   string `json:"found"`
	Remedy  string `json:"remedy,omitempty"` // if not OK
	// Of a plugin.
	Closed     *status.Closed `json:"closed,omitempty"`
	LastOpened *time.Time     `json:"lastOpened,omitempty"`
	// Of an API server.
	Started *time.Time `json:"started,omitempty"`
}

// Report is what was found. Proven: all checks are OK.
type Report struct {
	APIVersion string     `json:"apiVersion"`
	Keys       []string   `json:"keys"`
	Since      *time.Time `json:"since,omitempty"`
	At         time.Time  `json:"at"`
	Closed     *time.Time `json:"closed,omitempty"` // when the last plugin did, if all have
	NoServers  bool       `json:"noAPIServers,omitempty"`
	Checks     []Check    `json:"checks"`
	Proven     bool       `json:"proven"`
}

// Judge looks at what everybody said.
func Judge(s *fleet.State, o Options) *Report {
	r := &Report{APIVersion: APIVersion, Keys: o.Keys, At: s.At, NoServers: o.NoServers}
	if !o.Since.IsZero() {
		r.Since = &o.Since
	}
	for _, x := range o.Sockets {
		r.Checks = append(r.Checks, ofSocket(x))
	}
	closed, all := time.Time{}, len(s.Plugins) > 0
	for _, p := range s.Plugins {
		for _, c := range ofPlugin(p, o) {
			all = all && c.OK
			if c.Closed != nil && c.Closed.Since.After(closed) {
				closed = c.Closed.Since
			}
			r.Checks = append(r.Checks, c)
		}
	}
	if all && !closed.IsZero() {
		r.Closed = &closed
	}
	if !o.NoServers {
		r.servers(s)
	}
	r.Proven = len(r.Checks) > 0 && !slices.ContainsFunc(r.Checks, func(c Check) bool { return !c.OK })
	return r
}

// ofSocket: a plugin whose write key is closed answers Status with an error.
func ofSocket(x status.Report) Check {
	c := Check{Subject: "socket " + x.Socket, OK: !x.Healthy && strings.Contains(x.Error, "is closed"), Found: "Status answers: " + x.Error}
	if x.Error == "" {
		c.Found = "Status is ok, under key_id " + x.KeyID
	}
	if !c.OK {
		c.Remedy = "its write key is not closed: is it one of those that were taken away?"
	}
	return c
}

func ofPlugin(p fleet.Plugin, o Options) []Check {
	subject := "plugin " + p.Address
	if p.Error != "" {
		return []Check{{Subject: subject, Found: "it cannot be asked: " + p.Error,
			Remedy: "a plugin that does not run opens nothing, but that is not seen from here: look on its node, then leave it out"}}
	}
	var out []Check
	for _, name := range o.Keys {
		i := slices.IndexFunc(p.Keys, func(k status.Key) bool { return k.Name == name })
		if i < 0 {
			out = append(out, Check{Subject: subject, Key: name, Found: "no key of that name is in its configuration, and what it opens does not depend on names",
				Remedy: "is the name right? If the KEK has another name there, name that too; leave the plugin out if it has not got that KEK"})
			continue
		}
		c := ofKey(p.Keys[i], p.Plugin, o)
		c.Subject, c.Key = subject, name
		out = append(out, c)
	}
	return out
}

// ofKey is the state of one key in one plugin.
func ofKey(k status.Key, p *status.Plugin, o Options) Check {
	c := Check{Closed: k.Closed, LastOpened: k.LastOpened}
	switch other := stillOpens(k, p, o.Keys); {
	case k.Closed == nil && k.Unwrap == "degraded":
		c.Found, c.Remedy = "it still opens: its KMS does not answer well, and its timer runs"+bounds(p), "wait for the revocation bound, and look again"
	case k.Closed == nil:
		c.Found, c.Remedy = fmt.Sprintf("it opens: unwrap is %s%s", k.Unwrap, bounds(p)), "take the key away in every region and for this node's identity: docs/revocation.md"
	case k.LastOpened != nil && k.LastOpened.After(k.Closed.Since.Add(time.Second)):
		c.Found, c.Remedy = fmt.Sprintf("it closed at %s and opened a seed at %s", stamp(k.Closed.Since), stamp(*k.LastOpened)), "this is a defect, please report it; stop the plugin"
	case late(k, p, o.Since):
		c.Found, c.Remedy = fmt.Sprintf("it opened a seed at %s, later than the bound of %.0f s after %s", stamp(*k.LastOpened), p.Bounds[k.Closed.Class], stamp(o.Since)),
			"was the key taken away then, in all regions? If it was, this is a defect, please report it"
	case other != "":
		c.Found, c.Remedy = fmt.Sprintf("co-recipient %q opens what it sealed", other), fmt.Sprintf("take %s away too, and name it here", other)
	default:
		c.OK = true
		c.Found = fmt.Sprintf("it opens nothing since %s (%s)%s%s", stamp(k.Closed.Since), k.Closed.Class, lastOpened(k), inMemory(p))
	}
	return c
}

// stillOpens names a co-recipient that is neither closed nor one of those taken away.
func stillOpens(k status.Key, p *status.Plugin, taken []string) string {
	for _, r := range k.Recipients {
		i := slices.IndexFunc(p.Keys, func(o status.Key) bool { return o.Name == r })
		if i >= 0 && p.Keys[i].Closed == nil && !slices.Contains(taken, r) {
			return r
		}
	}
	return ""
}

func late(k status.Key, p *status.Plugin, since time.Time) bool {
	bound, known := p.Bounds[k.Closed.Class]
	return known && !since.IsZero() && k.LastOpened != nil && k.LastOpened.After(since.Add(time.Duration(bound*float64(time.Second))))
}

func bounds(p *status.Plugin) string {
	var parts []string
	for _, class := range []string{"key-state", "authorization", "credential", "outage"} {
		if b, ok := p.Bounds[class]; ok {
			parts = append(parts, fmt.Sprintf("%s %s", class, (time.Duration(b)*time.Second).String()))
		}
	}
	if parts == nil {
		return ""
	}
	return "; it closes within: " + strings.Join(parts, ", ")
}

func lastOpened(k status.Key) string {
	if k.LastOpened == nil {
		return ", and opened nothing before"
	}
	return ", the last seed was opened at " + stamp(*k.LastOpened)
}

func inMemory(p *status.Plugin) string {
	if p.LocalKEKs == 0 {
		return "; no local KEK is in memory"
	}
	return fmt.Sprintf("; %d local KEKs are in memory, those of closed keys until health.wipeAfter", p.LocalKEKs)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
