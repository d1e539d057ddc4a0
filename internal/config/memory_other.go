//go:build !linux

package config

// memoryLimit is how many bytes this machine has, 0 where that is not known.
func memoryLimit() uint64 { return 0 }
