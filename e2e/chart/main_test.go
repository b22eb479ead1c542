// Package chart tests what the Helm chart in deploy/chart renders with Helm 3 and Helm 4: the same as kustomize, and what values say; wrong
// values are refused. It needs no cluster.
package chart

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

	"sigs.k8s.io/yaml"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

const namespace = "tracehook-system"

// versions are the Helms that are in use, as bin/ has them.
var versions = []string{"helm3", "helm4"}

// deploy is the directory, and chart that in it.
var deploy, chart = filepath.Join("..", "..", "deploy"), filepath.Join("..", "..", "deploy", "chart")

// run runs a program of bin/ with nothing of the developer's own: no repositories, plugins, kubeconfig. It returns stdout, and stderr as the
// error's text.
func run(ctx context.Context, program string, args ...string) (string, error) {
	path, err := filepath.Abs(filepath.Join("..", "..", "bin", program))
	if err != nil {
		return "", err
	}
	home, err := os.MkdirTemp("", "helm-home-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(home)
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("run %s %s: %w: %s", program, strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

func mustRun(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := run(story.Within(t, 2*time.Minute), program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
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

func readYAML(t *testing.T, path string) (content map[string]any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = yaml.Unmarshal(text, &content)
	}
	if err != nil {
		t.Fatal(err)
	}
	return content
}
