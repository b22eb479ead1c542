//go:build linux

package node

// A run. In: a program that calls Main first of all. Out: the same program in namespaces of its own, and after its end
// nothing that was not there before. Errors: on stderr, and in the exit code.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// What a process of ours is there for, by environment: the program starts itself again.
const (
	roleVariable = "TRACEHOOK_NODES_ROLE"
	dirVariable  = "TRACEHOOK_NODES_DIR"

	roleRun   = "run"
	roleNode  = "node"
	roleClean = "clean"
)

// HostAddress is where the nodes reach the run's control plane: the run's end of the bridge.
const HostAddress = "172.31.250.1"

const bridge = "nodes0"

// Options of a run.
type Options struct {
	// Prepare runs before the namespaces are made, with the machine's own network. Nil:
	// nothing to prepare.
	Prepare func(dir string) error
	// Run runs in the namespaces. It returns an exit code.
	Run func(dir string) int
}

// Main runs o in namespaces of its own and returns the exit code. The directory that o gets
// is removed afterwards, but for dir/cluster when the exit code is not zero.
//
// The program starts itself again in other roles, so Main comes first in main or TestMain.
func Main(o Options) (code int) {
	dir := os.Getenv(dirVariable)
	switch role := os.Getenv(roleVariable); role {
	case "":
		return outside(o)
	case roleRun:
		if err := enter(dir); err != nil {
			fmt.Fprintln(os.Stderr, "enter namespaces:", err)
			return 1
		}
		os.Unsetenv(roleVariable) // the tests' programs are not us
		return o.Run(dir)
	case roleNode:
		err := first(os.Getenv(configVariable))
		fmt.Fprintln(os.Stderr, "node:", err)
		return 1
	case roleClean:
		return clean(dir)
	default:
		fmt.Fprintln(os.Stderr, "no such role:", role)
		return 1
	}
}

// optional is the value of TRACEHOOK_NODES with which a run that is not possible is no failure: `make test` on a
// developer's machine. It says so, and nobody is told that tests have passed.
const optional = "optional"

// outside is the program as it was started.
func outside(o Options) (code int) {
	if err := Possible(); err != nil {
		fmt.Fprintf(os.Stderr, "==> NOT RUN: what needs real nodes: %v\n", err)
		if os.Getenv("TRACEHOOK_NODES") == optional {
			return 0
		}
		return 1
	}
	complain := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "tracehook-nodes-")
	if err != nil {
		return complain(fmt.Errorf("make directory of the run: %w", err))
	}
	cleaner, err := startCleaner(dir)
	if err != nil {
		return complain(errors.Join(fmt.Errorf("start cleaner: %w", err), os.RemoveAll(dir)))
	}
	defer func() {
		if err := cleaner.finish(code == 0); err != nil {
			code = complain(err)
		}
	}()
	if o.Prepare != nil {
		if err := o.Prepare(dir); err != nil {
			return complain(err)
		}
	}

	// Ctrl-C goes to the run as well, and is its affair. What is ignored here would be ignored by all programs of the run.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	// The kernel ends the run when the thread that has started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	run, err := again(roleRun, dir)
	if err != nil {
		return complain(err)
	}
	run.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	run.Stdin, run.Stdout, run.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := run.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() < 1 {
			fmt.Fprintln(os.Stderr, "run in namespaces:", err)
			return 1
		}
		return exit.ExitCode()
	}
	return 0
}

// again is this program, as it was called, in another role.
func again(role, dir string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role, dirVariable+"="+dir)
	return cmd, nil
}

// enter makes the new namespaces usable.
func enter(dir string) error {
	if err := privateMounts(); err != nil {
		return err
	}
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		return fmt.Errorf("make directory of the nodes: %w", err)
	}
	// Layers and containers are in memory: faster, and gone with the namespace.
	if err := syscall.Mount("nodes", state, "tmpfs", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount directory of the nodes: %w", err)
	}
	return ip(
		"link set lo up",
		"link add "+bridge+" type bridge",
		"address add "+HostAddress+"/24 dev "+bridge,
		"link set "+bridge+" up",
	)
}

// privateMounts keeps what is mounted from now on in this namespace, and shows the processes of this one.
func privateMounts() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// ip runs commands of ip(8) in the network namespace of this process.
func ip(commands ...string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("set up network: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// cleaner is a process that outlives this one however it ends. It waits for the end of a pipe, which the kernel closes
// if we do not.
type cleaner struct {
	cmd    *exec.Cmd
	pipe   io.WriteCloser
	stderr bytes.Buffer
}

func startCleaner(dir string) (*cleaner, error) {
	cmd, err := again(roleClean, dir)
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what is sent to our group does not reach it
	c := &cleaner{cmd: cmd}
	cmd.Stderr = &c.stderr
	if c.pipe, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return c, cmd.Start()
}

// finish returns when everything is removed.
func (c *cleaner) finish(succeeded bool) error {
	if !succeeded {
		if _, err := io.WriteString(c.pipe, keepLogs); err != nil {
			return fmt.Errorf("tell cleaner: %w", err)
		}
	}
	if err := c.pipe.Close(); err != nil {
		return fmt.Errorf("tell cleaner: %w", err)
	}
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("remove what the run has left: %w: %s", err, c.stderr.Bytes())
	}
	return nil
}

const keepLogs = "keep logs"

// clean is the cleaner's process.
func clean(dir string) (code int) {
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGPIPE) // after kill -9 nobody reads what it says
	said, _ := io.ReadAll(os.Stdin)
	check := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	check(removeCgroups(filepath.Base(dir)))
	if string(said) != keepLogs {
		check(os.RemoveAll(dir))
		return code
	}
	entries, err := os.ReadDir(dir)
	check(err)
	for _, entry := range entries {
		if entry.Name() != logsOf {
			check(os.RemoveAll(filepath.Join(dir, entry.Name())))
		}
	}
	_ = os.Remove(dir) // there are logs in it, or it is empty
	return code
}

// logsOf is the directory of the cluster, whose logs a failed run keeps.
const logsOf = "cluster"
