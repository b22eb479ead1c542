package cluster

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestStopLeavesNothingBehindAndMayBeCalledAgain(t *testing.T) {
	c, err := Start(within(t, 2*time.Minute), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop() })

	// There are no controllers here, so no ServiceAccount either. Pods are admitted
	// all the same.
	if _, err := c.Kubectl(t.Context(), "run", "nginx", "--image=nginx"); err != nil {
		t.Error(err)
	}
	var pids []int
	for _, p := range c.processes {
		pids = append(pids, p.cmd.Process.Pid)
	}
	if got := childrenOf(t, os.Getpid()); len(pids) != 4 || len(got) < 4 {
		t.Errorf("%d processes known, %d running: want Jaeger, Collector, etcd and API server", len(pids), len(got))
	}

	if err := c.Stop(); err != nil {
		t.Error(err)
	}
	wantGone(t, pids)
	if _, err := os.Stat(c.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("temporary directory %s: %v, want it removed", c.Dir, err)
	}
	if err := c.Stop(); err != nil {
		t.Errorf("second Stop: %v", err)
	}
	if _, err := c.StartWebhook(t.Context(), WebhookOptions{}); !errors.Is(err, ErrStopped) {
		t.Errorf("StartWebhook after Stop: %v, want ErrStopped", err)
	}
}

func TestNoProcessOutlivesTheProgram(t *testing.T) {
	for _, test := range []struct {
		name   string
		during string // "start" or "use"
		end    func(child *os.Process, stdin io.Writer) error
		says   string // the child's last words on stdout, "" if it gets to say none
	}{
		{
			name: "kill -9", during: "use",
			end: func(child *os.Process, _ io.Writer) error { return child.Kill() },
		},
		{
			name: "panic", during: "use",
			end: func(_ *os.Process, stdin io.Writer) error { _, err := io.WriteString(stdin, "now\n"); return err },
		},
		{
			// A terminal sends it to the whole foreground process group.
			name: "Ctrl-C", during: "use",
			end:  func(child *os.Process, _ io.Writer) error { return syscall.Kill(-child.Pid, syscall.SIGINT) },
			says: "stopped",
		},
		{
			name: "Ctrl-C while starting", during: "start",
			end:  func(child *os.Process, _ io.Writer) error { return syscall.Kill(-child.Pid, syscall.SIGINT) },
			says: "interrupted while starting",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			temp := t.TempDir()
			ctx := within(t, 2*time.Minute)
			cmd := exec.CommandContext(ctx, os.Args[0])
			cmd.Env = append(os.Environ(), "CLUSTER_TEST_CHILD="+test.name, "TMPDIR="+temp)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // the group that a terminal would make
			dieWithParent(cmd.SysProcAttr)
			var complaint strings.Builder
			cmd.Stderr = &complaint
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(stdout)
			want := 4 // Jaeger, Collector, etcd, API server
			switch test.during {
			case "start":
				want = 3 // the API server takes seconds
				for len(childrenOf(t, cmd.Process.Pid)) < want && ctx.Err() == nil {
					time.Sleep(5 * time.Millisecond)
				}
			case "use":
				if !lines.Scan() || lines.Text() != "ready" {
					_ = cmd.Wait()
					t.Fatalf("child did not start a cluster: %q\n%s", lines.Text(), &complaint)
				}
			}
			pids := childrenOf(t, cmd.Process.Pid)
			if len(pids) < want {
				t.Errorf("child runs %d processes, want %d", len(pids), want)
			}

			if err := test.end(cmd.Process, stdin); err != nil {
				t.Fatal(err)
			}
			said := ""
			for lines.Scan() {
				said = lines.Text()
			}
			exit := cmd.Wait()
			if said != test.says || (exit == nil) != (test.says != "") {
				t.Errorf("child said %q and ended with %v, want %q\n%s", said, exit, test.says, &complaint)
			}
			wantGone(t, pids)
			left, err := filepath.Glob(filepath.Join(temp, "*"))
			if err != nil {
				t.Fatal(err)
			}
			if test.says != "" && len(left) != 0 { // one that is killed cannot tidy up
				t.Errorf("child left %q", left)
			}
		})
	}
}

