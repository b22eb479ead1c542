package cluster

// Processes. In: a program with its arguments. Out: a running process whose whole
// output is in one file, which ends when it is told to, and never outlives this
// program. Errors: *ProcessError, with the file's path and its last lines.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ErrStopped is the answer to whoever wants to start something in a cluster that is
// stopped.
var ErrStopped = errors.New("cluster is stopped")

const (
	// readyWithin is patience for a machine that is busy with something else; an idle
	// one needs a twentieth of it.
	readyWithin = 90 * time.Second
	// stopWithin is how long a process may take to end after SIGTERM before it is
	// killed.
	stopWithin = 15 * time.Second
)

// ProcessError says which process did not do what it was started for, and where its
// output is.
type ProcessError struct {
	Name string // as in the log file's name: "kube-apiserver"
	Log  string // path of the file with everything that it wrote
	Tail string // the last lines of that file, when the error was made
	Err  error
}

func (e *ProcessError) Error() string {
	if e.Tail == "" {
		return fmt.Sprintf("%s: %v (it wrote nothing to %s)", e.Name, e.Err, e.Log)
	}
	return fmt.Sprintf("%s: %v\n--- the end of %s\n%s\n---", e.Name, e.Err, e.Log, e.Tail)
}

func (e *ProcessError) Unwrap() error { return e.Err }

// keeper starts processes that the kernel kills when this program ends, however it
// ends.
//
// PR_SET_PDEATHSIG is bound to the THREAD that forked, not to the program: Go ends and
// starts threads as it likes, and a child forked on one that ends is killed then and
// there. So one goroutine, locked to its thread for as long as the cluster lives, does
// all the forking. When it returns without unlocking, the runtime ends the thread, and
// the kernel kills what Stop may have missed.
type keeper struct {
	requests chan func()
	closed   chan struct{}
	close    func()
}

func newKeeper() *keeper {
	k := &keeper{requests: make(chan func()), closed: make(chan struct{})}
	k.close = sync.OnceFunc(func() { close(k.closed) })
	go func() {
		runtime.LockOSThread()
		for {
			select {
			case request := <-k.requests:
				request()
			case <-k.closed:
				return
			}
		}
	}()
	return k
}

// start starts cmd on the keeper's thread. The process gets a group of its own: Ctrl-C
// in a terminal goes to the whole foreground group, and would end etcd before the API
// server that needs it, long before Stop gets to put things in order.
func (k *keeper) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	dieWithParent(cmd.SysProcAttr)
	result := make(chan error, 1)
	select {
	case k.requests <- func() { result <- cmd.Start() }:
		return <-result
	case <-k.closed:
		return ErrStopped
	}
}

// process is one started program.
type process struct {
	name     string
	logPath  string
	cmd      *exec.Cmd
	exited   chan struct{} // closed once the process is gone and reaped; then cmd.ProcessState is set
	stopping atomic.Bool   // someone asked it to end
	patience time.Duration // how long stop waits before it kills
}

// run starts a program from path with its output appended to <logs>/<name>.log.
// onDeath (may be nil) is called, once, if the process ends without having been asked
// to.
func (k *keeper) run(logs string, l launch, path string, env []string, onDeath func(error)) (*process, error) {
	p := &process{name: l.name, logPath: filepath.Join(logs, l.name+".log"), exited: make(chan struct{}), patience: stopWithin}
	// Appended, so that a process started again under the same name does not wipe out
	// what came before.
	log, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", l.name, err)
	}
	defer log.Close() // the child has its own descriptor
	p.cmd = exec.Command(path, l.args...)
	p.cmd.Env = env
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if l.isolated {
		p.cmd.SysProcAttr = isolated()
	}
	if err := k.start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", l.name, err)
	}
	go func() {
		_ = p.cmd.Wait() // the state says it all
		close(p.exited)
		if !p.stopping.Load() && onDeath != nil {
			onDeath(p.died())
		}
	}()
	return p, nil
}

// waitReady asks probe until it has no complaint. It gives up when the process ends,
// when ctx ends (with ctx's cause) and after readyWithin (with the last complaint).
func (p *process) waitReady(ctx context.Context, probe func(context.Context) error) error {
	deadline := time.After(readyWithin)
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		complaint := probe(attempt)
		cancel()
		// First this question: a stranger on our port answers probes as well as we
		// do.
		select {
		case <-p.exited:
			return p.died()
		default:
		}
		if complaint == nil {
			return nil
		}
		select {
		case <-p.exited:
			return p.died()
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-deadline:
			return p.failure(fmt.Errorf("not ready after %s: %w", readyWithin, complaint))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop asks the process to end, kills it if it does not, and returns when it is gone.
// An error means that it had ended before anyone asked, or had to be killed.
func (p *process) stop() error {
	first := !p.stopping.Swap(true)
	select {
	case <-p.exited:
		if first {
			return p.died()
		}
		return nil
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // an error means that it has just ended
	select {
	case <-p.exited:
		return nil
	case <-time.After(p.patience):
	}
	_ = p.cmd.Process.Kill()
	<-p.exited
	return p.failure(fmt.Errorf("killed: still there %s after SIGTERM", p.patience))
}

// kill ends the process as a crash or a power cut would, and returns when it is gone.
func (p *process) kill() error {
	if !p.stopping.Swap(true) {
		select {
		case <-p.exited:
			return p.died()
		default:
		}
	}
	_ = p.cmd.Process.Kill() // an error means that it has just ended
	<-p.exited
	return nil
}

func (p *process) died() *ProcessError {
	return p.failure(fmt.Errorf("ended by itself: %s", p.cmd.ProcessState))
}

func (p *process) failure(err error) *ProcessError {
	return &ProcessError{Name: p.name, Log: p.logPath, Tail: tail(p.logPath), Err: err}
}

// tail returns the last lines of a file: at most 15 of them, and 6 KiB. A file that
// cannot be read says so in place of its lines, because this is for people who look for
// another error.
func tail(path string) string {
	const maxBytes, maxLines = 6 << 10, 15
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, end-maxBytes), io.SeekStart)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-maxLines):], "\n")
}
