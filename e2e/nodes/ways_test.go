//go:build linux

package nodes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

func TestEveryWayToACertificateWorksAsPods(t *testing.T) {
	for _, way := range []struct {
		overlay     string
		deployments []string
		// bring is what the user brings after the manifests. Nil: nothing.
		bring func(*testing.T)
	}{
		{"overlays/managed", []string{"tracehook"}, nil},
		{"overlays/split", []string{"tracehook", "tracehook-authority"}, nil},
		{"overlays/files", []string{"tracehook"}, bringSecret},
		{"overlays/cert-manager", []string{"tracehook"}, bringSecret}, // the form of the Secret is the same; who writes it is not here
	} {
		t.Run(way.overlay, func(t *testing.T) {
			text := render(t, way.overlay)
			collectorOnHost(t)
			begin := time.Now()
			apply(t, text)
			if way.bring != nil {
				way.bring(t)
			}
			firstStamp(t)
			soon(t, begin)
			rolledOut(t, way.deployments...)
			t.Logf("all replicas Ready after %.1fs", time.Since(begin).Seconds())
			if way.bring == nil {
				proven(t)
				well(t)
			}
			audited(t)
		})
	}
}

// install applies an overlay with components, and returns when all runs.
func install(t *testing.T, overlay string, components ...string) {
	t.Helper()
	text := render(t, overlay, components...)
	collectorOnHost(t)
	apply(t, text)
	kubectl(t, "-n", namespace, "wait", "deployments", "--all", "--for=condition=Available", "--timeout=150s")
	firstStamp(t)
}

// render is an overlay with components, which is uninstalled after the test. Objects of kinds that this cluster does not know
// are left out: those of cert-manager and the Prometheus operator, whose parts others play here.
func render(t *testing.T, overlay string, components ...string) string {
	t.Helper()
	t.Cleanup(func() { uninstall(t) })
	dir, err := filepath.EvalSymlinks(filepath.Join(shared.Dir, "install"))
	if err != nil {
		t.Fatal(err)
	}
	deploy, err := filepath.Rel(dir, filepath.Join(shared.root, "deploy")) // kustomize takes no other
	if err != nil {
		t.Fatal(err)
	}
	release, err := released()
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [%s/%s]
images: [{name: kind.local/tracehook, newName: %s, newTag: %s}] # which ko would load
components:
`, deploy, overlay, tracehookImage, release)
	for _, component := range components {
		text += fmt.Sprintf("- %s/%s\n", deploy, component)
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var known []string
	for object := range strings.SplitSeq(kubectl(t, "kustomize", dir), "\n---\n") {
		if !strings.Contains(object, "apiVersion: cert-manager.io/") && !strings.Contains(object, "apiVersion: monitoring.coreos.com/") {
			known = append(known, object)
		}
	}
	return strings.Join(known, "\n---\n")
}

// soon wants the first stamp within 5 s of apply.
func soon(t *testing.T, begin time.Time) {
	t.Helper()
	took, limit := time.Since(begin), unlessBusy(t, 5*time.Second)
	t.Logf("from apply to the first stamped object: %.1fs", took.Seconds())
	if took > limit {
		t.Errorf("from apply to the first stamped object: %s, want %s at most", took, limit)
	}
}

// unlessBusy is a limit for a machine that does nothing else, and as much more as there are processes that want each processor.
func unlessBusy(t *testing.T, limit time.Duration) time.Duration {
	t.Helper()
	text, err := os.ReadFile("/proc/loadavg") // proc_loadavg(5)
	if err != nil {
		t.Fatal(err)
	}
	var load float64
	if _, err := fmt.Sscan(string(text), &load); err != nil {
		t.Fatal(err)
	}
	return time.Duration(float64(limit) * max(1, load/float64(runtime.NumCPU())))
}

// bringSecret issues a pair with our own tool, as a user with a PKI of their own does, and publishes its CA.
func bringSecret(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	if out, err := tracehook(t, "certs", "issue", "--service", namespace+"/tracehook", "--output-dir", dir); err != nil {
		t.Fatalf("tracehook certs issue: %v\n%s", err, out)
	}
	kubectl(t, "-n", namespace, "create", "secret", "tls", "tracehook-certs", "--cert="+filepath.Join(dir, "tls.crt"), "--key="+filepath.Join(dir, "tls.key"))
	bundle, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := shared.WriteCABundle(story.Within(t, patience), bundle); err != nil {
		t.Fatal(err)
	}
}

func TestTheAuditRunsAsAJob(t *testing.T) {
	install(t, "overlays/split", "components/audit")
	kubectl(t, "-n", namespace, "create", "job", "now", "--from=cronjob/tracehook-audit")
	kubectl(t, "-n", namespace, "wait", "job/now", "--for=condition=Complete", "--timeout=150s")
	if log := kubectl(t, "-n", namespace, "logs", "job/now"); !strings.Contains(log, "tracehook") {
		t.Errorf("the audit says\n%s", log)
	}
}

func TestReplicasThatAskForClientCertificatesCountThoseWithout(t *testing.T) {
	text := render(t, "overlays/split", "components/mtls")
	collectorOnHost(t)
	apply(t, text)
	dir := t.TempDir()
	if out, err := tracehook(t, "certs", "issue", "--service", namespace+"/anything", "--output-dir", dir); err != nil {
		t.Fatalf("tracehook certs issue: %v\n%s", err, out)
	}
	kubectl(t, "-n", namespace, "create", "configmap", "tracehook-client-ca", "--from-file="+filepath.Join(dir, "ca.crt"))
	rolledOut(t, "tracehook", "tracehook-authority")
	firstStamp(t) // observed, not enforced
	client := shared.clients.CoreV1().Pods(namespace)
	story.Eventually(t, patience, 200*time.Millisecond, func(ctx context.Context) error {
		for _, pod := range pods(t, "app.kubernetes.io/name=tracehook") {
			log, err := client.GetLogs(pod.Name, &corev1.PodLogOptions{}).DoRaw(ctx)
			if err == nil && strings.Contains(string(log), `"result":"no_certificate"`) {
				return nil
			}
		}
		return errors.New("no replica says that the API server shows no certificate")
	})
}
