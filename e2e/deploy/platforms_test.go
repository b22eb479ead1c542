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
	"sigs.k8s.io/yaml"
)

// platforms are rules of platforms that are not run here, for the objects of ours that they are about.
const platforms = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: platforms-pods}
spec:
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: tracehook-system}}
    resourceRules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [pods]}]
  variables:
    - {name: securityContexts, expression: "(has(object.spec.securityContext) ? [dyn(object.spec.securityContext)] : []) + object.spec.containers.filter(c, has(c.securityContext)).map(c, dyn(c.securityContext))"}
  validations:
    - message: OpenShift's restricted-v2 gives users and groups out itself
      expression: "variables.securityContexts.all(s, ['runAsUser', 'runAsGroup', 'fsGroup', 'supplementalGroups', 'seLinuxOptions'].all(id, !(id in s)))"
    - message: a Secret's files are root's, and nobody else can read them
      expression: "!has(object.spec.volumes) || object.spec.volumes.all(v, !has(v.secret) || !has(v.secret.defaultMode) || v.secret.defaultMode % 8 >= 4)"
    - message: this Pod may land on a node with Windows
      expression: "has(object.spec.nodeSelector) && 'kubernetes.io/os' in object.spec.nodeSelector && object.spec.nodeSelector['kubernetes.io/os'] == 'linux'"
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: platforms-pods}
spec: {policyName: platforms-pods, validationActions: [Deny]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: platforms-autopilot}
spec:
  matchConstraints:
    resourceRules: [{operations: [CREATE, UPDATE], apiGroups: [admissionregistration.k8s.io], apiVersions: [v1], resources: [mutatingwebhookconfigurations]}]
  validations:
    - message: GKE Autopilot refuses rules for everything
      expression: "!object.webhooks.exists(w, w.rules.exists(r, (r.apiGroups + r.resources).exists(name, name.contains('*'))))"
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: platforms-autopilot}
spec: {policyName: platforms-autopilot, validationActions: [Deny]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: platforms-managed-namespaces}
spec:
  matchConstraints:
    objectSelector: {matchLabels: {app.kubernetes.io/part-of: tracehook}}
    namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [default, kube-system]}]}
    resourceRules: [{operations: [CREATE, UPDATE], apiGroups: ["*"], apiVersions: ["*"], resources: ["*"]}]
  validations:
    - {message: GKE Autopilot lets nobody write to kube-system, expression: "!has(object.metadata.namespace)"}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: platforms-managed-namespaces}
