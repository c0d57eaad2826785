package keys

import (
	"fmt"
	"slices"
)

// MaxRecipients is how many KEKs a local KEK may be wrapped by besides its own.
const MaxRecipients = 4

// Recipients are the entries that wrap this entry's local KEKs too, in the order
// of AlsoWrapWith. The caller must not change them.
func (e *Entry) Recipients() []*Entry { return e.recipients }

// resolve finds the entries behind the names of AlsoWrapWith.
func (r *Ring) resolve(e *Entry) error {
	if len(e.AlsoWrapWith) > 0 && r.wrapping == WrapDirect {
		return fmt.Errorf("key %q: alsoWrapWith is about local KEKs, and wrapping is direct", e.Name)
	}
	if n := len(e.AlsoWrapWith); n > MaxRecipients {
		return fmt.Errorf("key %q: alsoWrapWith names %d keys, at most %d are allowed", e.Name, n, MaxRecipients)
	}
	for _, name := range e.AlsoWrapWith {
		o := r.ByName(name)
		switch {
		case o == nil:
			return fmt.Errorf("key %q: alsoWrapWith names %q, and there is no such key", e.Name, name)
		case o.KEK.Identity() == e.KEK.Identity():
			return fmt.Errorf("key %q: alsoWrapWith names %q, which is the same KEK", e.Name, name)
		case slices.ContainsFunc(e.recipients, func(x *Entry) bool { return x.KEK.Identity() == o.KEK.Identity() }):
			return fmt.Errorf("key %q: alsoWrapWith names the KEK of %q twice", e.Name, name)
		case o.Role == RoleRetired:
			return fmt.Errorf("key %q: alsoWrapWith names %q, which is retired and wraps nothing", e.Name, name)
		}
		e.recipients = append(e.recipients, o)
	}
	return nil
}
