//go:build goexperiment.runtimesecret

package localkek

import "runtime/secret"

// erased runs f so that what it leaves in registers and on the stack is
// overwritten at once, and what it allocated when the collector finds it
// unreachable (runtime/secret; linux on amd64 and arm64). Built with
// GOEXPERIMENT=runtimesecret, for which Go makes no promise of compatibility.
func erased(f func()) { secret.Do(f) }
