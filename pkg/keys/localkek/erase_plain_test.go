//go:build !goexperiment.runtimesecret

package localkek_test

const erasing = false
