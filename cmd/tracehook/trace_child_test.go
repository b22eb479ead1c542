//go:build unix

package main

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestTheExitCodeIsTheOneAShellGives(t *testing.T) {
	for _, c := range []struct {
		name   string
		script string
		want   int
	}{
		{"success", "exit 0", 0},
		{"failure", "exit 42", 42},
		{"killed", "kill -KILL $$", 128 + 9},
		{"terminated", "kill -TERM $$", 128 + 15},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := runChild(exec.Command("sh", "-c", c.script), nil)
			if err != nil || got != c.want {
				t.Errorf("got %d, %v, want %d", got, err, c.want)
			}
		})
	}
}

func TestACommandThatCannotBeStartedIs126(t *testing.T) {
	_, err := runChild(exec.Command(t.TempDir()), nil)
	var exit *exitError
	if !errors.As(err, &exit) || exit.code != exitNotExecutable {
		t.Errorf("got %#v, want exit code %d", err, exitNotExecutable)
	}
}

func TestASignalBeforeTheStartKeepsTheCommandFromStarting(t *testing.T) {
	signals := make(chan os.Signal, 1)
	signals <- syscall.SIGTERM
	child := exec.Command("sh", "-c", "echo started")
	var out bytes.Buffer
	child.Stdout = &out
	got, err := runChild(child, signals)
	if err != nil || got != 128+15 || out.Len() > 0 {
		t.Errorf("got %d, %v and the output %q, want 143 and no output", got, err, out.String())
	}
}

// startTracehook starts this very program as a process of its own, with env on top of
// the environment and a kubeconfig whose cluster does not exist.
func startTracehook(t *testing.T, env []string, args ...string) (process *exec.Cmd, stdout *bufio.Reader, stderr *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	process = exec.Command(self, args...)
	process.Args[0] = "tracehook" // TestMain takes it for the program
	process.Env = append(append(os.Environ(), "KUBECONFIG="+writeUserKubeconfig(t)), env...)
	stderr = new(bytes.Buffer)
	process.Stderr = stderr
	pipe, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// A session of its own, so without the terminal that the tests may run in.
	process.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// Under nohup, or as a background job of a script, the tests were told to ignore
	// signals, and would tell their children so. What is caught here is not ignored there.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1)
	err = process.Start()
	signal.Stop(caught)
	if err != nil {
		t.Fatal(err)
	}
	// What does not end by itself must not hold the tests up.
	hung := time.AfterFunc(time.Minute, func() { _ = process.Process.Kill() })
	t.Cleanup(func() {
		hung.Stop()
		_ = process.Process.Kill()
	})
	return process, bufio.NewReader(pipe), stderr
}

func TestSignalsAreHandedOnAndNothingStaysBehind(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1} {
		t.Run(sig.String(), func(t *testing.T) {
			// The command puts its own things away before it ends, with a code of its own.
			const script = `trap 'echo caught; ls "$(dirname "$KUBECONFIG")"; exit 7' INT TERM HUP QUIT USR1
				dirname "$KUBECONFIG" >"$DIRECTORY_FILE"; echo ready; while :; do sleep 0.05; done`
			file := t.TempDir() + "/directory"
			process, stdout, stderr := startTracehook(t, []string{"OTEL_TRACES_EXPORTER=none", "DIRECTORY_FILE=" + file},
				"trace", "--", "sh", "-c", script)
			waitForLine(t, stdout, "ready")
			if err := process.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			waitForLine(t, stdout, "caught")
			waitForLine(t, stdout, "kubeconfig")
			if err := process.Wait(); process.ProcessState.ExitCode() != 7 {
				t.Errorf("got %v, want exit code 7; stderr:\n%s", err, stderr)
			}
			directory, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(strings.TrimSpace(string(directory))); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the directory of the temporary kubeconfig is still there: %v", err)
			}
			if !strings.Contains(stderr.String(), "trace id: ") {
				t.Errorf("no trace id on stderr:\n%s", stderr)
			}
		})
	}
}

func TestASignalEndsAFlushThatNobodyAnswers(t *testing.T) {
	// A Collector that accepts connections and says nothing.
	collector, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer collector.Close()
	process, stdout, stderr := startTracehook(t, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + collector.Addr().String()},
		"trace", "--flush-timeout", "1m", "--", "echo", "done")
	waitForLine(t, stdout, "done")
	connection, err := collector.Accept() // the flush has begun
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	begin := time.Now()
	if err := process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := process.Wait(); err != nil {
		t.Errorf("the command's success is not passed on: %v", err)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("the end took %s", took)
	}
	if !strings.Contains(stderr.String(), "tracehook: spans could not be exported: ") {
		t.Errorf("stderr does not say that spans were lost:\n%s", stderr)
	}
}
