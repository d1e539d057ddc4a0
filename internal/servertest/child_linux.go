package servertest

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// starts runs functions on one thread that lives as long as this process: Linux sends the parent-death signal when the
// thread that started a child ends, not the process.
var starts = sync.OnceValue(func() chan<- func() {
	queue := make(chan func())
	go func() {
		runtime.LockOSThread()
		for start := range queue {
			start()
		}
	}()
	return queue
})

// StartChild starts a process that ends with ours, whatever way ours ends, and that a terminal's Ctrl-C doesn't reach.
func StartChild(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGKILL
	started := make(chan error, 1)
	starts() <- func() { started <- cmd.Start() }
	return <-started
}
