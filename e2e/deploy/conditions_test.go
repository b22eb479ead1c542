package deploy

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// serve runs a tracehook and installs it from overlays/local, with components.
func serve(t *testing.T, components ...string) *cluster.Webhook {
	t.Helper()
	ctx := story.Within(t, time.Minute)
	webhook, err := shared.StartWebhook(ctx, cluster.WebhookOptions{CertDir: shared.certDir, Args: []string{"--stamp=always"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = webhook.Stop() }) // some tests have stopped it
	lead(t, webhook.Port, components...)
	return webhook
}

// lead installs the webhook so that the API server calls that port of localhost, with a bundle that it
// is trusted by.
func base64Bundle() string { return base64.StdEncoding.EncodeToString(shared.bundle) }

func lead(t *testing.T, port int, components ...string) {
	t.Helper()
	ctx := story.Within(t, time.Minute)
	t.Cleanup(func() { uninstall(t, kustomization(t, "overlays/local", components...)) })
	if err := shared.InstallWebhookWith(ctx, cluster.InstallOptions{Port: port, Components: components}); err != nil {
		t.Fatal(err)
	}
	// Every webhook's bundle, as cert-manager or an Authority writes it.
	var patch []string
	for i := range len(strings.Fields(mustKubectl(t, "get", "mutatingwebhookconfiguration/tracehook", "-o", "jsonpath={.webhooks[*].name}"))) {
		patch = append(patch, fmt.Sprintf(`{"op":"add","path":"/webhooks/%d/clientConfig/caBundle","value":%q}`, i, base64Bundle()),
			fmt.Sprintf(`{"op":"replace","path":"/webhooks/%d/clientConfig/service/port","value":%d}`, i, port))
	}
	mustKubectl(t, "patch", "mutatingwebhookconfiguration/tracehook", "--type=json", "-p", "["+strings.Join(patch, ",")+"]")
	if err := shared.WaitInForce(ctx); err != nil {
		t.Fatal(err)
	}
}

// makeNamespace returns when controllers have put into it what they put into every one: nothing of what they write may be counted with
// what a test does.
func makeNamespace(t *testing.T, name string) {
	t.Helper()
	mustKubectl(t, "create", "namespace", name)
	t.Cleanup(func() { mustKubectl(t, "delete", "namespace", name, "--wait=false") })
	for _, object := range []string{"serviceaccount/default", "configmap/kube-root-ca.crt"} {
		mustKubectl(t, "-n", name, "wait", "--for=create", object, "--timeout=30s")
	}
}

// calls are those that a webhook of ours got, by the API server's counter, during do.
func calls(t *testing.T, webhook string, do func()) int {
	t.Helper()
	before := requestTotal(t, webhook)
	do()
	return requestTotal(t, webhook) - before
}

// metrics is what the API server says of itself.
func metrics(t *testing.T) string {
	t.Helper()
	text, err := shared.clients.RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// requestTotal is apiserver_admission_webhook_request_total of one webhook.
func requestTotal(t *testing.T, webhook string) (total int) {
	t.Helper()
	for line := range strings.Lines(metrics(t)) {
		if strings.HasPrefix(line, "apiserver_admission_webhook_request_total{") && strings.Contains(line, fmt.Sprintf("name=%q", webhook)) {
			var n int
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' '):], &n); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			total += n
		}
	}
	return total
}

const environmentWebhook, customWebhook = "environment.tracehook.dev", "custom-resources.tracehook.dev"

