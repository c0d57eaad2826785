package revocation

import (
	"fmt"
	"io"
	"strings"
	"time"

	"kms-plugin.io/internal/fleet"
)

// servers must have been started after every plugin had closed: seeds stay in an API
// server's memory for a day and, the one it writes with, until its end.
func (r *Report) servers(s *fleet.State) {
	for _, x := range s.Servers {
		r.Checks = append(r.Checks, r.ofServer(x))
	}
	if s.Uncounted != "" {
		r.Checks = append(r.Checks, Check{Subject: "API servers", Found: "whether one was overlooked cannot be told: " + s.Uncounted,
			Remedy: "an administrator may list leases and nodes; --no-api-servers if none of them can be asked"})
		return
	}
	u := s.Unasked()
	for _, p := range u.Problems {
		r.Checks = append(r.Checks, Check{Subject: "API servers", Found: p.Text, Remedy: p.Remedy})
	}
	if u.Unknown != "" {
		r.Checks = append(r.Checks, Check{Subject: "API servers", OK: len(s.Servers) > 0, Found: "whether one was overlooked cannot be told: " + u.Unknown})
	}
}

func (r *Report) ofServer(x fleet.Server) Check {
	c := Check{Subject: "API server " + x.Name}
	if !x.Started.IsZero() {
		c.Started = &x.Started
	}
	switch {
	case x.Error != "":
		c.Found = "it cannot be asked: " + x.Error
		c.Remedy = "one that does not run holds no seed, but that is not seen from here: look on its node when its process was started"
	case c.Started == nil:
		c.Found, c.Remedy = "it does not tell when it was started", "look on its node"
	case r.Closed == nil:
		c.Found, c.Remedy = fmt.Sprintf("it runs since %s and may hold seeds: not every plugin has closed", stamp(x.Started)), "close the plugins first, then restart it"
	case !x.Started.After(*r.Closed):
		c.Found = fmt.Sprintf("it runs since %s, before the last plugin closed at %s: it may hold seeds, for up to 24 h and the one it writes with until its end", stamp(x.Started), stamp(*r.Closed))
		c.Remedy = "restart it; it will serve nothing that is encrypted under the key"
	default:
		c.OK, c.Found = true, fmt.Sprintf("it was started at %s, after every plugin had closed: it holds no seed of the key", stamp(x.Started))
	}
	return c
}

// Verdict is the report in a sentence.
func (r *Report) Verdict() string {
	what := strings.Join(r.Keys, ", ")
	bad := 0
	for _, c := range r.Checks {
		if !c.OK {
			bad++
		}
	}
	switch {
	case len(r.Checks) == 0:
		return "NOT PROVEN: nobody was asked"
	case bad > 0:
		return fmt.Sprintf("NOT PROVEN: %d of %d checks stand against %s being out of reach", bad, len(r.Checks), what)
	case r.NoServers:
		return fmt.Sprintf("the plugins asked open nothing under %s; API servers were not looked at and may hold seeds", what)
	}
	return fmt.Sprintf("PROVEN for those asked: nothing opens under %s%s", what, took(r))
}

func took(r *Report) string {
	if r.Since == nil || r.Closed == nil {
		return ""
	}
	return fmt.Sprintf("; the last plugin closed %s after it was taken away", r.Closed.Sub(*r.Since).Round(time.Second))
}

// Print writes a line for each check, its remedy, and the verdict.
func (r *Report) Print(w io.Writer) error {
	var b strings.Builder
	for _, c := range r.Checks {
		mark, name := "[ok]     ", c.Subject
		if !c.OK {
			mark = "[PROBLEM]"
		}
		if c.Key != "" {
			name += ", key " + c.Key
		}
		fmt.Fprintf(&b, "%s %s: %s\n", mark, name, c.Found)
		if c.Remedy != "" {
			fmt.Fprintf(&b, "          hint: %s\n", c.Remedy)
		}
	}
	fmt.Fprintln(&b, r.Verdict())
	_, err := io.WriteString(w, b.String())
	return err
}
