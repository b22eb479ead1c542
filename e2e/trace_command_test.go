package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/story"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

// traceCommand is `tracehook trace -- kubectl args…`, not started, with a directory of
// its own for temporary files.
func traceCommand(ctx context.Context, t *testing.T, temporary string, args ...string) *exec.Cmd {
	t.Helper()
	kubectl, err := installed.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, installed.tracehook, append([]string{"trace", "--", kubectl}, args...)...)
	cmd.Env = append(os.Environ(), append(installed.Env(), "KUBECONFIG="+installed.Kubeconfig, "TMPDIR="+temporary)...)
	return cmd
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind in %s: %v (%v)", dir, left, err)
	}
}

// A watch shows what happens as it happens, and ends with Ctrl-C; the credentials that
// were made for it are gone afterwards.
func TestAWatchStreamsThroughTheTraceAndEndsWithASignal(t *testing.T) {
	temporary := t.TempDir()
	cmd := traceCommand(story.Within(t, time.Minute), t, temporary, "get", "configmaps", "--watch", "--field-selector=metadata.name=watched", "-o", "name")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()

	mustKubectl(t, "create", "configmap", "watched")
	t.Cleanup(func() { mustKubectl(t, "delete", "configmap/watched", "--ignore-not-found") })
	for _, change := range [][]string{nil, {"label", "configmap/watched", "a=b"}} {
		if change != nil {
			mustKubectl(t, change...)
		}
		select {
		case line := <-lines:
			if line != "configmap/watched" {
				t.Errorf("the watch printed %q", line)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("the watch printed nothing 20s after %v; stderr:\n%s", change, &stderr)
		}
	}

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for range lines { // until it has ended
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 { // which is what kubectl makes of the signal
		t.Errorf("ended with %v, want kubectl's exit code 1", err)
	}
	wantEmpty(t, temporary)
	match := printedTraceID.FindStringSubmatch(stderr.String())
	if match == nil {
		t.Fatalf("no trace id:\n%s", &stderr)
	}
	wantTrace(t, match[1], tree.Want{Name: "kubectl get", Service: "kubectl", Status: "error", Children: []tree.Want{
		{Name: "GET /api/v1/namespaces/{namespace}/configmaps", Kind: tracestore.KindClient},
	}})
}

// What the command says and how it ends is the user's; what it was given on the
// command line is nobody else's.
func TestTheCommandsExitCodeAndOutputPassAndItsArgumentsStayPrivate(t *testing.T) {
	temporary := t.TempDir()
	cmd := traceCommand(story.Within(t, time.Minute), t, temporary, "create", "configmap", "private", "--from-literal=password=hunter2", "--dry-run=server", "-o", "name")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	if stdout.String() != "configmap/private\n" {
		t.Errorf("stdout is %q, want kubectl's and nothing else", &stdout)
	}
	id := printedTraceID.FindStringSubmatch(stderr.String())
	if id == nil {
		t.Fatalf("no trace id:\n%s", &stderr)
	}
	trace := wantTrace(t, id[1], tree.Want{Name: "kubectl create", Children: []tree.Want{{Name: "POST /mutate", Service: "tracehook", Descendant: true}}})
	for _, span := range trace.Spans {
		for key, value := range span.Attributes {
			if text, _ := value.(string); strings.Contains(text, "hunter2") || strings.Contains(text, "from-literal") || strings.Contains(text, "Bearer") {
				t.Errorf("span %q of %s tells in %s: %s", span.Name, span.Service, key, text)
			}
		}
	}

	failing := traceCommand(story.Within(t, time.Minute), t, temporary, "get", "configmap/there-is-none")
	out, err := failing.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "NotFound") {
		t.Errorf("got %v, want exit code 1 and kubectl's words:\n%s", err, out)
	}
	wantEmpty(t, temporary)
}
