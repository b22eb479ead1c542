// Package hostile tests that nothing that anybody sends ends `tracehook serve`, holds others up or blinds it: the built
// binary, in as much memory as it is shipped with. It needs no cluster.
package hostile

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/certificates"
	"github.com/tracehook/tracehook/e2e/internal/flood"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// shippedMemory is the limit of deploy/base.
const shippedMemory = 128 << 20

func TestMain(m *testing.M) {
	story.Unexport()
	if name := os.Getenv("HOSTILE_ATTACK"); name != "" { // see attackFrom
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		fmt.Println(flood.Attacks()[name](ctx, flood.Target{Webhook: os.Getenv("HOSTILE_WEBHOOK"), Probes: os.Getenv("HOSTILE_HEALTH"), Within: 10 * time.Second}))
		return
	}
	os.Exit(m.Run())
}

// attackFrom attacks from a process of its own, with another processor than the server where that can be said: what the attacker
// does to itself is nothing that the others should feel.
func attackFrom(ctx context.Context, name string, s *server) string {
	cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "19"}, onProcessor(0, os.Args[0])...)...)
	cmd.Env = append(os.Environ(), "HOSTILE_ATTACK="+name, "HOSTILE_WEBHOOK="+s.webhook, "HOSTILE_HEALTH="+s.health)
	dieWithParent(cmd)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %.500s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// onProcessor is the command line that runs on one processor, if there are two.
func onProcessor(n int, command ...string) []string {
	if taskset, err := exec.LookPath("taskset"); err == nil && runtime.NumCPU() > 1 {
		return append([]string{taskset, "-c", strconv.Itoa(n)}, command...)
	}
	return command
}

// binary is bin/tracehook, or another one to compare with.
func binary(t *testing.T) string {
	t.Helper()
	if other := os.Getenv("HOSTILE_BINARY"); other != "" {
		return other
	}
	path, err := filepath.Abs("../../bin/tracehook")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v (make build makes it)", err)
	}
	return path
}

// server is a process that serves.
type server struct {
	webhook, health, metrics string // addresses
	cmd                      *exec.Cmd
	log                      *lockedBuffer
	memory                   *memory
	ended                    chan struct{}
}

// start runs `serve` as it is shipped, but with files as certificates.
func start(t *testing.T, args ...string) *server {
	t.Helper()
	path := binary(t)
	dir := t.TempDir()
	if _, err := certificates.Issue(story.Within(t, time.Minute), path, "tracehook-system/tracehook", dir); err != nil {
		t.Fatal(err)
	}
	return startWith(t, dir, args...)
}

func startWith(t *testing.T, certs string, args ...string) *server {
	t.Helper()
	s := &server{webhook: freeAddress(t), health: freeAddress(t), metrics: freeAddress(t), log: new(lockedBuffer), ended: make(chan struct{})}
	s.memory = limitMemory(t, shippedMemory)
	args = append([]string{"serve", "--lineage=off", "--max-body-bytes=7340032", "--webhook-cert-path=" + certs, "--webhook-bind-address=" + s.webhook,
		"--health-probe-bind-address=" + s.health, "--metrics-bind-address=" + s.metrics}, args...)
	s.cmd = s.memory.command(onProcessor(runtime.NumCPU()-1, append([]string{binary(t)}, args...)...))
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	// A Collector that is not there: spans wait in the queue, the worst case.
	s.cmd.Env = append(os.Environ(), "GOMEMLIMIT=100MiB", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc")
	dieWithParent(s.cmd)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.ended
		if t.Failed() {
			t.Logf("log of serve:\n%.8000s", s.log)
		}
	})
	s.eventually(t, "ready", func() bool {
		status, _ := s.get("http://" + s.health + "/readyz")
		return status == http.StatusOK
	})
	return s
}

func (s *server) alive() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

func (s *server) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if !s.alive() {
			t.Fatalf("serve ended: %s", s.cmd.ProcessState)
		}
		if time.Now().After(deadline) {
			t.Fatalf("not %s after 30 s", what)
		}
	}
}

func (s *server) get(url string) (int, string) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

// refused is how many calls and connections were refused, by reason.
func (s *server) refused(t *testing.T) map[string]int {
	t.Helper()
	status, page := s.get("http://" + s.metrics + "/metrics")
	if status != http.StatusOK {
		t.Errorf("/metrics: %d %.200s", status, page)
	}
	refused := map[string]int{}
	for _, line := range regexp.MustCompile(`(?m)^tracehook_(?:admission_duration_seconds_count|admission_connections_refused_total|tls_handshake_failures_total)\{(.*)\} (\S+)$`).FindAllStringSubmatch(page, -1) {
		reason := regexp.MustCompile(`error_type="([^"]*)"`).FindStringSubmatch(line[1])
		if n, err := strconv.ParseFloat(line[2], 64); err == nil && n > 0 && reason != nil {
			refused[reason[1]] += int(n)
		}
	}
	return refused
}

// peak is the most memory that the process has used, in MiB.
func (s *server) peak() string {
	return fmt.Sprintf("%.0f MiB", float64(s.memory.peak(s.cmd.Process.Pid))/(1<<20))
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// memory is what a process may have.
type memory struct {
	group string // directory of its cgroup; empty: there is none, and nothing enforces the limit
	used  string // file in it
}

// limitMemory makes a cgroup where that can be done.
func limitMemory(t *testing.T, limit int) *memory {
	t.Helper()
	for _, kind := range []struct{ root, limit, used string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"}, // version 1
		{"/sys/fs/cgroup", "memory.max", "memory.peak"},
	} {
		group := filepath.Join(kind.root, fmt.Sprintf("tracehook-hostile-%d-%d", os.Getpid(), time.Now().UnixNano()))
		if os.Mkdir(group, 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			for deadline := time.Now().Add(10 * time.Second); os.Remove(group) != nil && time.Now().Before(deadline); {
				time.Sleep(50 * time.Millisecond)
			}
		})
		if os.WriteFile(filepath.Join(group, kind.limit), []byte(strconv.Itoa(limit)), 0o644) == nil {
			return &memory{group, filepath.Join(group, kind.used)}
		}
	}
	t.Log("no cgroup can be made here: the limit is not enforced, only looked at")
	return &memory{}
}

// command runs in the cgroup from its beginning.
func (m *memory) command(line []string) *exec.Cmd {
	if m.group == "" {
		return exec.Command(line[0], line[1:]...)
	}
	return exec.Command("/bin/sh", append([]string{"-c", `echo $$ > "$0/cgroup.procs" && exec "$@"`, m.group}, line...)...)
}

func (m *memory) peak(pid int) int64 {
	if m.group != "" {
		text, _ := os.ReadFile(m.used)
		n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return n
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if peak := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status); peak != nil {
		n, _ := strconv.ParseInt(string(peak[1]), 10, 64)
		return n << 10
	}
	return 0
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
