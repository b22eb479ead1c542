package cluster

import "syscall"

// dieWithParent has the kernel kill the child when the thread that forks it ends: see
// keeper. SIGKILL, because nobody is left then who could wait for a graceful end. There
// is no gap between fork and this: os/exec looks, after setting it, whether the parent
// is still there.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }

// isolated gives a process network, mount and PID namespaces of its own. It is the first of
// its PID namespace, so the kernel ends all others there with it.
func isolated() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
}
