package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/tracehook/tracehook/e2e/internal/story"
	"github.com/tracehook/tracehook/e2e/internal/tree"
)

func getPod(t *testing.T, args ...string) (pod corev1.Pod) {
	t.Helper()
	out := mustKubectl(t, append([]string{"get", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &pod); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return pod
}

// environments are the variables of every container and init container, "name=value" or
// "name from" what, by the container's name.
func environments(pod corev1.Pod) map[string][]string {
	all := map[string][]string{}
	for _, container := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		variables := []string{}
		for _, v := range container.Env {
			if v.ValueFrom != nil {
				variables = append(variables, v.Name+" from "+v.ValueFrom.FieldRef.FieldPath)
			} else {
				variables = append(variables, v.Name+"="+v.Value)
			}
		}
		all[container.Name] = variables
	}
	return all
}

func wantEnvironments(t *testing.T, pod corev1.Pod, want map[string][]string) {
	t.Helper()
	if got := environments(pod); !reflect.DeepEqual(got, want) {
		t.Errorf("environment of pod %s/%s\ngot  %q\nwant %q", pod.Namespace, pod.Name, got, want)
	}
}

func storedIn(t *testing.T, pod corev1.Pod) string {
	t.Helper()
	stored := pod.Annotations["tracehook.dev/traceparent"]
	if !traceparent.MatchString(stored) {
		t.Fatalf("pod %s/%s stores %q, want a traceparent", pod.Namespace, pod.Name, stored)
	}
	return stored
}

// The way it is meant to be used: the Job's template asks, and every pod that the
// controller makes of it gets the variables. The template itself stays as it is.
func TestThePodsOfAJobThatAsksGetTheContextAsEnvironment(t *testing.T) {
	mustKubectl(t, "create", "-f", manifest(t, `
apiVersion: batch/v1
kind: Job
metadata: {name: asks}
spec:
  completions: 2
  parallelism: 2
  template:
    metadata: {annotations: {tracehook.dev/inject-env: "true"}}
    spec:
      restartPolicy: Never
      initContainers: [{name: prepare, image: "app:1"}]
      containers: [{name: main, image: "app:1", env: [{name: A, value: b}]}]
`))
	t.Cleanup(func() { mustKubectl(t, "delete", "job/asks", "--cascade=foreground", "--wait=false") })
	selector := "--selector=batch.kubernetes.io/job-name=asks"
	var names []string
	for deadline := time.Now().Add(30 * time.Second); len(names) < 2; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 30s the Job has the pods %v, want 2", names)
		}
		names = strings.Fields(mustKubectl(t, "get", "pods", selector, "-o", "name"))
	}
	for _, name := range names {
		pod := getPod(t, name)
		variable := "TRACEPARENT=" + storedIn(t, pod)
		wantEnvironments(t, pod, map[string][]string{"prepare": {variable}, "main": {variable, "A=b"}})
	}
	if template := mustKubectl(t, "get", "job/asks", "-o", "jsonpath={.spec.template}"); strings.Contains(template, "TRACEPARENT") || strings.Contains(template, "traceparent") {
		t.Errorf("the Job's template was touched: %s", template)
	}
}

func TestAPodGetsTheVariablesThatItAsksForAndHasNot(t *testing.T) {
	const own = "00-0102030405060708090a0b0c0d0e0f10-0102030405060708-01"
	const containers = `
spec:
  initContainers: [{name: init, image: "app:1"}]
  containers:
    - {name: main, image: "app:1"}
    - name: own
      image: app:1
      env: [{name: TRACEPARENT, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['parent']"}}}]
    - {name: state, image: "app:1", env: [{name: TRACESTATE, value: mine}]}
`
	const fromField = "TRACEPARENT from metadata.annotations['parent']"
	for _, test := range []struct {
		name, annotations string
		want              func(stored string) map[string][]string
	}{
		{"does-not-ask", `{}`, func(string) map[string][]string {
			return map[string][]string{"init": {}, "main": {}, "own": {fromField}, "state": {"TRACESTATE=mine"}}
		}},
		{"asks", `{tracehook.dev/inject-env: "true"}`, func(stored string) map[string][]string {
			variable := "TRACEPARENT=" + stored
			return map[string][]string{"init": {variable}, "main": {variable}, "own": {fromField}, "state": {variable, "TRACESTATE=mine"}}
		}},
		// What refers to other variables is escaped, for the kubelet would put them in.
		{"asks-with-a-context", `{tracehook.dev/inject-env: "true", tracehook.dev/traceparent: "` + own + `", tracehook.dev/tracestate: "vendor=$(HOME)"}`,
			func(string) map[string][]string {
				both := []string{"TRACEPARENT=" + own, "TRACESTATE=vendor=$$(HOME)"}
				return map[string][]string{"init": both, "main": both, "own": {fromField}, "state": {both[0], "TRACESTATE=mine"}}
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := manifest(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: "+test.name+", annotations: "+test.annotations+"}"+containers)
			mustKubectl(t, "apply", "--server-side", "-f", path)
			t.Cleanup(func() { mustKubectl(t, "delete", "pod/"+test.name, "--wait=false") })
			pod := getPod(t, "pod/"+test.name)
			wantEnvironments(t, pod, test.want(storedIn(t, pod)))

			// No conflict and no change, whatever writes the same again.
			for _, again := range [][]string{{"apply", "--server-side", "-f", path}, {"apply", "-f", path}} {
				mustKubectl(t, again...)
				if after := getPod(t, "pod/"+test.name); !reflect.DeepEqual(after.Spec.Containers, pod.Spec.Containers) {
					t.Errorf("kubectl %s again changed the containers\ngot  %+v\nwant %+v", again[:2], after.Spec.Containers, pod.Spec.Containers)
				}
			}
		})
	}
}

