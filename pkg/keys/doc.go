// Package keys is the vocabulary of encryption at rest: KEK, wrapped blob,
// encryption context, ring, key_id, and the classes of error a key can answer
// with. It imports the standard library only and must not know any provider,
// any file format, gRPC or Kubernetes.
//
// A KEK (key encryption key) lives in a cloud KMS or HSM and never leaves it.
// It wraps and unwraps small secrets. The Ring is the immutable set of KEKs an
// instance knows, each with a Role. A key_id is the public name of a KEK and of
// the material behind it, as kube-apiserver stores it beside every object.
package keys
