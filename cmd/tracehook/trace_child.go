package main

// The child process. In: a command ready to start, and the signals that this process
// gets. Out: the exit code as a shell gives it. Errors: the command could not be
// started or its streams not be copied.

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
)

// runChild starts child, hands signals on to it and waits for it, however long it
// takes to heed them.
//
// The child stays in this process's group, so that the terminal, its job control
// and its reads work as if tracehook were not there. That leaves two sources of
// signals. What the terminal sends (Ctrl-C) goes to the whole group: the child has
// it already, and a second SIGINT would make kubectl drop its clean-up. What
// somebody sends to this process alone must be handed on. deliveredToGroup tells
// the two apart.
func runChild(child *exec.Cmd, signals <-chan os.Signal) (exitCode int, err error) {
	select {
	case sig := <-signals: // it came before there was a child to heed it
		return signalExitCode(sig), nil
	default:
	}
	if err := child.Start(); err != nil {
		return 0, &exitError{code: exitNotExecutable, err: err}
	}
	done := make(chan error, 1)
	go func() { done <- child.Wait() }()
	for {
		select {
		case sig := <-signals:
			if !deliveredToGroup(sig) {
				_ = child.Process.Signal(sig) // fails only when the child has just ended
			}
		case err := <-done:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 0, err
			}
			if status, ok := child.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
				return signalExitCode(status.Signal()), nil
			}
			return child.ProcessState.ExitCode(), nil
		}
	}
}

func signalExitCode(sig os.Signal) int {
	number, _ := sig.(syscall.Signal)
	return exitSignal + int(number)
}
