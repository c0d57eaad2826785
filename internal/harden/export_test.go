package harden

// SetResolver replaces the files of the resolver.
func SetResolver(paths ...string) { resolver = paths }