// The API server's own count: what would be answered without a patch never leaves it, and what is to be stamped does.
func TestTheAPIServerCallsOnlyForWhatMayBeStamped(t *testing.T) {
	serve(t, "env-injection", "custom-resources")
	for _, name := range []string{"quiet", "asks"} {
		makeNamespace(t, name)
	}
	mustKubectl(t, "label", "namespace", "asks", "tracehook.dev/inject-env=true")
	for group, kind := range map[string]string{"example.org": "Gadget", "queue.x-k8s.io": "Thing", "gateway.networking.k8s.io": "Thing"} {
		crd := "crd/" + strings.ToLower(kind) + "s." + group
		mustKubectl(t, "apply", "-f", write(t, strings.NewReplacer("GROUP", group, "KIND", kind, "LOWER", strings.ToLower(kind)).Replace(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: LOWERs.GROUP, annotations: {api-approved.kubernetes.io: unapproved}}
spec:
  group: GROUP
  scope: Namespaced
  names: {plural: LOWERs, singular: LOWER, kind: KIND}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`)))
		t.Cleanup(func() { mustKubectl(t, "delete", crd, "--wait=false") })
		mustKubectl(t, "wait", "--for=condition=Established", crd)
	}
	wantNoOwnGroupStamped(t)

	const own = "00-0102030405060708090a0b0c0d0e0f10-0102030405060708-01"
	kubectl := func(args ...string) func() {
		return func() { mustKubectl(t, append([]string{"-n", "quiet"}, args...)...) }
	}
	apply := func(text string) func() {
		return kubectl("apply", "--server-side", "--force-conflicts", "-f", write(t, text))
	}
	deployment := func(more string) string {
		return `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  paused: true
  replicas: 0
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: main, image: "app:1"` + more + `}]}}
`
	}
	pod := func(namespace, name, annotations string) func() {
		return func() {
			mustKubectl(t, "apply", "--server-side", "-f", write(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: "+name+", namespace: "+namespace+", annotations: {"+annotations+"}}\n"+
				"spec: {nodeName: nowhere, containers: [{name: main, image: 'app:1'}]}\n"))
		}
	}
	large := func(value string) string { // as large as etcd takes, nearly
		text := strings.Builder{}
		text.WriteString("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: large}\ndata:\n")
		for i := range 6000 {
			fmt.Fprintf(&text, "  key-%d: %s%s\n", i, value, strings.Repeat("x", 80))
		}
		return text.String()
	}
	largeGadget := func(value string) string {
		text := strings.Builder{}
		text.WriteString("apiVersion: example.org/v1\nkind: Gadget\nmetadata: {name: g}\nspec:\n")
		for i := range 4000 {
			fmt.Fprintf(&text, "  key-%d: %s%s\n", i, value, strings.Repeat("x", 80))
		}
		return text.String()
	}
	// The owner's kind is nobody's. Of a kind that there is, the garbage collector would take what a missing owner owns.
	annotated := func(object, owner string, keys int) func() { // with as many bytes as an API server takes without our stamp
		annotations, left := map[string]string{}, 256<<10
		for i := range keys {
			key := fmt.Sprintf("k%06d", i)
			annotations[key], left = "", left-len(key)
		}
		annotations["a"] = strings.Repeat("x", left-len("a"))
		text, _ := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
		return func() {
			if owner != "" {
				kubectl("patch", object, "--type=merge", "-p", `{"metadata":{"ownerReferences":[{"apiVersion":"nobody.example.org/v1","kind":"Thing","name":"g","uid":"1","controller":true}]}}`)()
			}
			kubectl("patch", object, "--type=merge", "--patch-file", write(t, string(text)))()
			if stamp := mustKubectl(t, "-n", "quiet", "get", object, "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`); stamp != "" {
				t.Errorf("%s is full, and has the stamp %s", object, stamp)
			}
		}
	}
	status := func(resource string) func() {
		return kubectl("patch", resource, "--subresource=status", "--type=merge", "-p", `{"status":{"observedGeneration":7}}`)
	}
	for _, step := range []struct {
		name    string
		do      func()
		webhook string
		called  bool
	}{
		{"Deployment made", apply(deployment("")), cluster.WebhookName, true},
		{"Deployment labelled", kubectl("label", "deployment/web", "a=b"), cluster.WebhookName, false},
		{"Deployment annotated", kubectl("annotate", "deployment/web", "a=b"), cluster.WebhookName, false},
		{"Deployment's status written", status("deployment/web"), cluster.WebhookName, false},
		{"Deployment's scale written", kubectl("scale", "deployment/web", "--replicas=1"), cluster.WebhookName, false},
		{"Deployment's replicas written", kubectl("patch", "deployment/web", "-p", `{"spec":{"replicas":2}}`), cluster.WebhookName, false},
		{"Deployment's replicas and something else", kubectl("patch", "deployment/web", "-p", `{"spec":{"replicas":0,"minReadySeconds":3}}`), cluster.WebhookName, true},
		{"Deployment's template changed", kubectl("set", "image", "deployment/web", "main=app:2"), cluster.WebhookName, true},
		{"Deployment written as it was", kubectl("patch", "deployment/web", "-p", `{"spec":{"replicas":0}}`), cluster.WebhookName, false},
		{"a client's own context", kubectl("annotate", "--overwrite", "deployment/web", "tracehook.dev/traceparent="+own), cluster.WebhookName, true},
		{"a context that is none", kubectl("annotate", "--overwrite", "deployment/web", "tracehook.dev/traceparent=yesterday"), cluster.WebhookName, true},
		{"the context removed", kubectl("annotate", "deployment/web", "tracehook.dev/traceparent-"), cluster.WebhookName, false},
		{"a Deployment owned by a controller, changed", kubectl("patch", "deployment/web", "--type=merge", "-p",
			`{"metadata":{"ownerReferences":[{"apiVersion":"nobody.example.org/v1","kind":"Thing","name":"g","uid":"1","controller":true}]},"spec":{"replicas":0,"minReadySeconds":5}}`), cluster.WebhookName, false},
		{"a Job made", apply("apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\nspec: {suspend: true, template: {spec: {restartPolicy: Never, containers: [{name: main, image: 'app:1'}]}}}\n"), cluster.WebhookName, true},
		{"a Job let go and placed by a queue", kubectl("patch", "job/j", "-p", `{"spec":{"suspend":false,"template":{"spec":{"nodeSelector":{"a":"b"}}}}}`), cluster.WebhookName, false},
		{"a Job's own context", kubectl("annotate", "--overwrite", "job/j", "tracehook.dev/traceparent="+own), cluster.WebhookName, true},
		{"a CronJob made", apply("apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: tick}\nspec: {schedule: '0 0 31 2 *', jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: 'app:1'}]}}}}}\n"), cluster.WebhookName, true},
		{"a CronJob suspended", kubectl("patch", "cronjob/tick", "-p", `{"spec":{"suspend":true}}`), cluster.WebhookName, false},
		{"a CronJob's schedule", kubectl("patch", "cronjob/tick", "-p", `{"spec":{"schedule":"0 0 30 2 *"}}`), cluster.WebhookName, true},
		{"a Lease", apply("apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: l}\nspec: {holderIdentity: a}\n"), cluster.WebhookName, false},
		{"an Event", kubectl("create", "-f", write(t, "apiVersion: v1\nkind: Event\nmetadata: {name: e, namespace: quiet}\ninvolvedObject: {namespace: quiet}\n")), cluster.WebhookName, false},
		{"a Pod", pod("quiet", "p", ""), cluster.WebhookName, true},
		{"a Pod again", pod("quiet", "p", "note: x"), cluster.WebhookName, false},
		{"a mirror Pod", pod("quiet", "mirror", `kubernetes.io/config.mirror: "x"`), cluster.WebhookName, false},
		{"a ConfigMap made", kubectl("create", "configmap", "c", "--from-literal=a=b"), cluster.WebhookName, true},
		{"a ConfigMap labelled", kubectl("label", "configmap/c", "a=b"), cluster.WebhookName, false},
		{"a ConfigMap's field gone", kubectl("patch", "configmap/c", "--type=json", "-p", `[{"op":"remove","path":"/data"}]`), cluster.WebhookName, true},

		{"a large ConfigMap made", apply(large("a")), cluster.WebhookName, true},
		{"a large ConfigMap changed", apply(large("b")), cluster.WebhookName, true},
		{"a large ConfigMap labelled", kubectl("label", "configmap/large", "a=b"), cluster.WebhookName, false},

		{"a ConfigMap for many annotations", kubectl("create", "configmap", "full"), cluster.WebhookName, true},
		{"no room for the stamp any more", annotated("configmap/full", "", 0), cluster.WebhookName, true},
		{"a ConfigMap for many small annotations", kubectl("create", "configmap", "small"), cluster.WebhookName, true},
		{"no room any more, and 4,000 annotations", annotated("configmap/small", "", 4000), cluster.WebhookName, true},
		{"a ConfigMap for a controller", kubectl("create", "configmap", "owned"), cluster.WebhookName, true},
		{"no room for the stamp of what a controller owns", annotated("configmap/owned", "g", 0), cluster.WebhookName, true},

		{"variables for a Pod", pod("asks", "asks", ""), environmentWebhook, true},
		{"variables for a Pod that refuses", pod("asks", "refuses", `tracehook.dev/inject-env: "false"`), environmentWebhook, false},
		{"variables for a mirror Pod", pod("asks", "mirror", `kubernetes.io/config.mirror: "x"`), environmentWebhook, false},

		{"a custom resource", apply("apiVersion: example.org/v1\nkind: Gadget\nmetadata: {name: g}\nspec: {a: 1}\n"), customWebhook, true},
		{"a custom resource's spec", apply("apiVersion: example.org/v1\nkind: Gadget\nmetadata: {name: g}\nspec: {a: 2}\n"), customWebhook, true},
		{"a custom resource's replicas", kubectl("patch", "gadget/g", "--type=merge", "-p", `{"spec":{"replicas":3}}`), customWebhook, false},
		{"an order to a custom resource's controller", kubectl("patch", "gadget/g", "--type=merge", "-p", `{"operation":{"sync":{"revision":"abc"}}}`), customWebhook, false},
		{"the order carried out", kubectl("patch", "gadget/g", "--type=json", "-p", `[{"op":"remove","path":"/operation"}]`), customWebhook, false},
		{"a custom resource's spec becomes a text", kubectl("patch", "gadget/g", "--type=json", "-p", `[{"op":"replace","path":"/spec","value":"text"}]`), customWebhook, true},
		{"another text", kubectl("patch", "gadget/g", "--type=merge", "-p", `{"spec":"another"}`), customWebhook, true},
		{"no spec", kubectl("patch", "gadget/g", "--type=json", "-p", `[{"op":"remove","path":"/spec"}]`), customWebhook, true},
		{"a large spec", apply(largeGadget("a")), customWebhook, true},
		{"a large spec changed", apply(largeGadget("b")), customWebhook, true},
		{"a large spec labelled", kubectl("label", "gadget/g", "c=d"), customWebhook, false},
		{"a custom resource of a group that ends in k8s.io", apply("apiVersion: queue.x-k8s.io/v1\nkind: Thing\nmetadata: {name: g}\nspec: {a: 1}\n"), customWebhook, true},
		{"and another", apply("apiVersion: gateway.networking.k8s.io/v1\nkind: Thing\nmetadata: {name: g}\nspec: {a: 1}\n"), customWebhook, true},
		{"a custom resource for many annotations", apply("apiVersion: example.org/v1\nkind: Gadget\nmetadata: {name: full}\n"), customWebhook, true},
		{"no room for a custom resource's stamp", annotated("gadget/full", "", 0), customWebhook, true},
		{"a custom resource's status", kubectl("patch", "gadget/g", "--type=merge", "-p", `{"status":{"ready":true}}`), customWebhook, false},
		{"a custom resource's label", kubectl("label", "gadget/g", "a=b"), customWebhook, false},
		{"what is no custom resource", kubectl("create", "configmap", "d"), customWebhook, false},
		{"nor is what has k8s.io behind its dot", apply("apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: i}\nspec: {defaultBackend: {service: {name: s, port: {number: 1}}}}\n"), customWebhook, false},
	} {
		// More than one where a later webhook changed the object (reinvocationPolicy).
		if got := calls(t, step.webhook, step.do); got > 0 != step.called {
			t.Errorf("%s: %d calls of %s, want any: %t", step.name, got, step.webhook, step.called)
		}
	}
	// With Ignore a condition that cannot be evaluated leaves the call out, and nobody is told but this counter.
	for line := range strings.Lines(metrics(t)) {
		if strings.HasPrefix(line, "apiserver_admission_match_condition_evaluation_errors_total{") {
			t.Errorf("a condition could not be evaluated: %s", line)
		}
	}
	for _, object := range []string{"pod/p", "configmap/c", "configmap/large", "gadget/g"} {
		if stamp := mustKubectl(t, "-n", "quiet", "get", object, "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`); stamp == "" {
			t.Errorf("%s is not stamped", object)
		}
	}
}

