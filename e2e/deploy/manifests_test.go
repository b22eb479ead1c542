package deploy

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ways are how a certificate gets to the pods; one of them is needed.
var ways = []string{"certs-managed", "certs-authority", "certs-cert-manager", "certs-files"}

// parts are not for use alone.
var parts = []string{"certs-rights", "release"}

// addOns go with each way and with each other: all other components.
func addOns(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(shared.deploy, "components", "*", "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if name := filepath.Base(filepath.Dir(file)); !slices.Contains(ways, name) && !slices.Contains(parts, name) {
			names = append(names, name)
		}
	}
	if len(names) < 8 {
		t.Fatalf("only these components: %q", names)
	}
	return names
}

// kustomization renders one of resources and components, named from deploy/, to a file.
func kustomization(t *testing.T, resource string, components ...string) (path string) {
	t.Helper()
	text := "resources: [deploy/" + resource + "]\n"
	if len(components) > 0 {
		text += "components:\n"
	}
	for _, component := range components {
		text += "  - deploy/components/" + component + "\n"
	}
	return render(t, text)
}

// render renders a kustomization beside deploy/, as the manual has it.
func render(t *testing.T, text string) (path string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir()) // kustomize takes only relative paths
	if err != nil {
		t.Fatal(err)
	}
	deploy, err := filepath.Rel(dir, shared.deploy)
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`\bdeploy/`).ReplaceAllString(text, filepath.ToSlash(deploy)+"/")
	if !policies() {
		leaveOut := documented(t, "COMPATIBILITY.md", "patches:")
		if before, after, found := strings.Cut(text, "patches:\n"); found {
			text = before + leaveOut + after
		} else {
			text += leaveOut
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return write(t, mustKubectl(t, "kustomize", dir))
}

// documented is the block of YAML in a page of deploy/ that begins with a line.
func documented(t *testing.T, page, begins string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(shared.deploy, page))
	if err != nil {
		t.Fatal(err)
	}
	_, block, found := strings.Cut(string(text), "```yaml\n"+begins+"\n")
	if !found {
		t.Fatalf("%s has no block that begins with %q", page, begins)
	}
	block, _, _ = strings.Cut(block, "```")
	return begins + "\n" + block
}

// install applies a file, and takes all of it away at the end of the test.
func install(t *testing.T, path string) {
	t.Helper()
	mustKubectl(t, "apply", "-f", filepath.Join(shared.deploy, "base", "namespace.yaml"))
	t.Cleanup(func() { uninstall(t, path) })
	mustKubectl(t, "apply", "--warnings-as-errors", "-f", path)
}

// uninstall removes what a file holds, but the namespace: to make it anew each time takes long.
func uninstall(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var rest []string
	for _, document := range strings.Split(string(text), "\n---\n") {
		if !regexp.MustCompile(`(?m)^kind: Namespace$`).MatchString(document) {
			rest = append(rest, document)
		}
	}
	mustKubectl(t, "delete", "--ignore-not-found", "--wait=false", "-f", write(t, strings.Join(rest, "\n---\n")))
}

// Everything that is shipped, and each way to combine it: the API server takes it strictly and without a warning, as a dry
// run and for good; the same again is no change; and the real PodSecurity admission of a namespace that enforces "restricted" lets
// the pods in that the real controllers make of it.
func TestWhatIsShippedIsAcceptedStrictlyAndIsNoChangeTheSecondTime(t *testing.T) {
	type rendering struct {
		name, resource string
		components     []string
	}
	all := addOns(t)
	var cases []rendering
	overlays, err := os.ReadDir(filepath.Join(shared.deploy, "overlays"))
	if err != nil {
		t.Fatal(err)
	}
	for _, overlay := range overlays {
		cases = append(cases, rendering{overlay.Name(), "overlays/" + overlay.Name(), nil})
	}
	for _, way := range ways {
		cases = append(cases, rendering{way + " with everything", "base", append([]string{way}, all...)})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := kustomization(t, c.resource, c.components...)
			wantConventions(t, path)
			mustKubectl(t, "apply", "-f", filepath.Join(shared.deploy, "base", "namespace.yaml")) // a dry run makes none
			mustKubectl(t, "apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-f", path)
			install(t, path)
			if changed, err := shared.Kubectl(t.Context(), "diff", "-f", path); err != nil {
				t.Errorf("applied again, it would change: %v\n%s", err, changed)
			}
			wantPods(t, namespace)
			if slices.Contains(c.components, "audit") { // a CronJob's pods are looked at only when they are made
				mustKubectl(t, "-n", namespace, "create", "job", "--from=cronjob/tracehook-audit", "audit-now", "--dry-run=server", "--warnings-as-errors")
			}
		})
	}
}

