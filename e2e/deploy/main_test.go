// Package deploy tests what is in deploy/ on a real API server: everything renders, is accepted without a
// warning, changes nothing when it is applied again, gives the rights that are needed and no others, and goes away again.
package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

const namespace = "tracehook-system"

// shared is the cluster of all tests: real controllers, no nodes, and the custom resource definitions of
// cert-manager and the Prometheus operator.
var shared struct {
	*cluster.Cluster
	clients *kubernetes.Clientset
	deploy  string // the directory
	certDir string // a serving pair, and …
	bundle  []byte // … the CA that vouches for it
}

func TestMain(m *testing.M) {
	os.Exit(story.Run(m, cluster.Options{Controllers: true, NoTraces: true}, prepare))
}

func prepare(ctx context.Context, c *cluster.Cluster) (err error) {
	shared.Cluster = c
	if shared.deploy, err = filepath.Abs("../../deploy"); err != nil {
		return err
	}
	config := rest.CopyConfig(shared.RESTConfig)
	config.QPS = -1
	if shared.clients, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	definitions, err := definitions(ctx)
	if err != nil {
		return err
	}
	args := []string{"create", "--validate=warn"} // too large for the annotation of `apply`; 1.28 lacks a field of theirs that nobody here needs
	for _, file := range definitions {
		args = append(args, "-f", file)
	}
	if _, err := shared.Kubectl(ctx, args...); err != nil {
		return err
	}
	if _, err := shared.Kubectl(ctx, "wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"); err != nil {
		return err
	}
	tracehook, err := shared.Binary("tracehook")
	if err != nil {
		return err
	}
	shared.certDir = filepath.Join(shared.Dir, "serving-certs")
	if out, err := exec.CommandContext(ctx, tracehook, "certs", "issue", "--service", namespace+"/tracehook", "--output-dir", shared.certDir).CombinedOutput(); err != nil {
		return fmt.Errorf("run tracehook certs issue: %w: %s", err, out)
	}
	shared.bundle, err = os.ReadFile(filepath.Join(shared.certDir, "ca.crt"))
	return err
}

// definitions are the files of cert-manager and the Prometheus operator that define what our manifests use, from their
// Go modules at the versions that ../controlplane/crds pins.
func definitions(ctx context.Context) (files []string, err error) {
	for module, names := range map[string][]string{
		"github.com/cert-manager/cert-manager": {
			"deploy/crds/cert-manager.io_certificates.yaml", "deploy/crds/cert-manager.io_issuers.yaml",
		},
		"github.com/prometheus-operator/prometheus-operator": {
			"example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
			"example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
			"example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
		},
	} {
		cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module)
		cmd.Dir = "../controlplane/crds"
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("fetch %s: %w: %s", module, err, out)
		}
		var downloaded struct{ Dir string }
		if err := json.Unmarshal(out, &downloaded); err != nil {
			return nil, fmt.Errorf("fetch %s: %w", module, err)
		}
		for _, name := range names {
			files = append(files, filepath.Join(downloaded.Dir, filepath.FromSlash(name)))
		}
	}
	return files, nil
}

func mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	return story.Kubectl(t, shared.Cluster, args...)
}

// kubectlAs runs kubectl as whoever the kubeconfig is for, and returns all that it wrote.
func kubectlAs(t *testing.T, kubeconfig, stdin string, args ...string) (output string, err error) {
	t.Helper()
	path, err := shared.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(story.Within(t, time.Minute), path, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + shared.Dir, "KUBECONFIG=" + kubeconfig}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &out
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run kubectl: %v", err)
	}
	return out.String(), err
}

// eventually asks until there is no complaint, and fails with the last one.
func eventually(t *testing.T, limit time.Duration, ask func(context.Context) error) {
	t.Helper()
	story.Eventually(t, limit, 100*time.Millisecond, ask)
}

func write(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
