// Package mtls tests how `tracehook serve` deals with certificates that are not its own: those of its
// callers, and those that it finds in the cluster. On real API servers, one of which shows client certificates.
package mtls

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// shared is what all tests use.
var shared struct {
	*cluster.Cluster
	tracehook string // path of the binary
}

func TestMain(m *testing.M) { os.Exit(story.Run(m, cluster.Options{NoTraces: true}, prepare)) }

func prepare(ctx context.Context, c *cluster.Cluster) (err error) {
	shared.Cluster = c
	if shared.tracehook, err = c.Binary("tracehook"); err != nil {
		return err
	}
	_, err = c.Kubectl(ctx, "create", "namespace", "tracehook-system")
	return err
}

func mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	return story.Kubectl(t, shared.Cluster, args...)
}

// apply stores manifests, and removes them at the end of the test.
func apply(t *testing.T, manifests string) {
	t.Helper()
	file := t.TempDir() + "/manifests.yaml"
	if err := os.WriteFile(file, []byte(manifests), 0o600); err != nil {
		t.Fatal(err)
	}
	mustKubectl(t, "apply", "--server-side", "-f", file)
	t.Cleanup(func() { mustKubectl(t, "delete", "--ignore-not-found", "-f", file) })
}

// run runs the built tracehook as a member of system:masters.
func run(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(story.Within(t, 2*time.Minute), shared.tracehook, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+shared.Kubeconfig)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func get(t *testing.T, client *http.Client, url, token string) (code int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(page)
}

// eventually waits until ok has no complaint; what it complains of last is in the failure.
func eventually(t *testing.T, limit time.Duration, ok func() string) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		complaint := ok()
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %s", limit, complaint)
		}
	}
}
