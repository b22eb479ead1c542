//go:build linux

package nodes

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// shell is a Pod with the machine's programs, for commands that need some in the container. One container counts, one
// answers what it is told, one answers over HTTP, and one ends by itself.
const shell = `
apiVersion: v1
kind: Namespace
metadata: {name: streams}
---
apiVersion: v1
kind: Pod
metadata: {name: shell, namespace: streams}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: shell
    image: IMAGE
    command: [/bin/sh, -c, "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.2; done"]
    volumeMounts: &mounts [{name: usr, mountPath: /usr, readOnly: true}, {name: bin, mountPath: /bin, readOnly: true},
      {name: lib, mountPath: /lib, readOnly: true}, {name: lib64, mountPath: /lib64, readOnly: true}, {name: tmp, mountPath: /tmp}]
  - name: echo
    image: IMAGE
    stdin: true
    args: [echo]
  - name: web
    image: IMAGE
    args: [web]
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
  - name: ends
    image: IMAGE
    command: [/bin/sh, -c, "for i in 1 2 3; do echo line $i; sleep 1; done"]
    volumeMounts: *mounts
  volumes: [{name: usr, hostPath: {path: /usr}}, {name: bin, hostPath: {path: /bin}}, {name: lib, hostPath: {path: /lib}}, {name: lib64, hostPath: {path: /lib64}},
    {name: tmp, emptyDir: {}}]
`

// A user who works under `tracehook trace` works as without it, by either protocol that kubectl speaks, and each command
// is a trace.
func TestWhatStreamsWorksThroughTheTraceCommand(t *testing.T) {
	t.Cleanup(func() { kubectl(t, "delete", "namespace/streams", "--wait=false") })
	apply(t, strings.ReplaceAll(shell, "IMAGE", workloadImage))
	kubectl(t, "-n", "streams", "wait", "pod/shell", "--for=jsonpath={.status.containerStatuses[?(@.name=='web')].ready}=true", "--timeout=150s")

	t.Run("logs -f until the container ends", func(t *testing.T) {
		s := stream{}
		out := s.run(t, nil, 0, "logs", "-f", "shell", "-c", "ends")
		if out != "line 1\nline 2\nline 3\n" {
			t.Errorf("it prints %q", out)
		}
		s.traced(t, "GET", "/log")
	})
	t.Run("logs -f until Ctrl-C", func(t *testing.T) {
		s := stream{}
		cmd := s.command(t, "logs", "-f", "shell", "-c", "shell", "--tail=1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range 5 {
			if !lines.Scan() || !strings.HasPrefix(lines.Text(), "line ") {
				t.Errorf("a line is %q (%v): %s", lines.Text(), lines.Err(), &s.stderr)
			}
		}
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait() // kubectl's exit code is its own affair
		s.traced(t, "GET", "/log")
	})

	for _, protocol := range []struct{ name, on, method string }{
		{"WebSocket", "true", http.MethodGet}, // RFC 6455 begins with a GET
		{"SPDY", "false", http.MethodPost},
	} {
		t.Run(protocol.name, func(t *testing.T) {
			s := stream{env: []string{"KUBECTL_REMOTE_COMMAND_WEBSOCKETS=" + protocol.on, "KUBECTL_PORT_FORWARD_WEBSOCKETS=" + protocol.on}}
			// On a busy machine the end of a command can overtake the last of its output, for kubectl without us, too:
			// https://github.com/kubernetes/kubernetes/issues/60140. So this one ends later, and cp tries again.
			t.Run("exec", func(t *testing.T) {
				big := make([]byte, 4<<20)
				_, _ = rand.Read(big)
				s := s
				if out := s.run(t, big, 0, "exec", "-i", "shell", "-c", "shell", "--", "sh", "-c", "cat; sleep 1"); out != string(big) {
					t.Errorf("cat gives %d bytes back, not the %d that it was given", len(out), len(big))
				}
				s.traced(t, protocol.method, "/exec")
			})
			t.Run("exec whose command fails", func(t *testing.T) {
				s := s
				out := s.run(t, nil, 7, "exec", "shell", "-c", "shell", "--", "sh", "-c", "echo right; echo wrong >&2; exit 7")
				if out != "right\n" || !strings.Contains(s.stderr.String(), "wrong\n") {
					t.Errorf("it prints %q, and on stderr %q", out, &s.stderr)
				}
			})
			t.Run("exec at a terminal", func(t *testing.T) {
				s := s
				cmd := s.command(t, "exec", "-it", "shell", "-c", "shell", "--",
					"sh", "-c", `"for i in 1 2 3 4 5 6 7 8 9; do stty size; sleep 0.3; done"`) // kubectl tells the size a moment later
				cmd.Args = []string{"script", "-qec", "stty rows 33 cols 101; exec " + strings.Join(cmd.Args, " "), "/dev/null"}
				cmd.Path = "/usr/bin/script"
				cmd.Stderr = nil
				out, err := cmd.CombinedOutput()
				if err != nil || !strings.Contains(string(out), "33 101\r\n") {
					t.Errorf("a terminal of 33 lines of 101 columns is not that in the container: %v\n%s", err, out)
				}
			})
			t.Run("attach", func(t *testing.T) {
				s := s
				cmd := s.command(t, "attach", "-i", "shell", "-c", "echo")
				s.talk(t, cmd, func(io.Closer) error { return cmd.Process.Signal(syscall.SIGINT) })
				s.traced(t, protocol.method, "/attach")
			})
			t.Run("port-forward", func(t *testing.T) {
				s := s
				cmd := s.command(t, "port-forward", "pod/shell", ":8080")
				out, err := cmd.StdoutPipe()
				if err := errors.Join(err, cmd.Start()); err != nil {
					t.Fatal(err)
				}
				line, err := bufio.NewReader(out).ReadString('\n')
				address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
				if address == "" {
					t.Fatalf("it says %q: %v: %s", line, err, &s.stderr)
				}
				big := make([]byte, 1<<20)
				_, _ = rand.Read(big)
				client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
				for range 10 { // each on a connection of its own
					response, err := client.Post("http://"+address, "application/octet-stream", bytes.NewReader(big))
					if err != nil {
						t.Fatalf("through the forwarded port: %v: %s", err, &s.stderr)
					}
					back, err := io.ReadAll(response.Body)
					response.Body.Close()
					if err != nil || !bytes.Equal(back, big) {
						t.Errorf("through the forwarded port come %d other bytes than the %d that went: %v", len(back), len(big), err)
					}
				}
				if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait()
				s.traced(t, protocol.method, "/portforward")
			})
			t.Run("cp", func(t *testing.T) {
				s := s
				dir := t.TempDir()
				there, back := filepath.Join(dir, "there"), filepath.Join(dir, "back")
				big := make([]byte, 4<<20)
				_, _ = rand.Read(big)
				if err := os.WriteFile(there, big, 0o600); err != nil {
					t.Fatal(err)
				}
				s.run(t, nil, 0, "cp", there, "shell:/tmp/copy", "-c", "shell")
				s.run(t, nil, 0, "cp", "shell:/tmp/copy", back, "-c", "shell", "--retries=10")
				if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, big) {
					t.Errorf("there and back again it is another file, of %d bytes: %v", len(got), err)
				}
				s.traced(t, protocol.method, "/exec")
			})
			t.Run("debug", func(t *testing.T) {
				for _, way := range []struct {
					name string
					args []string
				}{
					{"an ephemeral container", []string{"shell"}},
					{"a copy", []string{"shell", "--copy-to=copy-" + protocol.on, "--share-processes"}},
					{"a node", []string{"node/" + shared.nodes[0].Name}},
				} {
					t.Run(way.name, func(t *testing.T) {
						s := s
						args := append([]string{"debug"}, way.args...)
						cmd := s.command(t, append(args, "-i", "--image="+workloadImage, "--image-pull-policy=IfNotPresent", "--profile=general",
							"--", "/ko-app/workload", "echo")...)
						s.talk(t, cmd, io.Closer.Close)
						if code := cmd.ProcessState.ExitCode(); code != 0 {
							t.Errorf("it ends with %d: %s", code, &s.stderr)
						}
						s.traced(t, protocol.method, "/attach")
					})
				}
			})
		})
	}
}