// The kubelet expands $(NAME) only from variables that come before.
func TestTheVariablesComeFirstSoThatAContainersOwnCanReferToThem(t *testing.T) {
	mustKubectl(t, "create", "-f", manifest(t, `
apiVersion: v1
kind: Pod
metadata: {name: order, annotations: {tracehook.dev/inject-env: "true", tracehook.dev/traceparent: 00-0102030405060708090a0b0c0d0e0f10-0102030405060708-01, tracehook.dev/tracestate: vendor=1}}
spec:
  initContainers: [{name: sidecar, image: i, restartPolicy: Always}, {name: sidecar-env, image: i, restartPolicy: Always, env: [{name: A, value: $(TRACEPARENT)}]}]
  containers:
  - name: c
    image: i
    env:
    - {name: CURL_HEADER, value: "traceparent: $(TRACEPARENT)"}
    - {name: OTEL_RESOURCE_ATTRIBUTES, value: "cause=$(TRACEPARENT)"}
  - {name: empty, image: i, env: []}
  - {name: null-env, image: i, env: null}
`))
	t.Cleanup(func() { mustKubectl(t, "delete", "pod/order", "--wait=false") })
	ours := []string{"TRACEPARENT=00-0102030405060708090a0b0c0d0e0f10-0102030405060708-01", "TRACESTATE=vendor=1"}
	wantEnvironments(t, getPod(t, "pod/order"), map[string][]string{
		"sidecar": ours, "sidecar-env": append(slices.Clone(ours), "A=$(TRACEPARENT)"),
		"c":     append(slices.Clone(ours), "CURL_HEADER=traceparent: $(TRACEPARENT)", "OTEL_RESOURCE_ATTRIBUTES=cause=$(TRACEPARENT)"),
		"empty": ours, "null-env": ours,
	})
}

// Neither in the Pod that is looked at, nor in a copy of it, nor on its node.
func TestWhatKubectlDebugAddsIsLeftAlone(t *testing.T) {
	installEnvInjection(t)
	mustKubectl(t, "create", "namespace", "debugged")
	t.Cleanup(func() { mustKubectl(t, "delete", "namespace/debugged", "--wait=false") })
	mustKubectl(t, "-n", "debugged", "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
	mustKubectl(t, "label", "namespace/debugged", "tracehook.dev/inject-env=true")
	mustKubectl(t, "-n", "debugged", "run", "app", "--image=app:1", "--annotations=tracehook.dev/inject-env=true")
	app := getPod(t, "-n", "debugged", "pod/app")
	ours := []string{"TRACEPARENT=" + storedIn(t, app)}
	wantEnvironments(t, app, map[string][]string{"app": ours})

	debug := func(args ...string) {
		t.Helper()
		mustKubectl(t, append([]string{"-n", "debugged", "debug", "--image=tools:1", "--attach=false", "--container=tools"}, args...)...)
	}
	debug("app")
	looked := getPod(t, "-n", "debugged", "pod/app")
	if added := looked.Spec.EphemeralContainers; len(added) != 1 || len(added[0].Env) != 0 {
		t.Errorf("the ephemeral containers are %+v", added)
	}
	wantEnvironments(t, looked, map[string][]string{"app": ours})
	if stored := storedIn(t, looked); stored != storedIn(t, app) {
		t.Errorf("the Pod's cause changed to %s", stored)
	}
	for name, args := range map[string][]string{"copy": nil, "copy-with-annotations": {"--keep-annotations"}} {
		if args != nil && !atLeast(31) {
			continue
		}
		debug(append([]string{"app", "--copy-to=" + name}, args...)...)
		wantEnvironments(t, getPod(t, "-n", "debugged", "pod/"+name), map[string][]string{"app": ours, "tools": {}})
	}
	if !atLeast(31) { // which set no label yet
		return
	}
	clients, err := kubernetes.NewForConfig(installed.RESTConfig)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := clients.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "looked-at"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustKubectl(t, "delete", "node/looked-at") })
	debug("node/looked-at", "--profile=general")
	pods := strings.Fields(mustKubectl(t, "-n", "debugged", "get", "pods", "-l", "app.kubernetes.io/managed-by=kubectl-debug", "-o", "name"))
	if len(pods) != 1 {
		t.Fatalf("the pods that look at the node are %v, want one", pods)
	}
	wantEnvironments(t, getPod(t, "-n", "debugged", pods[0]), map[string][]string{"tools": {}})
}

