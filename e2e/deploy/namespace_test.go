package deploy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

const elsewhere = "observability"

// The manual's two ways to install into another namespace, for each overlay: they build, nothing names the old namespace, the API server
// takes them, and the real controllers make the pods.
func TestEachOverlayInstallsIntoAnotherNamespace(t *testing.T) {
	overlays, err := os.ReadDir(filepath.Join(shared.deploy, "overlays"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustKubectl(t, "delete", "namespace", elsewhere, "--ignore-not-found") })
	for _, overlay := range overlays {
		t.Run(overlay.Name(), func(t *testing.T) {
			text := documented(t, "README.md", "namespace: observability\nresources: [deploy/overlays/split]")
			if overlay.Name() == "cert-manager" {
				text = documented(t, "README.md", "namespace: observability\nresources: [deploy/overlays/cert-manager]")
			}
			path := render(t, strings.Replace(text, "overlays/split", "overlays/"+overlay.Name(), 1))
			rendered, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(rendered)) {
				if strings.Contains(line, namespace) {
					t.Errorf("it still says %s", line)
				}
			}
			t.Cleanup(func() { uninstall(t, path) })
			mustKubectl(t, "apply", "--warnings-as-errors", "-f", path)
			if changed, err := shared.Kubectl(t.Context(), "diff", "-f", path); err != nil {
				t.Errorf("applied again, it would change: %v\n%s", err, changed)
			}
			wantPods(t, elsewhere)
			if overlay.Name() == "cert-manager" {
				for query, want := range map[string]string{
					`mutatingwebhookconfiguration/tracehook {.metadata.annotations.cert-manager\.io/inject-ca-from}`: "observability/tracehook",
					`certificate/tracehook {.spec.dnsNames}`:                                                         `["tracehook","tracehook.observability","tracehook.observability.svc","tracehook.observability.svc.cluster.local"]`,
				} {
					object, field, _ := strings.Cut(query, " ")
					if got := mustKubectl(t, "-n", elsewhere, "get", object, "-o", "jsonpath="+field); got != want {
						t.Errorf("%s is %s, want %s", query, got, want)
					}
				}
			}
		})
	}
}

// As TestTracehookMakesItsOwnCertificatesWithTheRightsOfItsServiceAccounts, elsewhere: certificates, calls, proofs, and what the policy allows.
func TestTracehookWorksInAnotherNamespace(t *testing.T) {
	ctx := story.Within(t, 2*time.Minute)
	ports, err := cluster.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		uninstall(t, render(t, "namespace: observability\nresources: [deploy/overlays/local]\ncomponents: [deploy/components/certs-authority]\n"))
		mustKubectl(t, "delete", "namespace", elsewhere, "--ignore-not-found")
	})
	mustKubectl(t, "apply", "-f", filepath.Join(shared.deploy, "base", "namespace.yaml")) // for the harness' barrier
	if err := shared.InstallWebhookWith(ctx, cluster.InstallOptions{Port: ports[0], Namespace: elsewhere, Components: []string{"certs-authority"}}); err != nil {
		t.Fatal(err)
	}
	authority, err := shared.StartTracehook(ctx, cluster.TracehookOptions{
		Name: "authority-elsewhere", Namespace: elsewhere, ServiceAccount: "tracehook-authority",
		Args: []string{"certs", "authority", "--health-probe-bind-address=0", "--metrics-bind-address=0",
			"--api-server=" + shared.First().URL, fmt.Sprintf("--service=tracehook:%d", ports[0]), "--rotation-soak=1s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = authority.Stop() })
	webhook, err := shared.StartWebhook(ctx, cluster.WebhookOptions{Name: "tracehook-elsewhere", Namespace: elsewhere, Port: ports[0], Args: []string{"--certs=secret", "--stamp=always"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = webhook.Stop() })
	stamp := func(ctx context.Context, namespace string) (string, error) {
		return shared.Kubectl(ctx, "-n", namespace, "create", "configmap", "called", "--dry-run=server", "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`)
	}
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		found, err := stamp(ctx, "default")
		if err == nil && found == "" {
			err = errors.New("the object is not stamped")
		}
		return err
	})
	if own, err := stamp(ctx, elsewhere); err != nil || own != "" {
		t.Errorf("it is called for its own namespace: %q, %v", own, err)
	}
	tracehook, err := shared.Binary("tracehook")
	if err != nil {
		t.Fatal(err)
	}
	rotate := exec.CommandContext(ctx, tracehook, "certs", "rotate", "--ca", "--namespace", elsewhere, "--timeout=60s", "--kubeconfig", shared.Kubeconfig)
	if out, err := rotate.CombinedOutput(); err != nil {
		t.Errorf("certs rotate --ca: %v\n%s", err, out)
	}
	if !policies() {
		return
	}
	kubeconfig, err := shared.User("system:serviceaccount:"+elsewhere+":tracehook-authority", "system:authenticated")
	if err != nil {
		t.Fatal(err)
	}
	_, err = change(ctx, clientsOf(t, kubeconfig), "tracehook", types.JSONPatchType, startAttacker(t).patch(), metav1.DryRunAll)
	if by := refusedBy(err); by != "policy" {
		t.Errorf("the attack from there is refused by %s, want policy", by)
	}
}
