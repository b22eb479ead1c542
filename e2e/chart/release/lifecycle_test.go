package release

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// From the chart as it was before to what is documented to be left of it. The real authority, as its ServiceAccount, writes caBundle and
// the proof's path; Helm leaves both alone, though nobody is there to write them again.
func TestAReleaseIsInstalledUpgradedRolledBackAndUninstalled(t *testing.T) {
	previous := previousChart(t)
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			before := everything(t)
			t.Cleanup(func() { cleanUp(t, version) })
			mustHelm(t, version, "install", "tracehook", previous, "--namespace", namespace, "--create-namespace")
			kubectl(t, "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
			written := byTheAuthority(t)
			uid := kubectl(t, "-n", namespace, "get", "deployment/tracehook", "-o", "jsonpath={.metadata.uid}")

			changed := values(t, "replicas: 3\ntimeoutSeconds: 2\nenvInjection: {enabled: true}\nlifecycle: {enabled: true}\nclusterName: one\n")
			mustHelm(t, version, "upgrade", "tracehook", shared.chart, "--namespace", namespace, "--values", changed)
			wantWritten(t, written)
			wantPods(t, map[string]int32{"tracehook": 3, "tracehook-authority": 2, "tracehook-lifecycle": 2})
			if webhooks := configuration(t, "tracehook").Webhooks; len(webhooks) != 2 || *webhooks[0].TimeoutSeconds != 2 {
				t.Errorf("the webhooks are not as the values say: %+v", webhooks)
			}

			mustHelm(t, version, "upgrade", "tracehook", shared.chart, "--namespace", namespace, "--values", changed) // the same again
			wantWritten(t, written)

			mustHelm(t, version, "rollback", "tracehook", "1", "--namespace", namespace)
			wantWritten(t, written)
			wantPods(t, map[string]int32{"tracehook": 2, "tracehook-authority": 2})
			if webhooks := configuration(t, "tracehook").Webhooks; len(webhooks) != 1 || *webhooks[0].TimeoutSeconds != 1 {
				t.Errorf("the webhooks are not as before: %+v", webhooks)
			}

			// Another way to a certificate takes away what only the old one had.
			mustHelm(t, version, "upgrade", "tracehook", shared.chart, "--namespace", namespace, "--set", "certs.mode=files")
			delete(written, "tracehook-proof")
			wantWritten(t, written)
			wantPods(t, map[string]int32{"tracehook": 2})
			for _, gone := range []string{"validatingadmissionpolicy/tracehook-authority", "mutatingwebhookconfiguration/tracehook-proof", "clusterrole/tracehook-authority"} {
				if found := kubectl(t, "get", gone, "--ignore-not-found"); found != "" {
					t.Errorf("it is still there: %s", found)
				}
			}
			mustHelm(t, version, "upgrade", "tracehook", shared.chart, "--namespace", namespace, "--set", "certs.mode=managed")
			wantWritten(t, written)
			if now := kubectl(t, "-n", namespace, "get", "deployment/tracehook", "-o", "jsonpath={.metadata.uid}"); now != uid {
				t.Error("the Deployment was made anew")
			}

			mustHelm(t, version, "uninstall", "tracehook", "--namespace", namespace)
			left := []string{
				"ConfigMap/tracehook-system/kube-root-ca.crt", "ServiceAccount/tracehook-system/default", "Namespace//tracehook-system",
				"Secret/tracehook-system/tracehook-ca", "Secret/tracehook-system/tracehook-certs", "Lease/tracehook-system/tracehook-certs",
			}
			slices.Sort(left)
			story.Eventually(t, 30*time.Second, 200*time.Millisecond, func(context.Context) error {
				if found := added(t, before); !slices.Equal(found, left) {
					return fmt.Errorf("left behind are %q, want %q", found, left)
				}
				return nil
			})
			manual, err := os.ReadFile(filepath.Join(shared.deploy, "README.md"))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"tracehook-ca", "tracehook-certs"} {
				if _, section, _ := strings.Cut(string(manual), "\nhelm uninstall "); !strings.Contains(section, "`"+name+"`") {
					t.Errorf("README.md does not say that %s is left behind", name)
				}
			}
		})
	}
}

// previousChart is the chart as it was committed before what is tested here, and of the first one this. As long as there is no release, that is
// what users come from.
func previousChart(t *testing.T) (dir string) {
	t.Helper()
	script := `
commit=HEAD
if [ -z "$(git status --porcelain)" ]; then commit=$(git rev-list --no-merges --max-count=2 HEAD | tail -n 1); fi
if ! git cat-file -e "$commit:deploy/chart" 2>/dev/null; then exit 3; fi
git archive "$commit" deploy/chart | tar -x -C "$1"`
	dir = t.TempDir()
	cmd := exec.CommandContext(t.Context(), "bash", "-o", "pipefail", "-c", script, "previousChart", dir)
	cmd.Dir = filepath.Dir(shared.deploy)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 3 {
		return shared.chart
	}
	if err != nil {
		t.Fatalf("take the last commit's chart: %v\n%s", err, out)
	}
	return filepath.Join(dir, "deploy", "chart")
}

