// Package release tests the Helm chart in deploy/chart on a real API server, with Helm 3 and Helm 4: a release is installed, upgraded, rolled
// back and uninstalled. e2e/chart tests what the chart renders, e2e/nodes runs it as Pods.
package release

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

const namespace = "tracehook-system"

// shared is the cluster of all tests: real controllers, no nodes.
var shared struct {
	*cluster.Cluster
	clients *kubernetes.Clientset
	deploy  string // the directory
	chart   string // deploy/chart
}

func TestMain(m *testing.M) {
	os.Exit(story.Run(m, cluster.Options{Controllers: true, NoTraces: true}, prepare))
}

func prepare(_ context.Context, c *cluster.Cluster) (err error) {
	shared.Cluster = c
	if shared.deploy, err = filepath.Abs("../../../deploy"); err != nil {
		return err
	}
	shared.chart = filepath.Join(shared.deploy, "chart")
	shared.clients, err = kubernetes.NewForConfig(c.RESTConfig)
	return err
}

// versions are the Helms that are in use.
var versions = []string{"helm3", "helm4"}

// helm runs Helm as a member of system:masters and returns stdout, and stderr as the error's text.
func helm(ctx context.Context, version string, args ...string) (string, error) {
	path, err := shared.Binary(version)
	if err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	// Nothing of the developer's own: no repositories, plugins, kubeconfig.
	home := filepath.Join(shared.Dir, version)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "KUBECONFIG=" + shared.Kubeconfig}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("run %s %s: %w: %s", version, strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

func mustHelm(t *testing.T, version string, args ...string) string {
	t.Helper()
	out, err := helm(story.Within(t, 2*time.Minute), version, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return story.Kubectl(t, shared.Cluster, args...)
}

// values writes values to a file.
func values(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
