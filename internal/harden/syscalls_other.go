//go:build !amd64 && !arm64

package harden

const auditArch = 0 // unknown: Unsupported

var refusedHere []uint32
