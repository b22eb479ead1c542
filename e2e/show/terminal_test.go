package show

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

// onTerminal runs cmd with a terminal of the given width on stdin, stderr and, unless it is set,
// stdout, and returns what the terminal got.
func onTerminal(t *testing.T, columns uint16, exitCode int, cmd *exec.Cmd) string {
	t.Helper()
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 50, Cols: columns})
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	var screen bytes.Buffer
	if _, err := io.Copy(&screen, terminal); err != nil && !errors.Is(err, syscall.EIO) { // which is a terminal's end
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != exitCode {
		t.Fatalf("%v ended with %d, want %d\n%s", cmd.Args, got, exitCode, &screen)
	}
	return strings.ReplaceAll(screen.String(), "\r\n", "\n")
}

var (
	traceID = regexp.MustCompile(`(?m)^trace id: ([0-9a-f]{32})$`)
	escape  = regexp.MustCompile("\x1b\\[[0-9;]*m")
)

func printedID(t *testing.T, text string) string {
	t.Helper()
	match := traceID.FindStringSubmatch(text)
	if match == nil {
		t.Fatalf("no trace id in\n%s", text)
	}
	return match[1]
}

// lineWith finds one line of a drawing.
func lineWith(t *testing.T, drawing, text string) string {
	t.Helper()
	for _, line := range strings.Split(drawing, "\n") {
		if strings.Contains(line, text) {
			return line
		}
	}
	t.Fatalf("no line with %q in\n%s", text, drawing)
	return ""
}

