package deploy

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// installFile is install.yaml, or on versions that lack a kind in it what COMPATIBILITY.md has instead.
func installFile(t *testing.T) (path string) {
	t.Helper()
	if !policies() {
		return kustomization(t, "overlays/split")
	}
	return filepath.Join(shared.deploy, "install.yaml")
}

// testdata/previous.yaml is overlays/files of the release before this one, rendered; as long as there is none, an earlier state of it.
func TestAnUpgradeKeepsTheBundleAndTheDeployment(t *testing.T) {
	mustKubectl(t, "apply", "-f", filepath.Join(shared.deploy, "base", "namespace.yaml"))
	t.Cleanup(func() {
		uninstall(t, "testdata/previous.yaml")
		uninstall(t, installFile(t))
	})
	mustKubectl(t, "apply", "-f", "testdata/previous.yaml")
	// As `tracehook certs issue` says.
	mustKubectl(t, "patch", "mutatingwebhookconfiguration/tracehook", "--type=json", "-p",
		`[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":"`+base64Bundle()+`"}]`)
	uid := mustKubectl(t, "-n", namespace, "get", "deployment/tracehook", "-o", "jsonpath={.metadata.uid}")

	for _, step := range []struct {
		name, path string
		args       []string
		volumes    int
	}{
		{"with the certificate by hand, as before", kustomization(t, "overlays/files"),
			[]string{"serve", "--shutdown-delay=10s", "--metrics-secure", "--metrics-auth", "--webhook-configuration=tracehook"}, 1},
		{"with certificates of its own making", installFile(t),
			[]string{"serve", "--shutdown-delay=10s", "--metrics-secure", "--metrics-auth", "--certs=secret"}, 0},
		{"in one Deployment", kustomization(t, "overlays/managed"),
			[]string{"serve", "--shutdown-delay=10s", "--metrics-secure", "--metrics-auth", "--certs=managed"}, 0},
		{"and back", kustomization(t, "overlays/files"),
			[]string{"serve", "--shutdown-delay=10s", "--metrics-secure", "--metrics-auth", "--webhook-configuration=tracehook"}, 1},
	} {
		t.Run(step.name, func(t *testing.T) {
			mustKubectl(t, "apply", "--warnings-as-errors", "-f", step.path)
			if changed, err := shared.Kubectl(t.Context(), "diff", "-f", step.path); err != nil {
				t.Errorf("applied again, it would change: %v\n%s", err, changed)
			}
			d, err := shared.clients.AppsV1().Deployments(namespace).Get(t.Context(), "tracehook", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			pod := d.Spec.Template.Spec
			if !slices.Equal(pod.Containers[0].Args, step.args) || len(pod.Volumes) != step.volumes || len(pod.Containers[0].VolumeMounts) != step.volumes {
				t.Errorf("args %q, volumes %v, mounts %v", pod.Containers[0].Args, pod.Volumes, pod.Containers[0].VolumeMounts)
			}
			if string(d.UID) != uid {
				t.Error("the Deployment was made anew")
			}
			if bundle := mustKubectl(t, "get", "mutatingwebhookconfiguration/tracehook", "-o", "jsonpath={.webhooks[0].clientConfig.caBundle}"); bundle != base64Bundle() {
				t.Errorf("the bundle is %q", bundle)
			}
		})
	}
}

// First the namespace alone, which is the usual mistake; then as deploy/README.md has it. At no time is anybody's request refused,
// and what is left are annotations.
func TestAfterTheUninstallNothingIsLeftThatBlocksTheAPI(t *testing.T) {
	webhook := serve(t, "certs-authority", "env-injection", "custom-resources")
	makeNamespace(t, "stamped")
	mustKubectl(t, "-n", "stamped", "create", "deployment", "web", "--image=app:1")
	mustKubectl(t, "-n", "stamped", "wait", "--for=jsonpath={.status.replicas}=1", "deployment/web", "--timeout=30s") // nobody makes more of it later
	stamp := func() string {
		return mustKubectl(t, "-n", "stamped", "get", "deployment/web", "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`)
	}
	before := stamp()
	if before == "" {
		t.Fatal("the Deployment is not stamped")
	}

	mustKubectl(t, "delete", "namespace", namespace)
	if _, err := webhook.Stop(); err != nil { // as its pods would
		t.Fatal(err)
	}
	counted, err := shared.Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustKubectl(t, "-n", "stamped", "create", "configmap", "without-the-service")
	after, err := shared.Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := after.Sub(counted); d.FailOpen != 1 || d.Rejections != 0 {
		t.Errorf("without the namespace the API server counted %+v, want 1 call that failed open", d)
	}

	mustKubectl(t, "delete", "--ignore-not-found", "-f", installFile(t))
	kinds := "mutatingwebhookconfigurations,validatingwebhookconfigurations,clusterroles,clusterrolebindings," +
		"roles,rolebindings,services,deployments,secrets,configmaps,leases,networkpolicies,serviceaccounts"
	if policies() {
		kinds += ",validatingadmissionpolicies,validatingadmissionpolicybindings"
	}
	left := mustKubectl(t, "get", kinds, "-A", "-o", "name")
	for _, name := range strings.Fields(left) {
		if strings.Contains(name, "tracehook") {
			t.Errorf("left behind: %s", name)
		}
	}
	// The API server acts on that a moment later.
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		earlier, err := shared.Counters(ctx)
		if err != nil {
			return err
		}
		if _, err := shared.Kubectl(ctx, "-n", "stamped", "create", "configmap", "probe", "--dry-run=server"); err != nil {
			return err
		}
		now, err := shared.Counters(ctx)
		if err == nil && now.Sub(earlier).RequestTotal > 0 {
			err = fmt.Errorf("the webhook is still called")
		}
		return err
	})

	// What is on objects stays, and is in nobody's way.
	mustKubectl(t, "-n", "stamped", "set", "image", "deployment/web", "app=app:2")
	mustKubectl(t, "-n", "stamped", "scale", "deployment/web", "--replicas=2")
	if now := stamp(); now != before {
		t.Errorf("the stamp was %q and is %q", before, now)
	}
	mustKubectl(t, "-n", "stamped", "delete", "deployment/web")
}
