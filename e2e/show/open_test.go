package show

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

// fakeBrowser is a program for BROWSER that keeps the address it gets.
func fakeBrowser(t *testing.T) (variable string, address func() string) {
	t.Helper()
	dir := t.TempDir()
	program, file := filepath.Join(dir, "browser"), filepath.Join(dir, "address")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nprintf %s \"$1\" > "+file+".new && mv "+file+".new "+file+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return "BROWSER=no-such-browser:" + program, func() string {
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if text, err := os.ReadFile(file); err == nil {
				return string(text)
			}
		}
		t.Fatal("no browser was started")
		return ""
	}
}

// visit does what a browser does with the address, and returns the page and what closes it.
func visit(t *testing.T, address string) (page string, leave func()) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Jar: jar}
	base, _, _ := strings.Cut(address, "?")
	for _, url := range []string{address, base} {
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", url, resp.Status, err)
		}
		page = string(body)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return page, func() { resp.Body.Close(); cancel() }
}

// output is a buffer that a process writes and a test reads.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func TestOpenShowsThePageInTheBrowserUntilItIsClosed(t *testing.T) {
	for name, c := range map[string]struct {
		args     []string
		exitCode int
		want     string
	}{
		"trace":                     {[]string{"trace", "--open", "--", shared.kubectl, "get", "configmaps", "-o", "name"}, 0, "priorityandfairness"},
		"a command that has failed": {[]string{"trace", "--open", "--", shared.kubectl, "get", "configmap/not-there"}, 1, "<title>kubectl get</title>"},
	} {
		t.Run(name, func(t *testing.T) {
			variable, address := fakeBrowser(t)
			cmd := command(t, c.args...)
			cmd.Env = append(cmd.Env, variable)
			var stderr output
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			page, leave := visit(t, address())
			if !strings.Contains(page, c.want) || !strings.Contains(page, `data-live="/events"`) || !strings.Contains(page, shared.JaegerURL+"/trace/") {
				t.Errorf("the page is\n%.500s", page)
			}
			leave()
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != c.exitCode {
				t.Errorf("exit code %d, want the command's %d\n%s", got, c.exitCode, &stderr)
			}
			lineWith(t, stderr.String(), "tracehook: the page is in your browser, until you close it or press Ctrl-C")
		})
	}
}

func TestWithoutABrowserTheAddressIsPrintedAndCtrlCEndsThePage(t *testing.T) {
	_, printed := run(t, 0, command(t, "trace", "--", shared.kubectl, "get", "configmaps", "-o", "name"))
	id := printedID(t, printed)
	// The trace may still be on its way.
	for deadline := time.Now().Add(30 * time.Second); command(t, "show", id).Run() != nil; {
		if time.Now().After(deadline) {
			t.Fatal("the trace has not arrived")
		}
	}
	cmd := exec.CommandContext(story.Within(t, time.Minute), shared.tracehook, "show", id, "-o", "none", "--open")
	cmd.Env = append(os.Environ(), store(), "BROWSER=false")
	var stderr output
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	at := regexp.MustCompile(`(?m)^tracehook: no browser has opened it; it is at (http://127\.0\.0\.1:[0-9]+/\?token=\S+)$`)
	var match []string
	for deadline := time.Now().Add(30 * time.Second); match == nil && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		match = at.FindStringSubmatch(stderr.String())
	}
	if match == nil {
		t.Fatalf("no address:\n%s", &stderr)
	}
	if page, _ := visit(t, match[1]); !strings.Contains(page, id) {
		t.Error("another page")
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 0 {
		t.Errorf("after Ctrl-C the exit code is %d\n%s", got, &stderr)
	}
	if _, err := http.Get(match[1]); err == nil {
		t.Error("the page is still served")
	}
}