func TestATerminalShowsTheWholeTraceOnceTheCommandHasEnded(t *testing.T) {
	t.Cleanup(func() { story.Kubectl(t, shared.Cluster, "delete", "configmap/seen", "--ignore-not-found") })
	out, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := command(t, "trace", "--", shared.kubectl, "create", "configmap", "seen")
	cmd.Stdout = out
	coloured := onTerminal(t, 120, 0, cmd)
	if printed, err := os.ReadFile(out.Name()); err != nil || string(printed) != "configmap/seen created\n" {
		t.Errorf("stdout is %q (%v), want kubectl's and nothing else", printed, err)
	}
	screen := escape.ReplaceAllString(coloured, "")
	if screen == coloured {
		t.Errorf("a terminal without colours:\n%s", screen)
	}
	for _, want := range []string{"kubectl create", "POST /api/v1/namespaces/{namespace}/configmaps", "Call mutating webhook", "POST /mutate", "mutate trace-context", "Create etcd3"} {
		lineWith(t, screen, want)
	}
	if !strings.HasPrefix(lineWith(t, screen, " etcdserverpb.KV/Txn"), "apiserver") || !regexp.MustCompile(`(?m)^etcd +.*etcdserverpb.KV/Txn`).MatchString(screen) {
		t.Errorf("it does not go on to etcd:\n%s", screen)
	}
	if filters := lineWith(t, screen, " filters "); !regexp.MustCompile(`^apiserver +.*├ \+[0-9]+ filters +[0-9.]+ (µs|ms)`).MatchString(filters) {
		t.Errorf("the filters are drawn as %q", filters)
	}
	for _, not := range []string{"priorityandfairness", "authorization", "tracehook: "} {
		if strings.Contains(screen, not) {
			t.Errorf("%q on the screen:\n%s", not, screen)
		}
	}
	for _, line := range strings.Split(screen, "\n") {
		if n := len([]rune(line)); n > 120 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	id := printedID(t, screen)
	if !strings.HasPrefix(lineWith(t, screen, " spans of "), "trace "+id) {
		t.Errorf("another trace is drawn than the one that is named:\n%s", screen)
	}
	if link := lineWith(t, screen, "trace link: "); link != "trace link: "+shared.JaegerURL+"/trace/"+id {
		t.Errorf("the link is %q", link)
	}
	t.Logf("\n%s", screen)
}

func TestEachFilterIsDrawnForWhoAsksForThem(t *testing.T) {
	screen := onTerminal(t, 120, 0, command(t, "trace", "--filters", "--", shared.kubectl, "get", "configmaps", "-o", "name"))
	lineWith(t, screen, "priorityandfairness")
	if strings.Contains(screen, " filters ") {
		t.Errorf("they are folded all the same:\n%s", screen)
	}
}

// A command that fails keeps its exit code and its words.
func TestTheTreeChangesNoExitCode(t *testing.T) {
	screen := onTerminal(t, 100, 1, command(t, "trace", "--", shared.kubectl, "get", "configmap/not-there"))
	if !strings.Contains(screen, `Error from server (NotFound): configmaps "not-there" not found`) {
		t.Errorf("what kubectl says is lost:\n%s", screen)
	}
	lineWith(t, escape.ReplaceAllString(screen, ""), "✗ kubectl get")
}

func TestWithoutAStoreTheTerminalShowsTheCommandsCallsAndWhereMoreIs(t *testing.T) {
	cmd := command(t, "trace", "--", shared.kubectl, "get", "configmaps", "-o", "name")
	cmd.Env = append(cmd.Env, "TRACEHOOK_STORE=", "NO_COLOR=1", "OTEL_TRACES_EXPORTER=none")
	screen := onTerminal(t, 100, 0, cmd)
	lineWith(t, screen, "└ GET /api/v1/namespaces/{namespace}/configmaps")
	if hint := lineWith(t, screen, "tracehook: "); !strings.Contains(hint, "--store jaeger=URL, or TRACEHOOK_STORE") {
		t.Errorf("the hint is %q", hint)
	}
	if strings.Contains(screen, "apiserver") || strings.Contains(screen, "\x1b[") || strings.Contains(screen, "trace link") {
		t.Errorf("a store was asked, or colours are there:\n%s", screen)
	}
}

// Where nobody reads along nothing is drawn, unless it is asked for.
func TestOutsideATerminalTheTraceIsShownOnRequest(t *testing.T) {
	get := []string{"--", shared.kubectl, "get", "configmaps", "-o", "name"}
	if _, stderr := run(t, 0, command(t, append([]string{"trace"}, get...)...)); strings.Contains(stderr, "SPAN") || strings.Count(stderr, "\n") != 2 {
		t.Errorf("more than the trace id and the link:\n%s", stderr)
	}
	_, stderr := run(t, 0, command(t, append([]string{"trace", "-o", "tree"}, get...)...))
	lineWith(t, stderr, "└ GET /api/v1/namespaces/{namespace}/configmaps")
	lineWith(t, stderr, " filters ")

	page := filepath.Join(t.TempDir(), "trace.html")
	_, stderr = run(t, 0, command(t, append([]string{"trace", "-o", "html=" + page}, get...)...))
	if said := lineWith(t, stderr, "page: "); said != "page: "+page {
		t.Errorf("it says %q", said)
	}
	if content, err := os.ReadFile(page); err != nil || !bytes.Contains(content, []byte("priorityandfairness")) || !bytes.Contains(content, []byte(printedID(t, stderr))) {
		t.Errorf("no page of this trace: %d bytes, %v", len(content), err)
	}

	stdout, stderr := run(t, 0, command(t, append([]string{"trace", "-o", "json"}, get...)...))
	var document struct {
		Schema   string
		Sections []struct {
			Trace struct {
				ID    string `json:"trace_id"`
				Spans []struct{ Service string }
			}
		}
	}
	if err := json.NewDecoder(strings.NewReader(stderr)).Decode(&document); err != nil {
		t.Fatalf("stderr does not begin with JSON: %v\n%s", err, stderr)
	}
	if trace := document.Sections[0].Trace; trace.ID != printedID(t, stderr) || len(trace.Spans) < 3 || strings.Contains(stdout, "schema") {
		t.Errorf("the JSON holds trace %s with %d spans", trace.ID, len(trace.Spans))
	}
}

// Only members of two groups have one trace of it. Nobody waits for what cannot come.
func TestAUserWhoseTraceIsOnlyLinkedWaitsForNothing(t *testing.T) {
	kubeconfig, err := shared.User("alice", "developers")
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(t, "trace", "-o", "tree", "--", shared.kubectl, "auth", "whoami")
	cmd.Env = append(cmd.Env, "KUBECONFIG="+kubeconfig)
	_, stderr := run(t, 0, cmd)
	lineWith(t, stderr, "it makes a trace of its own that links to this one")
	if strings.Contains(stderr, "after 3s") {
		t.Errorf("it waited:\n%s", stderr)
	}
}

func TestShowDrawsAnyTraceOfTheStore(t *testing.T) {
	t.Cleanup(func() { story.Kubectl(t, shared.Cluster, "delete", "configmap/shown", "--ignore-not-found") })
	_, stderr := run(t, 0, command(t, "trace", "-o", "tree", "--", shared.kubectl, "create", "configmap", "shown"))
	id := printedID(t, stderr)
	stamp := story.Kubectl(t, shared.Cluster, "get", "configmap/shown", "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`)
	for _, name := range []string{id, strings.ToUpper(id), stamp} {
		stdout, stderr := run(t, 0, command(t, "show", name))
		if stderr != "" {
			t.Errorf("stderr: %s", stderr)
		}
		if !strings.HasPrefix(stdout, "trace "+id+" · ") {
			t.Errorf("%s is drawn as\n%s", name, stdout)
		}
		lineWith(t, stdout, "mutate trace-context")
		lineWith(t, stdout, " filters ")
	}
	stdout, _ := run(t, 0, command(t, "show", id, "-o", "json"))
	if !json.Valid([]byte(stdout)) {
		t.Errorf("no JSON: %s", stdout)
	}
	_, stderr = run(t, 1, command(t, "show", strings.Repeat("ab", 16)))
	if !strings.Contains(stderr, "is not in the store: either nothing of it was exported there") {
		t.Errorf("of an unknown trace it says %q", stderr)
	}
}