spec: {policyName: platforms-managed-namespaces, validationActions: [Deny]}
`

// autopilot is the manual's patch that names groups.
func autopilot(t *testing.T) string {
	t.Helper()
	return documented(t, "README.md", "patches:")
}

func TestEachWayInstallsUnderTheRulesOfOpenShiftWindowsAndAutopilot(t *testing.T) {
	needPolicies(t)
	mustKubectl(t, "apply", "-f", write(t, platforms))
	custom := kustomization(t, "overlays/files", "custom-resources")
	apply := func(ctx context.Context) (string, error) {
		return shared.Kubectl(ctx, "apply", "--dry-run=server", "-f", custom)
	}
	t.Cleanup(func() {
		mustKubectl(t, "delete", "-f", write(t, platforms))
		eventuallyAtTheEnd(t, func() error { // they stay in force for a moment
			if out, err := apply(context.Background()); err != nil && strings.Contains(err.Error(), "refuses") {
				return fmt.Errorf("%s: %w", out, err)
			}
			return nil
		})
	})
	const pod = `{apiVersion: v1, kind: Pod, metadata: {name: asked, namespace: tracehook-system}, spec: {nodeSelector: {%s}, volumes: [%s],
securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}%s},
containers: [{name: main, image: "app:1", securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]}}`
	const linux = "kubernetes.io/os: linux"
	// The control: these rules are in force, and what was shipped before would not get through.
	mustKubectl(t, "apply", "-f", filepath.Join(shared.deploy, "base", "namespace.yaml"))
	for words, asked := range map[string]string{
		"OpenShift": fmt.Sprintf(pod, linux, "", ", fsGroup: 65532"),
		"root's":    fmt.Sprintf(pod, linux, "{name: v, secret: {secretName: s, defaultMode: 0440}}", ""),
		"Windows":   fmt.Sprintf(pod, "", "", ""),
	} {
		eventually(t, 30*time.Second, func(ctx context.Context) error {
			if _, err := shared.Kubectl(ctx, "create", "--dry-run=server", "-f", write(t, asked)); err == nil || !strings.Contains(err.Error(), words) {
				return fmt.Errorf("%s: %w, want it refused with %q", asked, err, words)
			}
			return nil
		})
	}
	if out, err := apply(t.Context()); err == nil || !strings.Contains(err.Error(), "GKE Autopilot refuses") {
		t.Errorf("custom-resources as it is: %s, %v", out, err)
	}

	others := slices.DeleteFunc(addOns(t), func(name string) bool { return name == "custom-resources" || name == "env-injection" })
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			text := "resources: [deploy/base]\ncomponents:\n"
			for _, component := range append([]string{way, "custom-resources"}, others...) {
				text += "  - deploy/components/" + component + "\n"
			}
			install(t, render(t, text+autopilot(t)))
			wantPods(t, namespace)
			mustKubectl(t, "-n", namespace, "create", "job", "--from=cronjob/tracehook-audit", "audit-now")
			mustKubectl(t, "-n", namespace, "wait", "job/audit-now", "--for=jsonpath={.status.active}=1", "--timeout=30s")
			mustKubectl(t, "-n", namespace, "delete", "job/audit-now", "--wait=false")
		})
	}
}

// The groups that one names are called for, and others are not.
func TestWithGroupsByNameTheAPIServerCallsForThoseResources(t *testing.T) {
	serve(t, "custom-resources")
	var patches struct{ Patches []struct{ Patch string } }
	if err := yaml.Unmarshal([]byte(autopilot(t)), &patches); err != nil {
		t.Fatal(err)
	}
	operations, err := yaml.YAMLToJSON([]byte(patches.Patches[0].Patch))
	if err != nil {
		t.Fatal(err)
	}
	mustKubectl(t, "patch", "mutatingwebhookconfiguration/tracehook", "--type=json", "-p", string(operations))
	for _, plural := range []string{"gadgets", "widgets"} {
		kind := strings.ToUpper(plural[:1]) + plural[1:len(plural)-1]
		mustKubectl(t, "apply", "-f", write(t, `{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: `+plural+`.example.org},
spec: {group: example.org, scope: Namespaced, names: {plural: `+plural+`, kind: `+kind+`}, versions: [
{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]}}`))
		t.Cleanup(func() { mustKubectl(t, "delete", "crd/"+plural+".example.org", "--wait=false") })
		mustKubectl(t, "wait", "--for=condition=Established", "crd/"+plural+".example.org")
		eventually(t, 30*time.Second, func(ctx context.Context) error {
			stamp, err := shared.Kubectl(ctx, "create", "--dry-run=server", "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`, "-f",
				write(t, "{apiVersion: example.org/v1, kind: "+kind+", metadata: {name: x, namespace: default}}"))
			if err == nil && (stamp != "") != (plural == "gadgets") {
				err = fmt.Errorf("%s: stamp %q", plural, stamp)
			}
			return err
		})
	}
}

// The port that the Service leads to is the one that is listened on.
func TestOnAnotherPortTheServiceStillLeadsToTheServer(t *testing.T) {
	for _, port := range []int32{9443, 10250} {
		var components []string
		if port != 9443 {
			components = append(components, fmt.Sprintf("port-%d", port))
		}
		path := kustomization(t, "overlays/split", components...)
		install(t, path)
		d, err := shared.clients.AppsV1().Deployments(namespace).Get(t.Context(), "tracehook", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		container := d.Spec.Template.Spec.Containers[0]
		listens := int32(9443) // the default of serve
		for _, arg := range container.Args {
			_, _ = fmt.Sscanf(arg, "--webhook-bind-address=:%d", &listens)
		}
		var named []int32
		for _, p := range container.Ports {
			if p.Name == "webhook" {
				named = append(named, p.ContainerPort)
			}
		}
		if listens != port || !slices.Equal(named, []int32{port}) {
			t.Errorf("listens on %d, the port webhook is %v; want %d", listens, named, port)
		}
		for _, service := range []string{"tracehook", "tracehook-proof"} {
			if target := mustKubectl(t, "-n", namespace, "get", "service", service, "-o", "jsonpath={.spec.ports[*].targetPort}"); target != "webhook" {
				t.Errorf("Service %s leads to %s", service, target)
			}
		}
	}
}