// stream is a run of kubectl under `tracehook trace`, in the namespace with the shell.
type stream struct {
	env    []string
	stderr bytes.Buffer
}

func (s *stream) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	program, err := shared.Binary("tracehook")
	if err != nil {
		t.Fatal(err)
	}
	kubectl, err := shared.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	s.stderr.Reset()
	line := append([]string{"trace", "--", kubectl, "--namespace=streams"}, args...)
	cmd := exec.CommandContext(story.Within(t, patience), program, line...)
	cmd.Env = append(append(append(os.Environ(), shared.Env()...), s.env...), "KUBECONFIG="+shared.Kubeconfig)
	cmd.Stderr = &s.stderr
	return cmd
}

// run returns what the command prints, and wants this exit code.
func (s *stream) run(t *testing.T, stdin []byte, code int, args ...string) string {
	t.Helper()
	cmd := s.command(t, args...)
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	out, err := cmd.Output()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
		t.Fatalf("kubectl %v: %v, want exit code %d: %s", args, err, code, &s.stderr)
	}
	return string(out)
}

// talk is a conversation with `workload echo`, and its end.
func (s *stream) talk(t *testing.T, cmd *exec.Cmd, end func(io.Closer) error) {
	t.Helper()
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewScanner(out)
	for _, word := range []string{"one", "two"} {
		if _, err := fmt.Fprintln(in, word); err != nil {
			t.Fatal(err)
		}
		for answers.Scan() && !strings.HasPrefix(answers.Text(), "you said ") {
			continue // kubectl itself, about what it has made
		}
		if want := "you said " + word; answers.Text() != want {
			t.Fatalf("the container says %q, want %q: %s", answers.Text(), want, &s.stderr)
		}
	}
	if err := end(in); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait() // who looks at the exit code finds it in cmd
}

// traced wants the command's trace to hold a request of this method to such a path, from both ends.
func (s *stream) traced(t *testing.T, method, path string) {
	t.Helper()
	id := traceID.FindStringSubmatch(s.stderr.String())
	if id == nil {
		t.Fatalf("no trace id in %s", &s.stderr)
	}
	client := tracestore.Client{BaseURL: shared.JaegerURL}
	if _, err := client.Wait(story.Within(t, patience), id[1], func(trace tracestore.Trace) error {
		for _, service := range []string{"kubectl", "apiserver"} {
			if !slices.ContainsFunc(trace.Spans, func(s tracestore.Span) bool {
				return s.Service == service && strings.HasPrefix(s.Name, method) && strings.Contains(s.Name, path)
			}) {
				return fmt.Errorf("no span %s …%s of %s", method, path, service)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