// cleanUp uninstalls what a failed test has left, and removes the namespace.
func cleanUp(t *testing.T, version string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // not the test's: that is over
	defer cancel()
	if out, err := helm(ctx, version, "uninstall", "tracehook", "--namespace", namespace, "--ignore-not-found"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	kubectl(t, "delete", "namespace", namespace, "--ignore-not-found", "--timeout=50s")
}

func configuration(t *testing.T, name string) *admissionv1.MutatingWebhookConfiguration {
	t.Helper()
	found, err := shared.clients.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(story.Within(t, 10*time.Second), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// written is what others than Helm write into a configuration: the bundle, and of the proof the path.
type written struct{ bundle, path string }

// byTheAuthority runs the authority until both configurations have what it writes.
func byTheAuthority(t *testing.T) map[string]written {
	t.Helper()
	authority, err := shared.StartTracehook(story.Within(t, time.Minute), cluster.TracehookOptions{
		Name: "authority", ServiceAccount: "tracehook-authority",
		Args: []string{"certs", "authority", "--health-probe-bind-address=0", "--metrics-bind-address=0", "--api-server=" + shared.First().URL},
	})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]written{}
	story.Eventually(t, time.Minute, 100*time.Millisecond, func(context.Context) error {
		for _, name := range []string{"tracehook", "tracehook-proof"} {
			client := configuration(t, name).Webhooks[0].ClientConfig
			w := written{bundle: base64.StdEncoding.EncodeToString(client.CABundle)}
			if client.Service.Path != nil {
				w.path = *client.Service.Path
			}
			if w.bundle == "" || w.path == "" {
				return fmt.Errorf("MutatingWebhookConfiguration %s has bundle %q and path %q", name, w.bundle, w.path)
			}
			found[name] = w
		}
		return nil
	})
	if _, err := authority.Stop(); err != nil {
		t.Fatal(err)
	}
	for name := range found { // as it was when the authority ended
		client := configuration(t, name).Webhooks[0].ClientConfig
		found[name] = written{base64.StdEncoding.EncodeToString(client.CABundle), *client.Service.Path}
	}
	return found
}

func wantWritten(t *testing.T, want map[string]written) {
	t.Helper()
	for name, want := range want {
		client := configuration(t, name).Webhooks[0].ClientConfig
		got := written{bundle: base64.StdEncoding.EncodeToString(client.CABundle)}
		if client.Service.Path != nil {
			got.path = *client.Service.Path
		}
		if got != want {
			t.Errorf("MutatingWebhookConfiguration %s has %+v, want what was written into it: %+v", name, got, want)
		}
	}
}

// wantPods wants these Deployments and no others to have that many Pods, which wait for a node forever.
func wantPods(t *testing.T, want map[string]int32) {
	t.Helper()
	story.Eventually(t, 30*time.Second, 100*time.Millisecond, func(ctx context.Context) error {
		deployments, err := shared.clients.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		got := map[string]int32{}
		for _, d := range deployments.Items {
			got[d.Name] = d.Status.UpdatedReplicas
			if d.Status.ObservedGeneration != d.Generation {
				got[d.Name] = -1
			}
			for _, condition := range d.Status.Conditions {
				if condition.Type == "ReplicaFailure" {
					return fmt.Errorf("Deployment %s: %s", d.Name, condition.Message)
				}
			}
		}
		// Of a rollout whose Pods never get ready, only the surge is updated.
		for name, n := range got {
			if n >= 1 && n <= want[name] {
				got[name] = want[name]
			}
		}
		if !maps.Equal(got, want) {
			return fmt.Errorf("Deployments have %v Pods, want %v", got, want)
		}
		return nil
	})
	for name, replicas := range want {
		if got := kubectl(t, "-n", namespace, "get", "deployment/"+name, "-o", "jsonpath={.spec.replicas}"); got != fmt.Sprint(replicas) {
			t.Errorf("Deployment %s has %s replicas, want %d", name, got, replicas)
		}
	}
}

// everything is the kind, namespace and name of all that the cluster holds.
func everything(t *testing.T) map[string]bool {
	t.Helper()
	var kinds []string
	for kind := range strings.FieldsSeq(kubectl(t, "api-resources", "--verbs=list,delete", "-o", "name")) {
		if !strings.HasPrefix(kind, "events") {
			kinds = append(kinds, kind)
		}
	}
	found := map[string]bool{}
	for object := range strings.FieldsSeq(kubectl(t, "get", strings.Join(kinds, ","), "-A", "-o", `jsonpath={range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name}{"\n"}{end}`)) {
		found[object] = true
	}
	return found
}

// added is what there is now and was not before.
func added(t *testing.T, before map[string]bool) (names []string) {
	t.Helper()
	for name := range everything(t) {
		if !before[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Names are fixed: rights, policy and certificate are for these. So one cluster has one release, and Helm says so before it changes anything.
func TestASecondReleaseIsRefusedAndChangesNothing(t *testing.T) {
	t.Cleanup(func() {
		cleanUp(t, "helm4")
		kubectl(t, "delete", "namespace", "observability", "--ignore-not-found")
	})
	mustHelm(t, "helm4", "install", "tracehook", shared.chart, "--namespace", namespace, "--create-namespace")
	kubectl(t, "create", "namespace", "observability")
	before := kubectl(t, "get", "mutatingwebhookconfigurations,clusterroles,clusterrolebindings", "-l", "app.kubernetes.io/part-of=tracehook", "-o", "jsonpath={.items[*].metadata.resourceVersion}")
	for _, version := range versions {
		_, err := helm(story.Within(t, time.Minute), version, "install", "other", shared.chart, "--namespace", "observability")
		if err == nil || !strings.Contains(err.Error(), `annotation validation error: key "meta.helm.sh/release-name" must equal "other": current value is "tracehook"`) {
			t.Errorf("%s: %v, want it refused", version, err)
		}
	}
	if after := kubectl(t, "get", "mutatingwebhookconfigurations,clusterroles,clusterrolebindings", "-l", "app.kubernetes.io/part-of=tracehook", "-o", "jsonpath={.items[*].metadata.resourceVersion}"); after != before {
		t.Error("the first release was changed")
	}
	if deployments := kubectl(t, "-n", "observability", "get", "deployments", "-o", "name"); deployments != "" {
		t.Errorf("the second one made %s", deployments)
	}
}

func TestAReleaseHasAnotherNameAndNamespaceAndMayBringAPolicyForThem(t *testing.T) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, _ = helm(ctx, "helm4", "uninstall", "traces", "--namespace", "observability")
		kubectl(t, "delete", "namespace", "observability", "--ignore-not-found")
	})
	mustHelm(t, "helm4", "install", "traces", shared.chart, "--namespace", "observability", "--create-namespace")
	// What the policy allows and refuses there, as its own account: caBundle, and nothing else.
	authority := "--as=system:serviceaccount:observability:tracehook-authority"
	patch := func(op string) error {
		_, err := shared.Kubectl(story.Within(t, time.Minute), "patch", "mutatingwebhookconfiguration/tracehook", authority, "--type=json", "-p", op, "--dry-run=server")
		return err
	}
	if err := patch(`[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":"` + base64.StdEncoding.EncodeToString(bundle(t)) + `"}]`); err != nil {
		t.Errorf("the bundle: %v", err)
	}
	story.Eventually(t, 30*time.Second, 200*time.Millisecond, func(context.Context) error { // until the policy is in force
		if err := patch(`[{"op":"replace","path":"/webhooks/0/timeoutSeconds","value":9}]`); err == nil || !strings.Contains(err.Error(), "may change nothing of a webhook but clientConfig.caBundle") {
			return fmt.Errorf("something else: %s, want it refused by the policy", fmt.Sprint(err))
		}
		return nil
	})
}

// bundle is the certificate of a CA.
func bundle(t *testing.T) []byte {
	t.Helper()
	tracehook, err := shared.Binary("tracehook")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), tracehook, "certs", "issue", "--service", namespace+"/tracehook", "--output-dir", dir).CombinedOutput(); err != nil {
		t.Fatalf("tracehook certs issue: %v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// presets are the files for one kind of cluster each, and own-cni on top of EKS'.
func presets() map[string][]string {
	found := map[string][]string{}
	for _, name := range []string{"eks", "gke", "gke-autopilot", "aks", "openshift"} {
		found[name] = []string{"--values", filepath.Join(shared.chart, "values-"+name+".yaml")}
	}
	found["own-cni"] = append(slices.Clone(found["eks"]), "--values", filepath.Join(shared.chart, "values-own-cni.yaml"))
	return found
}

// A cluster takes each preset, and the Pods that the real controllers make of it.
func TestEachPresetInstalls(t *testing.T) {
	for name, args := range presets() {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() { cleanUp(t, "helm4") })
			mustHelm(t, "helm4", append([]string{"install", "tracehook", shared.chart, "--namespace", namespace, "--create-namespace", "--set", "lifecycle.enabled=true"}, args...)...)
			level := "restricted"
			if name == "own-cni" {
				level = "privileged" // as the file says
			}
			kubectl(t, "label", "namespace", namespace, "pod-security.kubernetes.io/enforce="+level)
			kubectl(t, "-n", namespace, "delete", "pods", "--all", "--wait=false")
			wantPods(t, map[string]int32{"tracehook": 2, "tracehook-authority": 2, "tracehook-lifecycle": 2})
		})
	}
}

