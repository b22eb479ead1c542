//go:build linux

package nodes

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

// A new user's way with Helm: install with a provider's preset, see that it works, have a Deployment explained, upgrade, uninstall.
func TestANewUserInstallsTheChartSeesThatItWorksUpgradesAndUninstalls(t *testing.T) {
	collectorOnHost(t)
	t.Cleanup(func() { uninstall(t) })
	chart := filepath.Join(shared.root, "deploy", "chart")
	flags := []string{"--namespace", namespace, "--create-namespace", "--values", filepath.Join(chart, "values-gke.yaml"), "--wait", "--timeout=90s"}

	begin := time.Now()
	notes := helm(t, append([]string{"install", "tracehook", chart, "--set", "image.tag=previous"}, flags...)...)
	t.Logf("installed, all replicas Ready, after %.1fs", time.Since(begin).Seconds())
	command := regexp.MustCompile(`kubectl (label namespace \S+) (\S+) (\S+)`).FindStringSubmatch(notes)
	if command == nil {
		t.Fatalf("the notes name no labels for the namespace:\n%s", notes)
	}
	kubectl(t, append(strings.Fields(command[1]), command[2:]...)...)
	firstStamp(t)

	helm(t, append([]string{"upgrade", "tracehook", chart, "--set", "lifecycle.enabled=true"}, flags...)...)
	for _, name := range []string{"tracehook", "tracehook-authority", "tracehook-lifecycle"} {
		if image := kubectl(t, "-n", namespace, "get", "pods", "-l", "app.kubernetes.io/name="+name, "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].spec.containers[*].image}"); strings.Contains(image, "previous") && name != "tracehook" {
			t.Errorf("after the upgrade %s runs %s", name, image)
		}
	}
	log := helm(t, "test", "tracehook", "--namespace", namespace, "--logs", "--timeout=90s")
	if strings.Contains(log, "fail ") || !strings.Contains(log, "Phase:") || !strings.Contains(log, "Succeeded") {
		t.Errorf("helm test says\n%s", log)
	}

	id := traced(t, "create", "deployment", "by-helm", "--image="+workloadImage)
	t.Cleanup(func() { kubectl(t, "delete", "deployment/by-helm", "--grace-period=1") })
	kubectl(t, "rollout", "status", "deployment/by-helm", "--timeout=60s")
	story, err := tracehook(t, "explain", "deployment/by-helm", "--kubeconfig", shared.Kubeconfig)
	if err != nil || !strings.Contains(story, "Deployment by-helm exists because of") || !strings.Contains(story, id[:8]) {
		t.Errorf("explained, it is not due to trace %s: %v\n%s", id, err, story)
	}

	helm(t, "uninstall", "tracehook", "--namespace", namespace)
	if left := kubectl(t, "get", "mutatingwebhookconfigurations,clusterroles,clusterrolebindings,validatingadmissionpolicies", "-l", "app.kubernetes.io/part-of=tracehook", "-o", "name"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// helm runs Helm 4 as a member of system:masters, and returns what it wrote to stdout.
func helm(t *testing.T, args ...string) string {
	t.Helper()
	program, err := shared.Binary("helm4")
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(story.Within(t, 2*time.Minute), program, args...)
	cmd.Env = append(os.Environ(), "HOME="+filepath.Join(shared.Dir, "helm"), "KUBECONFIG="+shared.Kubeconfig)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(fmt.Errorf("run helm %s: %w\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String()))
	}
	return stdout.String()
}
