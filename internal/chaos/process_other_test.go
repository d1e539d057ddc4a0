//go:build !linux

package chaos

import "os/exec"

// startChild starts a process that a test's cleanup ends; only Linux can also promise it for the case that we are killed.
func startChild(cmd *exec.Cmd) error { return cmd.Start() }
