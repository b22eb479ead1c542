//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// caughtSignals are those that runChild wants to see: all that ask a process to end
// or to do something, except those that this process was told to ignore. Under nohup
// the child must go on ignoring SIGHUP, too. SIGTSTP, SIGCONT and SIGWINCH are left
// alone: the terminal sends them to the whole group, and their default is right.
func caughtSignals() []os.Signal {
	var caught []os.Signal
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2} {
		if !signal.Ignored(sig) {
			caught = append(caught, sig)
		}
	}
	return caught
}

// deliveredToGroup reports whether the child has got sig as well. The kernel does
// not tell a handler of Go who sent a signal, so this is decided by who could have:
// SIGINT and SIGQUIT come from the terminal while this group is in its foreground.
// The price is that `kill -INT` from elsewhere at a tracehook in the foreground is
// not handed on; `kill -TERM` always is.
func deliveredToGroup(sig os.Signal) bool {
	if sig != syscall.SIGINT && sig != syscall.SIGQUIT {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false // no controlling terminal
	}
	defer tty.Close()
	foreground, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp()
}
