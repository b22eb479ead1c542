package show

import (
	"bufio"
	"bytes"
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

// enter does what a browser does with the address, and returns the page.
func enter(t *testing.T, address string) (page string, client *http.Client) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client = &http.Client{Jar: jar}
	read(t, client, address)
	base, _, _ := strings.Cut(address, "?")
	return read(t, client, base), client
}

func read(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return string(body)
}

// visit is enter, and stays until it leaves.
func visit(t *testing.T, address string) (page string, leave func()) {
	t.Helper()
	page, client := enter(t, address)
	base, _, _ := strings.Cut(address, "?")
	resp, err := client.Get(base + "events") //nolint:bodyclose // leave closes it
	if err != nil {
		t.Fatal(err)
	}
	return page, func() { _ = resp.Body.Close() }
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
		"trace":                     {[]string{"trace", "--open", "--", shared.kubectl, "get", "configmaps", "-o", "name"}, 0, "<title>kubectl get</title>"},
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

// While it follows, the page has what it follows, and hears of the end.
func TestThePageOfAFollowedCommandIsLive(t *testing.T) {
	deleted(t, "pod/watched")
	variable, address := fakeBrowser(t)
	cmd := command(t, "trace", "--open", "--follow", "--follow-timeout=5s", "--", shared.kubectl, "run", "watched", "--image=nowhere:1")
	cmd.Env = append(cmd.Env, variable)
	var stderr output
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	base, _, _ := strings.Cut(address(), "?")
	first, client := enter(t, address())
	if !strings.Contains(first, "kubectl run") {
		t.Errorf("the first page is %.300s", first)
	}
	resp, err := client.Get(base + "events")
	if err != nil {
		t.Fatal(err)
	}
	var heard []string
	for events := bufio.NewScanner(resp.Body); events.Scan(); {
		if text, found := strings.CutPrefix(events.Text(), "data: "); found {
			heard = append(heard, text)
			if strings.Contains(text, "this is all of it") {
				break
			}
		}
	}
	all := strings.Join(heard, "\n")
	if !strings.Contains(all, "0 of 1 ready") || !strings.Contains(all, "Pod watched (Unschedulable: ") || !strings.Contains(all, ") is not ready: context deadline exceeded (after 5s); this is all of it") {
		t.Errorf("the page hears\n%s", all)
	}
	if page := read(t, client, base); !strings.Contains(page, "<dt>Pod watched</dt>") || !strings.Contains(page, "Create etcd3") {
		t.Errorf("the last page has not all: %.500s", page)
	}
	resp.Body.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended with %v, want the command's 0\n%s", err, &stderr)
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
	page, leave := visit(t, match[1])
	defer leave()
	if !strings.Contains(page, id) {
		t.Error("another page")
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 0 {
		t.Errorf("after Ctrl-C the exit code is %d\n%s", got, &stderr)
	}
	if resp, err := http.Get(match[1]); err == nil {
		_ = resp.Body.Close()
		t.Error("the page is still served")
	}
}
