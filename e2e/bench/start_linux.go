package main

// Processes on a processor of their own.

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// processors returns one for the server and one for everything else, of those that
// this process may use.
func processors() (server, other int, err error) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return 0, 0, fmt.Errorf("ask for processors: %w", err)
	}
	var found []int
	for cpu := range 1024 {
		if allowed.IsSet(cpu) {
			found = append(found, cpu)
		}
	}
	if len(found) < 2 {
		return 0, 0, fmt.Errorf("there is %d processor; server and caller need one each", len(found))
	}
	return found[1], found[0], nil
}

// newStarter returns what starts processes. They inherit the processor of the thread
// that forks them, and the kernel kills them when that thread ends: so it is one
// thread, which lives as long as this program.
func newStarter() starter {
	type order struct {
		cmd  *exec.Cmd
		cpu  int
		done chan error
	}
	orders := make(chan order)
	go func() {
		runtime.LockOSThread()
		for o := range orders {
			var set unix.CPUSet
			set.Set(o.cpu)
			err := unix.SchedSetaffinity(0, &set)
			if err == nil {
				o.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
				err = o.cmd.Start()
			}
			o.done <- err
		}
	}()
	return func(cmd *exec.Cmd, cpu int) error {
		o := order{cmd, cpu, make(chan error)}
		orders <- o
		return <-o.done
	}
}

// settle puts this process on a processor, all threads of it; new ones inherit it.
func settle(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, &set); err != nil && err != unix.ESRCH {
			return fmt.Errorf("choose a processor: %w", err)
		}
	}
	return nil
}
