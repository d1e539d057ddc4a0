//go:build !linux

package servertest

import "os/exec"

// StartChild starts a process that a test's cleanup ends; only Linux can also promise it for the case that we are killed.
func StartChild(cmd *exec.Cmd) error { return cmd.Start() }