// AKS adds to the namespaceSelector of each webhook, and owns the field then.
func TestAnUpgradeOnAKSMeetsNoConflictWithThePreset(t *testing.T) {
	enforce := func() {
		t.Helper()
		found := configuration(t, "tracehook")
		for i := range found.Webhooks {
			selector := found.Webhooks[i].NamespaceSelector
			for _, wanted := range []metav1.LabelSelectorRequirement{
				{Key: "control-plane", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"true"}},
				{Key: "kubernetes.azure.com/managedby", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"aks"}},
			} {
				if !slices.ContainsFunc(selector.MatchExpressions, func(there metav1.LabelSelectorRequirement) bool { return there.Key == wanted.Key }) {
					selector.MatchExpressions = append(selector.MatchExpressions, wanted)
				}
			}
		}
		if _, err := shared.clients.AdmissionregistrationV1().MutatingWebhookConfigurations().Update(story.Within(t, 10*time.Second), found, metav1.UpdateOptions{FieldManager: "admissionsenforcer"}); err != nil {
			t.Fatal(err)
		}
	}
	preset := []string{"--values", filepath.Join(shared.chart, "values-aks.yaml")}
	release := []string{"tracehook", shared.chart, "--namespace", namespace, "--create-namespace"}
	t.Cleanup(func() { cleanUp(t, "helm4") })

	mustHelm(t, "helm4", append([]string{"install"}, release...)...)
	enforce()
	_, err := helm(story.Within(t, time.Minute), "helm4", append([]string{"upgrade", "--install", "--set", "excludeNamespaces={other}"}, release...)...)
	if err == nil || !strings.Contains(err.Error(), "admissionsenforcer") {
		t.Errorf("without the preset: %v, want a conflict with the enforcer", err)
	}
	cleanUp(t, "helm4")
	mustHelm(t, "helm4", append(append([]string{"install"}, release...), preset...)...)
	enforce() // finds nothing to add, so that the field stays Helm's
	mustHelm(t, "helm4", append(append([]string{"upgrade", "--install", "--set", "excludeNamespaces={other}"}, release...), preset...)...)
	if expressions := configuration(t, "tracehook").Webhooks[0].NamespaceSelector.MatchExpressions; len(expressions) != 4 || !slices.Contains(expressions[0].Values, "other") {
		t.Errorf("namespaces are selected by %v", expressions)
	}
}