// The shipped component on top of what is installed: the namespace asks for its pods.
func TestANamespaceAsksForItsPods(t *testing.T) {
	installEnvInjection(t)
	for _, namespace := range []string{"batch", "web"} {
		mustKubectl(t, "create", "namespace", namespace)
		t.Cleanup(func() { mustKubectl(t, "delete", "namespace/"+namespace, "--wait=false") })
		mustKubectl(t, "-n", namespace, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
	}
	mustKubectl(t, "label", "namespace/batch", "tracehook.dev/inject-env=true")

	run := func(namespace, name string, annotations ...string) (corev1.Pod, string) {
		t.Helper()
		args := []string{"-n", namespace, "run", name, "--image=app:1", "--restart=Never"}
		for _, a := range annotations {
			args = append(args, "--annotations="+a)
		}
		id, _, _ := traced(t, installed.Kubeconfig, args...)
		pod := getPod(t, "-n", namespace, "pod/"+name)
		if stored := storedIn(t, pod); !strings.Contains(stored, id) {
			t.Errorf("pod %s/%s stores %s, want trace %s", namespace, name, stored, id)
		}
		return pod, id
	}

	pod, id := run("batch", "task")
	wantEnvironments(t, pod, map[string][]string{"task": {"TRACEPARENT=" + storedIn(t, pod)}})
	wantTrace(t, id, tree.Want{Name: "kubectl run", Children: []tree.Want{
		{Name: "Call mutating webhook", Descendant: true, Attributes: map[string]any{"webhook": "trace-context.tracehook.dev"}, Events: []string{"Patch applied"},
			Children: []tree.Want{{Name: "POST /mutate", Service: "tracehook", Descendant: true}}},
		{Name: "Call mutating webhook", Descendant: true, Attributes: map[string]any{"webhook": "environment.tracehook.dev"}, Events: []string{"Patch applied"},
			Children: []tree.Want{{Name: "POST /mutate/environment", Service: "tracehook", Descendant: true}}},
		// Once more, since the second one has changed the pod; there is nothing to do.
		{Name: "Call mutating webhook", Descendant: true, Attributes: map[string]any{"webhook": "trace-context.tracehook.dev"},
			Children: []tree.Want{{Name: "mutate trace-context", Service: "tracehook", Descendant: true, Attributes: map[string]any{"tracehook.stamp": "same_trace"}}}},
	}})

	pod, _ = run("batch", "server", "tracehook.dev/inject-env=false")
	wantEnvironments(t, pod, map[string][]string{"server": {}})
	pod, _ = run("batch", "both", "tracehook.dev/inject-env=true")
	wantEnvironments(t, pod, map[string][]string{"both": {"TRACEPARENT=" + storedIn(t, pod)}})
	pod, _ = run("web", "task")
	wantEnvironments(t, pod, map[string][]string{"task": {}})
}

// installEnvInjection applies the overlay that is installed and the component, with
// the port and the CA bundle for this cluster.
func installEnvInjection(t *testing.T) {
	t.Helper()
	// kustomize takes only relative paths, and follows them from the directory's real place.
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	deploy, err := filepath.Abs("../deploy")
	if err != nil {
		t.Fatal(err)
	}
	if deploy, err = filepath.EvalSymlinks(deploy); err != nil {
		t.Fatal(err)
	}
	if deploy, err = filepath.Rel(dir, deploy); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [%[1]s/overlays/local]
components: [%[1]s/components/env-injection]
patches:
- target: {kind: Service, name: tracehook}
  patch: '[{"op": "replace", "path": "/spec/ports/0/port", "value": %[2]d}]'
- target: {kind: MutatingWebhookConfiguration, name: tracehook}
  patch: |-
    - {op: replace, path: /webhooks/0/clientConfig/service/port, value: %[2]d}
    - {op: replace, path: /webhooks/1/clientConfig/service/port, value: %[2]d}
    - {op: add, path: /webhooks/1/clientConfig/caBundle, value: %[3]s}
`, filepath.ToSlash(deploy), installed.webhook.Port, base64.StdEncoding.EncodeToString(installed.caBundle))
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	mustKubectl(t, "apply", "-k", dir)
	t.Cleanup(func() { reinstall(t) })
	if err := installed.SetCABundle(story.Within(t, time.Minute), installed.caBundle); err != nil { // waits until both are in force
		t.Fatal(err)
	}
}