func TestAProcessThatEndsEarlyShowsItsLog(t *testing.T) {
	t.Run("the webhook, for a flag that it does not know", func(t *testing.T) {
		c := sharedCluster(t)
		_, err := c.StartWebhook(within(t, time.Minute), WebhookOptions{Name: "wrong-flag", Args: []string{"--no-such-flag"}})
		wantProcessError(t, err, "wrong-flag", "exit status 2", "no-such-flag")
	})

	t.Run("etcd, which fails the whole start", func(t *testing.T) {
		bin := t.TempDir()
		for _, program := range []string{"jaeger", "otelcol", "kube-apiserver", "kubectl"} {
			path, err := sharedCluster(t).Binary(program)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(path, filepath.Join(bin, program)); err != nil {
				t.Fatal(err)
			}
		}
		script := "#!/bin/sh\necho >&2 the disk is on fire\nexit 3\n"
		if err := os.WriteFile(filepath.Join(bin, "etcd"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		before := childrenOf(t, os.Getpid())
		_, err := Start(within(t, time.Minute), Options{Bin: bin})
		wantProcessError(t, err, "etcd", "exit status 3", "the disk is on fire")
		if after := childrenOf(t, os.Getpid()); len(after) != len(before) {
			t.Errorf("%d processes run after the failed start, %d before it", len(after), len(before))
		}
		var failure *ProcessError
		if errors.As(err, &failure) {
			os.RemoveAll(filepath.Dir(filepath.Dir(failure.Log))) // kept, for its logs
		}
	})
}

// wantProcessError wants an error that tells which process, how it ended and what it
// said, and a log that is still there.
func wantProcessError(t *testing.T, err error, name, ended, said string) {
	t.Helper()
	var failure *ProcessError
	if !errors.As(err, &failure) {
		t.Fatalf("error is %v, want a *ProcessError", err)
	}
	if failure.Name != name || !strings.Contains(failure.Err.Error(), ended) || !strings.Contains(failure.Tail, said) {
		t.Errorf("error is %#v, want one of %s with %q and %q", failure, name, ended, said)
	}
	for _, part := range []string{name, ended, said, failure.Log} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("message does not hold %q:\n%v", part, err)
		}
	}
	log, readErr := os.ReadFile(failure.Log)
	if readErr != nil || !strings.Contains(string(log), said) {
		t.Errorf("log %s holds %q (%v), want %q", failure.Log, log, readErr, said)
	}
}

func TestStopTellsOfAProcessThatDiedOnTheWay(t *testing.T) {
	keeper := newKeeper()
	defer keeper.close()
	var heard error
	told := make(chan struct{})
	p, err := keeper.run(t.TempDir(), launch{name: "sleep", args: []string{"60"}}, "/bin/sleep", nil, func(err error) { heard = err; close(told) })
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-told
	if err := p.stop(); err == nil || !strings.Contains(err.Error(), "sleep: ended by itself: signal: killed") {
		t.Errorf("stop says %v, want that it was killed", err)
	}
	if heard == nil {
		t.Error("onDeath was called without an error")
	}
}

func TestAProcessThatIgnoresTheSignalIsKilled(t *testing.T) {
	keeper := newKeeper()
	defer keeper.close()
	p, err := keeper.run(t.TempDir(), launch{name: "deaf", args: []string{"-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"}}, "/bin/sh", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	ready := func(context.Context) error {
		if tail(p.logPath) != "deaf" {
			return errors.New("not deaf yet")
		}
		return nil
	}
	if err := p.waitReady(within(t, 10*time.Second), ready); err != nil {
		t.Fatal(err)
	}
	p.patience = 200 * time.Millisecond
	if err := p.stop(); err == nil || !strings.Contains(err.Error(), "killed: still there 200ms after SIGTERM") {
		t.Errorf("stop says %v, want that it had to kill", err)
	}
	wantGone(t, []int{p.cmd.Process.Pid})
}

func TestAMissingProgramIsNamedWithTheCommandThatBuildsIt(t *testing.T) {
	bin := t.TempDir()
	_, err := Start(t.Context(), Options{Bin: bin})
	if err == nil || !strings.Contains(err.Error(), "no program jaeger in "+bin+": `make controlplane` builds it") {
		t.Errorf("error is %v, want the missing program, its directory and the make target", err)
	}
}

func TestKubebuilderAssetsAreUsedBeforeBin(t *testing.T) {
	root, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	assets := t.TempDir()
	if err := os.WriteFile(filepath.Join(assets, "etcd"), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBEBUILDER_ASSETS", assets)
	var c Cluster
	if err := c.findBinaries(Options{}); err != nil {
		t.Fatal(err)
	}
	for program, want := range map[string]string{"etcd": assets, "jaeger": filepath.Join(root, "bin")} {
		if path, err := c.Binary(program); err != nil || path != filepath.Join(want, program) {
			t.Errorf("%s is %s (%v), want the one in %s", program, path, err, want)
		}
	}
}

func TestADirectoryMayBeUsedAgainButNotSomebodyElses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	use := func() error {
		c, err := prepare(Options{Dir: dir})
		if err != nil {
			return err
		}
		return c.Stop()
	}
	if err := use(); err != nil {
		t.Fatal(err)
	}
	state, mine := filepath.Join(dir, "etcd", "member"), filepath.Join(dir, "mine")
	for _, path := range []string{state, mine} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := use(); err != nil {
		t.Errorf("second use: %v", err)
	}
	if _, err := os.Stat(state); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what the earlier etcd left: %v, want it removed", err)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Errorf("a file that is not the cluster's: %v, want it left alone", err)
	}

	dir = t.TempDir()
	logs := filepath.Join(dir, "logs")
	if err := os.Mkdir(logs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := use(); err == nil || !strings.Contains(err.Error(), "neither empty nor an earlier cluster's") {
		t.Errorf("somebody else's directory: %v, want it refused", err)
	}
	if _, err := os.Stat(logs); err != nil {
		t.Errorf("somebody else's logs: %v, want them left alone", err)
	}
}
