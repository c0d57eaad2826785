// Package plugin is the gRPC face of the daemon: the KMS v2 service of
// k8s.io/kms/apis/v2 over a Backend. It checks what comes in and what goes out
// against the limits of kube-apiserver, bounds every call in time, and maps
// errors to gRPC codes. It must not know KEKs, files, clouds or metrics.
//
// The contract is that of kube-apiserver 1.37, read in
// k8s.io/apiserver/pkg/server/options/encryptionconfig and
// .../storage/value/encrypt/envelope/kmsv2.
package plugin