// wantNoOwnGroupStamped wants that the component leaves out every group that kube-apiserver itself serves.
func wantNoOwnGroupStamped(t *testing.T) {
	t.Helper()
	expression := mustKubectl(t, "get", "mutatingwebhookconfiguration/tracehook", "-o", `jsonpath={.webhooks[?(@.name=="`+customWebhook+`")].matchConditions[?(@.name=="is-a-custom-resource")].expression}`)
	groups, err := shared.clients.Discovery().ServerGroups()
	if err != nil {
		t.Fatal(err)
	}
	custom := mustKubectl(t, "get", "crd", "-o", "jsonpath={.items[*].spec.group}")
	for _, group := range groups.Groups {
		if strings.Contains(group.Name, ".") && !slices.Contains(strings.Fields(custom), group.Name) && !strings.Contains(expression, "'"+group.Name+"'") {
			t.Errorf("%s is Kubernetes' own, and would be stamped by %s", group.Name, expression)
		}
	}
}

// Ignore means: nobody's request fails, in no namespace, and the namespace that tracehook comes back in does not even wait.
func TestWithTheWebhookDownEverythingIsStillCreated(t *testing.T) {
	webhook := serve(t)
	makeNamespace(t, "down")
	if _, err := webhook.Stop(); err != nil {
		t.Fatal(err)
	}
	before, err := shared.Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	workload := func(namespace string) string {
		return `
apiVersion: apps/v1
kind: Deployment
metadata: {name: still-made, namespace: ` + namespace + `}
spec:
  replicas: 2
  selector: {matchLabels: {app: still-made}}
  template:
    metadata: {labels: {app: still-made}}
    spec:
      securityContext: {runAsNonRoot: true, runAsUser: 1, seccompProfile: {type: RuntimeDefault}}
      containers: [{name: main, image: "app:1", securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]
`
	}
	for _, ns := range []string{"down", namespace} {
		mustKubectl(t, "apply", "-f", write(t, workload(ns)))
		t.Cleanup(func() { mustKubectl(t, "-n", ns, "delete", "deployment/still-made", "--wait=false") })
		eventually(t, 30*time.Second, func(ctx context.Context) error {
			d, err := shared.clients.AppsV1().Deployments(ns).Get(ctx, "still-made", metav1.GetOptions{})
			if err == nil && d.Status.Replicas != 2 {
				err = fmt.Errorf("%s: %d pods, want 2", ns, d.Status.Replicas)
			}
			return err
		})
	}
	after, err := shared.Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// One Deployment, one ReplicaSet, two Pods; all of them in the one namespace that it is called for.
	if d := after.Sub(before); d.FailOpen != 4 || d.RequestTotal != 4 || d.Rejections != 0 {
		t.Errorf("the API server counted %+v, want 4 calls of which 4 failed open", d)
	}
}
