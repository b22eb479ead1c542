package cluster

// Programs of a test's own. In: what to run. Out: a process like all others of the
// cluster: with a log file, stopped by Stop at the latest. Errors: *ProcessError.

import (
	"context"
	"syscall"
)

// ProgramOptions say what to run.
type ProgramOptions struct {
	Program   string // file name in bin or $KUBEBUILDER_ASSETS, or an absolute path
	Name      string // of the log file; "": Program
	Args, Env []string
	// Isolated starts it in network, mount and PID namespaces of its own, as the first
	// process there. Linux only, and for root.
	Isolated bool
	// Ready is asked until it has no complaint. Nil: nobody waits.
	Ready func(context.Context) error
}

// Program is a running program.
type Program struct {
	LogFile string

	cluster *Cluster
	launch  launch
	process *process
}

// StartProgram starts a program and returns when it is ready. Its environment is PATH,
// HOME and what o gives.
func (c *Cluster) StartProgram(ctx context.Context, o ProgramOptions) (*Program, error) {
	if o.Ready == nil {
		o.Ready = func(context.Context) error { return nil }
	}
	p := &Program{cluster: c, launch: launch{name: o.Name, program: o.Program, args: o.Args, env: o.Env, isolated: o.Isolated, ready: o.Ready}}
	return p, p.Restart(ctx)
}

// Restart starts it again after Stop or Kill, as it was started before and with the
// same log file.
func (p *Program) Restart(ctx context.Context) (err error) {
	if p.process, err = p.cluster.launch(ctx, p.launch); err != nil {
		return err
	}
	p.LogFile = p.process.logPath
	return nil
}

// Stop sends SIGTERM and returns the exit code once the process is gone. An error means
// that it had ended before, or had to be killed. Cluster.Stop does the same for all.
func (p *Program) Stop() (exitCode int, err error) {
	err = p.process.stop()
	return p.process.cmd.ProcessState.ExitCode(), err
}

// Await asks probe until it has no complaint, and gives up when the program ends.
func (p *Program) Await(ctx context.Context, probe func(context.Context) error) error {
	return p.process.waitReady(ctx, probe)
}

// PID is the number of its process.
func (p *Program) PID() int { return p.process.cmd.Process.Pid }

// Kill is kill -9. An error means that the process had ended before.
func (p *Program) Kill() error { return p.process.kill() }

// Pause stops the program in its tracks, as a machine that is suspended does, until Resume.
func (p *Program) Pause() error { return p.process.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume lets a paused program go on.
func (p *Program) Resume() error { return p.process.cmd.Process.Signal(syscall.SIGCONT) }