// wantConventions reads what is easily forgotten when something is added.
func wantConventions(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range strings.Split(string(text), "\n---\n") {
		if !strings.Contains(document, "\n    app.kubernetes.io/part-of: tracehook\n") {
			t.Errorf("an operator would not find this by app.kubernetes.io/part-of=tracehook:\n%s", document)
		}
		// A GitOps tool that applies it again and again would wipe what the authority has written.
		if strings.Contains(document, "caBundle:") {
			t.Errorf("here is a caBundle:\n%s", document)
		}
	}
}

// wantPods wants every Deployment to have all its pods, which here wait for a node forever, as nothing of
// theirs but their names is looked at.
func wantPods(t *testing.T, namespace string) {
	t.Helper()
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		level, err := shared.clients.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if enforced := level.Labels["pod-security.kubernetes.io/enforce"]; enforced != "restricted" {
			return fmt.Errorf("the namespace enforces %q", enforced)
		}
		deployments, err := shared.clients.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, d := range deployments.Items {
			if d.Status.Replicas != *d.Spec.Replicas {
				return fmt.Errorf("Deployment %s has %d pods, want %d: %+v", d.Name, d.Status.Replicas, *d.Spec.Replicas, d.Status.Conditions)
			}
		}
		return nil
	})
}

// What the policy is there for, so that "without a warning" means something.
func TestTheNamespaceRefusesAPodOnTheHostsNetwork(t *testing.T) {
	mustKubectl(t, "apply", "-f", filepath.Join(shared.deploy, "base", "namespace.yaml"))
	out, err := shared.Kubectl(t.Context(), "-n", namespace, "run", "on-the-host", "--image=app:1", "--dry-run=server", `--overrides={"spec":{"hostNetwork":true}}`)
	if err == nil || !strings.Contains(err.Error(), "PodSecurity") {
		t.Errorf("%s, %v; want it refused by PodSecurity", out, err)
	}
}

// One by one, so that a component that leans on another is found.
func TestEachComponentRendersAlone(t *testing.T) {
	for _, name := range append(addOns(t), ways...) {
		once, err := os.ReadFile(kustomization(t, "base", name))
		if err != nil {
			t.Fatal(err)
		}
		if tags := regexp.MustCompile(`image: ghcr.io/tracehook/tracehook.*`).FindAllString(string(once), -1); len(slices.Compact(tags)) != 1 || strings.HasSuffix(tags[0], "tracehook") {
			t.Errorf("%s: the images are not of one release: %q", name, tags)
		}
	}
}

func TestTheKindOverlayGivesTheCollectorTheAddressThatTheAPIServerDials(t *testing.T) {
	rendered, err := os.ReadFile(kustomization(t, "overlays/kind"))
	if err != nil {
		t.Fatal(err)
	}
	address := regexp.MustCompile(`clusterIP: (\d+\S+)`).FindSubmatch(rendered)
	if address == nil {
		t.Fatal("the Collector's Service has no fixed address")
	}
	for _, file := range []string{"kind/tracing/tracing.yaml", "kind/tracing/tracing-1.22.yaml", "kind/cluster.yaml"} {
		text, err := os.ReadFile(filepath.Join(shared.deploy, file))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), string(address[1])+":4317") {
			t.Errorf("%s does not name %s:4317", file, address[1])
		}
	}
}
