package explain

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// manifest writes YAML to a file.
func manifest(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func uidOf(t *testing.T, namespace, object string) string {
	t.Helper()
	return mustKubectl(t, "-n", namespace, "get", object, "-o", "jsonpath={.metadata.uid}")
}

func TestAJobIsExplainedByWhoMadeItAndByItsSchedule(t *testing.T) {
	ns := namespace(t, "jobs")
	id := traced(t, "-n", ns, "create", "job", "once", "--image=app:1")
	mustKubectl(t, "-n", ns, "wait", "--for=create", "pod", "-l", "job-name=once", "--timeout=30s")
	want(t, explained(t, "-n", ns, "job", "once"),
		`Job once exists because of`,
		`  kubectl-create   `+clock+`   trace `+short(id),
		`  └ Job once  created  `+offset+` +1 active, 0 succeeded, 0 failed`,
		`made         Pod once-\w+  schedule: Unschedulable: .*|made         Pod once-\w+`,
	)
	id = traced(t, "-n", ns, "create", "cronjob", "nightly", "--image=app:1", "--schedule=0 4 1 1 *")
	template := "spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: app}]}}}\n"
	// As the CronJob's controller makes one: the admission call is the same, and nobody waits for a minute to begin.
	mustKubectl(t, "-n", ns, "create", "-f", manifest(t, `apiVersion: batch/v1
kind: Job
metadata:
  name: nightly-1
  ownerReferences: [{apiVersion: batch/v1, kind: CronJob, name: nightly, controller: true, uid: `+uidOf(t, ns, "cronjob/nightly")+`}]
`+template))
	want(t, explained(t, "-n", ns, "job/nightly-1"),
		`Job nightly-1 exists because of`,
		`  kubectl-create   `+clock+`   trace `+short(id),
		`  └ CronJob nightly  created  `+offset,
		`    └ schedule "0 4 1 1 \*" of CronJob nightly   kubectl-create   `+clock+`   trace [0-9a-f]{8}…`,
		`      └ Job          created  `+offset+`.*`,
	)
	id = traced(t, "-n", ns, "create", "job", "by-hand", "--from=cronjob/nightly")
	want(t, explained(t, "-n", ns, "job/by-hand"), `    └ made by hand of CronJob nightly   kubectl-create   `+clock+`   trace `+short(id))
	want(t, explained(t, "-n", ns, "cronjob", "nightly"), `CronJob nightly exists because of`, `(made    |        ) {5}Job (nightly-1|by-hand)  1 active, .*`, `             Job (nightly-1|by-hand)  1 active, .*`)
}

func TestACustomResourceIsExplainedWithWhatItsControllerMade(t *testing.T) {
	mustKubectl(t, "create", "-f", manifest(t, `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.shop.example}
spec:
  group: shop.example
  scope: Namespaced
  names: {kind: Widget, plural: widgets, singular: widget, shortNames: [wd]}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
`))
	t.Cleanup(func() { mustKubectl(t, "delete", "crd/widgets.shop.example", "--wait=false") })
	mustKubectl(t, "wait", "--for=condition=Established", "crd/widgets.shop.example", "--timeout=30s")
	// tracehook must be allowed to read an owner to hand its cause down.
	mustKubectl(t, "create", "clusterrole", "widgets", "--verb=get", "--resource=widgets.shop.example")
	mustKubectl(t, "create", "clusterrolebinding", "widgets", "--clusterrole=widgets", "--serviceaccount=tracehook-system:tracehook")
	t.Cleanup(func() { mustKubectl(t, "delete", "clusterrole/widgets", "clusterrolebinding/widgets") })
	mayRead := func() string {
		text, _ := shared.Kubectl(t.Context(), "auth", "can-i", "get", "widgets.shop.example", "--as=system:serviceaccount:tracehook-system:tracehook")
		return text
	}
	eventually(t, mayRead, "yes")
	ns := namespace(t, "custom")
	widget := manifest(t, "apiVersion: shop.example/v1\nkind: Widget\nmetadata: {name: gear}\nspec: {size: 1}\n")
	traced(t, "-n", ns, "create", "-f", widget)
	id := traced(t, "-n", ns, "patch", "widget", "gear", "--type=merge", "-p", `{"spec":{"size":2}}`)
	mustKubectl(t, "-n", ns, "create", "-f", manifest(t, `apiVersion: apps/v1
kind: Deployment
metadata:
  name: gear
  ownerReferences: [{apiVersion: shop.example/v1, kind: Widget, name: gear, controller: true, uid: `+uidOf(t, ns, "widget/gear")+`}]
spec:
  selector: {matchLabels: {app: gear}}
  template: {metadata: {labels: {app: gear}}, spec: {containers: [{name: main, image: app}]}}
`))
	mustKubectl(t, "-n", ns, "wait", "--for=create", "pod", "-l", "app=gear", "--timeout=30s")
	pod := podsOf(t, ns, "gear")[0]
	want(t, explained(t, "-n", ns, "pod/"+pod),
		`Pod `+pod+` exists because of`,
		`  kubectl-patch   `+clock+`   trace `+short(id),
		`  └ Widget gear +changed  spec(.size)?`,
		`    └ Deployment gear +created  `+offset+`.*`,
		`      └ ReplicaSet gear-\w+ +created  `+offset,
		`        └ Pod +created  `+offset+`.*`,
	)
	for _, args := range [][]string{{"widget/gear"}, {"wd", "gear"}, {"widgets.shop.example", "gear"}, {"-f", widget}} {
		text := explained(t, append([]string{"-n", ns}, args...)...)
		want(t, text, `Widget gear exists because of`, `  └ Widget gear  changed  spec(.size)?`, `made         Deployment gear  .*`)
		if !strings.Contains(text, "written") {
			t.Errorf("who wrote what is not in\n%s", text)
		}
	}
	eventually(t, func() string { return explained(t, withStore("-n", ns, "pod/"+pod)...) },
		`  kubectl patch   `+clock+`   trace `+short(id)+`   [\d.]+ m?s`,
		`    └ Deployment gear +created  \+\d+\.\d\d s.*`)
}