// As the manual says: nothing is made anew, and the bundle stays.
func TestHelmTakesOverWhatKubectlHasApplied(t *testing.T) {
	for version, flags := range map[string][]string{"helm3": {"--take-ownership"}, "helm4": {"--take-ownership", "--force-conflicts"}} {
		t.Run(version, func(t *testing.T) {
			t.Cleanup(func() {
				cleanUp(t, version)
				kubectl(t, "delete", "--ignore-not-found", "-f", filepath.Join(shared.deploy, "install.yaml"))
			})
			kubectl(t, "apply", "-f", filepath.Join(shared.deploy, "install.yaml"))
			if err := shared.WriteCABundle(story.Within(t, time.Minute), bundle(t)); err != nil {
				t.Fatal(err)
			}
			before := kubectl(t, "-n", namespace, "get", "deployments,mutatingwebhookconfigurations", "-l", "app.kubernetes.io/part-of=tracehook", "-o", "jsonpath={range .items[*]}{.metadata.uid} {.webhooks[*].clientConfig.caBundle} {end}")
			mustHelm(t, version, append([]string{"install", "tracehook", shared.chart, "--namespace", namespace}, flags...)...)
			if after := kubectl(t, "-n", namespace, "get", "deployments,mutatingwebhookconfigurations", "-l", "app.kubernetes.io/part-of=tracehook", "-o", "jsonpath={range .items[*]}{.metadata.uid} {.webhooks[*].clientConfig.caBundle} {end}"); after != before {
				t.Errorf("there were %s and there are %s", before, after)
			}
			// What kubectl had applied stays kubectl's as well, so Helm 4 is forced at each change of it.
			mustHelm(t, version, append([]string{"upgrade", "tracehook", shared.chart, "--namespace", namespace, "--set", "replicas=3"}, flags[1:]...)...)
			wantPods(t, map[string]int32{"tracehook": 3, "tracehook-authority": 2})
		})
	}
}
